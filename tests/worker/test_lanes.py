"""Several lanes as one: whose turn it is, who is woken, and where outcomes go."""

from __future__ import annotations

import threading
from typing import Any, cast

from rsq.calls.message import Delivery
from rsq.calls.outcome import Released
from rsq.worker.inbox import Inbox
from rsq.worker.lanes import Committers, Inboxes, side_by_side
from rsq.worker.prefetch import BYTES_AHEAD, MOST_AHEAD, Prefetch


def delivery(number: int, queue: str = "a") -> Delivery:
    fields = [b"id", b"%s%d" % (queue.encode(), number), b"task", b"t", b"body", b"", b"meta", b""]
    return Delivery(queue, 0, b"%d-1" % number, fields)


def take(inboxes: Inboxes) -> str:
    shown = inboxes.peek()
    assert shown is not None
    assert inboxes.remove(shown)
    return shown.id


def test_each_lane_gives_in_its_turn() -> None:
    busy, other, idle = Inbox(), Inbox(), Inbox()
    inboxes = Inboxes([busy, other, idle])
    busy.put([delivery(number) for number in range(4)])
    other.put([delivery(number, "b") for number in range(2)])
    assert [take(inboxes) for _ in range(6)] == ["a0", "b0", "a1", "b1", "a2", "a3"]
    assert len(inboxes) == 0


def test_who_waits_is_woken_by_any_of_them() -> None:
    parts = [Inbox(), Inbox()]
    inboxes = Inboxes(parts)
    got: list[str] = []
    for number in range(20):
        waiter = threading.Thread(target=lambda: got.append(take(inboxes)))
        waiter.start()
        assert all(part.hungry.wait(30) for part in parts)
        parts[number % 2].put([delivery(number)])
        waiter.join(30)
        assert len(got) == number + 1


def test_closed_they_give_nothing_more() -> None:
    parts = [Inbox(), Inbox()]
    inboxes = Inboxes(parts)
    got: list[Delivery | None] = []
    waiter = threading.Thread(target=lambda: got.append(inboxes.peek()))
    waiter.start()
    assert parts[1].hungry.wait(30)
    inboxes.close()
    waiter.join(30)
    parts[0].put([delivery(1)])
    assert (got, inboxes.peek(), inboxes.closed) == ([None], None, True)


def test_what_a_lane_has_taken_back_is_not_started() -> None:
    parts = [Inbox(), Inbox()]
    inboxes = Inboxes(parts)
    parts[0].put([delivery(1)])
    shown = inboxes.peek()
    assert shown is not None
    parts[0].drain()
    parts[1].put([delivery(2, "b")])
    assert not inboxes.remove(shown)
    assert [each.id for each in inboxes.held()] == ["b2"]
    assert take(inboxes) == "b2"


def test_nothing_is_lost_between_lanes_and_an_executor() -> None:
    parts = [Inbox() for _ in range(3)]
    inboxes = Inboxes(parts)
    each = 3000
    got: list[str] = []

    def consume() -> None:
        while len(got) < each * len(parts):
            shown = inboxes.peek()
            assert shown is not None
            if inboxes.remove(shown):
                got.append(shown.id)

    def fill(number: int) -> None:
        for count in range(each):
            parts[number].put([delivery(count, "abc"[number])])

    threads = [threading.Thread(target=consume), *(threading.Thread(target=fill, args=(n,)) for n in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(got)) == each * len(parts)


def test_an_outcome_goes_to_the_committer_of_its_queue() -> None:
    class Written:
        def __init__(self) -> None:
            self.ids: list[str] = []

        def put(self, verdict: Released) -> None:
            self.ids.append(verdict.delivery.id)

    one, other = Written(), Written()
    committers = Committers(cast(Any, {"a": one, "b": other}))
    for number in range(3):
        committers.put(Released(delivery(number, "ab"[number % 2])))
    assert (one.ids, other.ids, committers.left) == (["a0", "a2"], ["b1"], False)


def test_lanes_share_what_a_child_holds() -> None:
    lanes = [Prefetch(100, 1, 3) for _ in range(3)]
    for done in range(1000, 20_000, 1000):
        shares = [lane.update(done, done * 1e-6) for lane in lanes]
    assert MOST_AHEAD <= sum(shares) <= MOST_AHEAD + 2
    for lane in lanes:
        lane.saw(1000, 1000 * BYTES_AHEAD // 30)
    assert [lane.update(20_000, 0.02) for lane in lanes] == [10, 10, 10]


def test_long_tasks_are_not_held_ahead_by_any_lane() -> None:
    lane = Prefetch(100, 1, 3)
    assert lane.update(10, 20.0) == 0


def test_acts_are_done_side_by_side() -> None:
    """Each waits for the others: one after the other they would wait for ever."""
    meeting = threading.Barrier(3)
    assert sorted(side_by_side([lambda: meeting.wait(30)] * 3)) == [0, 1, 2]
