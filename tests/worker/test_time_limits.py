"""The clock of a child, and what the supervisor reads on the board. No server."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import pytest

from rsq import App, codec
from rsq.calls.message import Delivery
from rsq.calls.outcome import Completed
from rsq.clock import ServerClock
from rsq.codec import register_type
from rsq.errors import LeaseLost, SoftTimeLimitExceeded, TimeLimitExceeded
from rsq.worker.attempt import Attempts
from rsq.worker.board import Board, Slot
from rsq.worker.interrupt import InThread
from rsq.worker.time_limits import GRACE_S, Limits, Timed
from rsq.worker.watch import Watch
from tests.helpers import wait_until
from tests.worker.test_parts import delivery


class Recorder:
    """Keeps what is thrown; the first `misses` do not reach the body."""

    def __init__(self, misses: int = 0) -> None:
        self.thrown: list[BaseException] = []
        self._misses = misses

    def __call__(self, delivery: Delivery, error: BaseException) -> bool:
        self.thrown.append(error)
        return len(self.thrown) > self._misses


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
    assert running.deadline is not None, "what is made of the outcome counts, too"


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


def test_what_does_not_reach_the_body_is_thrown_again_until_it_does() -> None:
    watch, recorder = Watch(kills=True), Recorder(misses=3)
    timed = Timed(watch, recorder, a_slot(), delivery(1), math.inf, 0.01)
    wait_until(lambda: timed.next_at == math.inf, what="it to arrive")
    watch.close()
    assert len(recorder.thrown) == 4
    assert len({id(error) for error in recorder.thrown}) == 1, "the same one, so that it is raised once"


def test_what_is_thrown_ends_with_its_body() -> None:
    watch, recorder, runs = Watch(kills=True), Recorder(misses=10**9), [True]
    watch.throw(recorder, delivery(1), LeaseLost("gone"), lambda: runs[0])
    wait_until(lambda: len(recorder.thrown) > 3, what="it to be thrown again")
    runs[0] = False
    wait_until(lambda: not watch._watched, what="it to be dropped")
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


@dataclass
class Slow:
    """Looks at the board while it is read."""

    name: str

    def __post_init__(self) -> None:
        running = looked_at.read() if looked_at is not None else None
        seen.append(running is not None and running.deadline is not None)


looked_at: Slot | None = None
seen: list[bool] = []
register_type(Slow, "tests.slow")


def test_the_hard_limit_covers_the_reading_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    app, slot = App("reads"), a_slot()
    body = codec.encode_call((Slow("x"),), {}, None)

    @app.task(name="reads", time_limit=50)
    def reads(slow: Slow) -> None:
        pass

    fields = [b"id", b"x1", b"task", b"reads", b"body", body, b"meta", b""]
    watch = Watch(kills=True)
    attempts = Attempts(app.tasks, app.settings, lambda queue: ServerClock(), InThread(), Limits(watch, slot))
    monkeypatch.setattr(f"{__name__}.looked_at", slot)
    seen.clear()
    assert isinstance(attempts.run(Delivery("default", 0, b"1-1", fields)), Completed)
    assert seen == [True]
    watch.close()
