"""retry.lua: another attempt later, in the same step in which the failed one ends."""

from __future__ import annotations

import pytest

from rsq.broker import scripts
from rsq.calls.message import Delivery, pack_meta
from rsq.calls.outcome import Retried
from rsq.calls.placement import Placement
from tests.broker.conftest import FAR, HOUR_MS, MIB, ODD_IDS, Rig, entry, ids, text

SECOND = text(pack_meta({"attempt": 2}))


def again(delivery: Delivery, delay_ms: int = HOUR_MS, counter: str = "retried") -> Retried:
    return Retried(delivery, counter, {**delivery.meta, "attempt": delivery.attempt + 1}, delay_ms, "why")


def test_the_next_attempt_waits_for_its_time(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c", priority=4)
    a, b, _ = rig.get("alice")
    with rig.span() as span:
        assert rig.commit("alice", again(a), again(b, 2 * HOUR_MS)) == [2]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "stream:4": [entry("c")],
        "stream:4 pending": {"c": ("alice", 1)},
        "delayed": {"a": span.plus(HOUR_MS), "b": span.plus(2 * HOUR_MS)},
        "messages": {"a": ["4", "tests.task", "body", SECOND], "b": ["4", "tests.task", "body", SECOND]},
        "stats": {"retried": "2"},
    }


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_it_comes_back_as_it_was(rig: Rig, task_id: str) -> None:
    rig.hire("alice")
    body = bytes(range(256)) * (MIB // 256)
    rig.add(task_id, priority=7, body=body)
    for attempt in (1, 2, 3):
        (delivery,) = rig.get("alice")
        assert (delivery.id, delivery.priority, delivery.attempt) == (task_id, 7, attempt)
        assert delivery.body == body
        assert delivery.deliveries == 1
        rig.commit("alice", again(delivery))
        rig.ripen(task_id)
    assert rig.snapshot()["stats"] == {"retried": "3"}


def test_without_a_wait_it_is_due_at_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *(again(delivery, delay_ms=0) for delivery in rig.get("alice")))
    (delivery,) = rig.get("alice")
    assert delivery.attempt == 2


def test_put_off_is_counted_apart(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    assert rig.commit("alice", again(a), Retried(b, "deferred", b.meta, HOUR_MS, "unknown task")) == [1, 1]
    snapshot = rig.snapshot()
    assert snapshot["stats"] == {"retried": "1", "deferred": "1"}
    assert snapshot["messages"]["b"] == ["0", "tests.task", "body", ""]


def test_what_is_due_soon_wakes_one_worker(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c", "d")
    a, b, c, d = rig.get("alice")
    rig.commit("alice", again(a, 5000))
    assert "wake" not in rig.ready()
    rig.commit("alice", again(b, 900), again(c, 800), again(d, 700))
    assert rig.ready() == ["wake"]


def test_wakes_do_not_pile_up_between_messages(rig: Rig) -> None:
    rig.hire("alice")
    names = [f"a{number}" for number in range(50)]
    rig.add(*names)
    for place, delivery in enumerate(rig.get("alice", room=50)):
        rig.commit("alice", again(delivery, 900 - place))
        rig.add(f"new{place}")
    assert rig.ready().count("wake") <= 1


@pytest.mark.parametrize("flushed", [False, True])
def test_fenced(rig: Rig, flushed: bool) -> None:
    rig.hire("alice")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.retire("alice")
    if flushed:
        rig.redis.flushall()
    before = rig.dumps()
    assert rig.commit("alice", again(a)) == [-1]
    assert rig.dumps() == before


@pytest.mark.parametrize("early", [False, True])
def test_twice_counts_once(rig: Rig, early: bool) -> None:
    rig.hire("alice")
    rig.add("a")
    (a,) = rig.get("alice")
    if early:
        rig.take("alice", a)
    assert rig.commit("alice", again(a)) == [1]
    before = rig.dumps()
    assert rig.commit("alice", again(a)) == [0]
    assert rig.dumps() == before
    assert rig.snapshot()["stats"] == {"retried": "1"}
    assert "taken:alice" not in rig.snapshot()


def test_a_late_repeat_leaves_the_next_attempt_alone(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (first,) = rig.get("alice")
    rig.commit("alice", again(first))
    rig.ripen("a")
    (second,) = rig.get("bob")
    before = rig.dumps()
    assert rig.commit("alice", again(first)) == [0]
    assert rig.dumps() == before
    assert rig.commit("bob", again(second)) == [1]


def test_crashes_go_with_it(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    rig.retire("alice", *rig.get("alice"))
    rig.commit("bob", *map(again, rig.get("bob")))
    snapshot = rig.snapshot()
    assert snapshot["crashes"] == {"a": "1 signal SIGKILL"}
    assert snapshot["stats"] == {"crashed": "1", "retried": "1"}


def test_an_empty_batch_is_nothing(rig: Rig) -> None:
    rig.hire("alice")
    before = rig.dumps()
    assert rig.run(scripts.RETRY, "alice", 0, 0, "retried", "") == 0
    assert rig.dumps() == before


def test_what_was_deleted_by_hand_is_not_revived(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.redis.xdel(rig.keys.stream(), a.entry_id)
    assert rig.commit("alice", again(a), again(b)) == [1]
    snapshot = rig.snapshot()
    assert snapshot["delayed"].keys() == {"b"}
    assert "stream pending" not in snapshot


def test_a_deleted_stream(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", priority=3)
    deliveries = rig.get("alice")
    rig.redis.delete(rig.keys.stream(3))
    assert rig.commit("alice", *map(again, deliveries)) == [0]
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_thousands_at_once(rig: Rig) -> None:
    rig.hire("alice")
    names = [f"a{number}" for number in range(3000)]
    rig.add(*names)
    deliveries = rig.get("alice", room=3000)
    assert rig.commit("alice", *map(again, deliveries)) == [3000]
    assert rig.redis.zcard(rig.keys.delayed) == rig.redis.hlen(rig.keys.messages) == 3000
    rig.ripen(*names)
    got: list[str] = []
    while batch := rig.get("alice", room=1000):
        got += ids(batch)
    assert got == names


def test_two_calls_under_one_id_become_one(rig: Rig) -> None:
    """An id names one call; whoever puts two into the stream by hand gets the later one's time."""
    rig.hire("alice")
    rig.add("a", "a")
    first, second = rig.get("alice")
    with rig.span() as span:
        assert rig.commit("alice", again(first), again(second, 2 * HOUR_MS)) == [2]
    assert rig.snapshot()["delayed"] == {"a": span.plus(2 * HOUR_MS)}
    assert rig.enqueue("a", Placement(unique=True), since_ms=10) == ("accepted", "a")
