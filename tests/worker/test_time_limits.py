"""The clock of a child, and what the supervisor reads on the board. No server."""

from __future__ import annotations

import math
import time

import pytest

from rsq.calls.message import Delivery
from rsq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from rsq.worker.board import Board, Slot
from rsq.worker.interrupt import Interrupt
from rsq.worker.time_limits import GRACE_S, Timed, Watch
from tests.helpers import wait_until
from tests.worker.test_parts import delivery


class Recorder(Interrupt):
    """Keeps what is thrown."""

    def __init__(self) -> None:
        super().__init__()
        self.thrown: list[BaseException] = []

    def throw(self, delivery: Delivery, error: BaseException, again: bool = False) -> None:
        self.thrown.append(error)


def a_slot() -> Slot:
    slot = Board(1, slots=1).child(0).slots[0]
    slot.start(time.monotonic(), 0, 0, False, b"1-1", b"x", b"task")
    return slot


@pytest.mark.parametrize(("kills", "grace_s"), [(True, 0.0), (False, GRACE_S)])
def test_the_board_tells_when_it_is_to_be_killed(kills: bool, grace_s: float) -> None:
    slot = a_slot()
    before = time.monotonic()
    timed = Timed(Watch(kills), Recorder(), slot, delivery(1), 50.0, math.inf)
    running = slot.read()
    assert running is not None
    assert running.deadline is not None
    assert before <= running.deadline - 50.0 - grace_s <= time.monotonic()
    assert running.limit_s == 50.0
    timed.end()
    running = slot.read()
    assert running is not None
    assert running.deadline is None


def test_soft_then_hard_then_hard_again() -> None:
    recorder, mine = Recorder(), delivery(1)
    watch = Watch(kills=False)
    timed = Timed(watch, recorder, a_slot(), mine, 0.1, 0.05)
    wait_until(lambda: len(recorder.thrown) == 3, 20, "it to be raised again")
    watch.close()
    assert [type(error) for error in recorder.thrown] == [SoftTimeLimitExceeded, TimeLimitExceeded, TimeLimitExceeded]
    assert mine.overdue_s == 0.1
    with pytest.raises(TimeLimitExceeded):
        timed.end()
    meant = timed.meant(ValueError("what it made of that"))
    assert isinstance(meant, TimeLimitExceeded)
    assert isinstance(meant.__context__, ValueError)


def test_where_it_is_killed_the_hard_limit_is_not_raised() -> None:
    watch, recorder, late = Watch(kills=True), Recorder(), Recorder()
    mine = delivery(1)
    timed = Timed(watch, recorder, a_slot(), mine, 0.02, 0.01)
    other = Timed(watch, late, a_slot(), delivery(2), math.inf, 0.1)  # by whose time the first one's is over
    wait_until(lambda: late.thrown, 20, "the later one")
    watch.close()
    assert [type(error) for error in recorder.thrown] == [SoftTimeLimitExceeded]
    assert not mine.overdue_s
    timed.end()
    other.end()


def test_what_comes_before_the_body_has_begun_is_not_lost() -> None:
    watch = Watch(kills=True)
    timed = Timed(watch, Recorder(), a_slot(), delivery(1), math.inf, 0.01)
    wait_until(lambda: timed.error is not None, what="it to be raised")
    with pytest.raises(SoftTimeLimitExceeded):
        timed.begin()
    watch.close()


def test_a_shorter_limit_that_begins_later_is_in_time() -> None:
    watch, first, second = Watch(kills=True), Recorder(), Recorder()
    Timed(watch, first, a_slot(), delivery(1), math.inf, 600)
    Timed(watch, second, a_slot(), delivery(2), math.inf, 0.05)
    wait_until(lambda: second.thrown, 20, "the shorter one")
    assert not first.thrown
    watch.close()


def test_who_has_ended_is_left_alone() -> None:
    watch, first, second = Watch(kills=True), Recorder(), Recorder()
    Timed(watch, first, a_slot(), delivery(1), math.inf, 0.05).end()
    Timed(watch, second, a_slot(), delivery(2), math.inf, 0.1)
    wait_until(lambda: second.thrown, 20, "the other one")
    assert not first.thrown
    watch.close()
