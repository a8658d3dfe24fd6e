"""release.lua: what was fetched and not begun goes back, at once and without a mark."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.calls.message import Delivery
from rsq.calls.outcome import Released
from tests.broker.conftest import FAR, MIB, WAKE, Rig, completed, entry, ids


def release(rig: Rig, consumer: str, *deliveries: Delivery) -> list[int]:
    return rig.commit(consumer, *map(Released, deliveries))


def test_handed_back(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    a, b, _ = rig.get("alice")
    assert release(rig, "alice", a, b) == [2]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "orphans": {"released"},
        "stream": [entry("a"), entry("b"), entry("c"), WAKE],
        "stream pending": {"a": ("released", 0), "b": ("released", 0), "c": ("alice", 1)},
        "stream strays": {"released"},
    }


def test_the_next_one_gets_them_in_order_before_newer_ones(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b", "c")
    a, b, c = rig.get("alice")
    rig.add("d")
    release(rig, "alice", c, a, b)  # in whatever order they come back
    assert [(delivery.id, delivery.deliveries) for delivery in rig.get("bob")] == [
        ("a", 1),
        ("b", 1),
        ("c", 1),
        ("d", 1),
    ]
    snapshot = rig.snapshot()
    assert "orphans" not in snapshot
    assert "stream strays" not in snapshot


def test_deliveries_that_came_to_nothing_do_not_count(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    for _ in range(5):
        for consumer in ("alice", "bob"):
            (delivery,) = rig.get(consumer)
            assert delivery.deliveries == 1
            release(rig, consumer, delivery)
    (delivery,) = rig.get("alice")
    rig.lapse("alice")
    (delivery,) = rig.get("bob")
    assert delivery.deliveries == 2
    release(rig, "bob", delivery)
    (delivery,) = rig.get("bob")
    assert (delivery.deliveries, delivery.crashes) == (2, 0)


def test_priorities(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    rig.add("u", priority=9)
    assert release(rig, "alice", *rig.get("alice")) == [1, 2]
    assert ids(rig.get("bob", room=1)) == ["u"]
    assert ids(rig.get("bob")) == ["a", "b"]
    snapshot = rig.snapshot()
    assert "orphans" not in snapshot
    assert "stream strays" not in snapshot
    assert "stream:9 strays" not in snapshot


def test_one_worker_is_woken(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    release(rig, "alice", a)
    release(rig, "alice", b)
    assert rig.ready() == ["a", "b", "wake"]


def test_a_wake_entry_that_was_read_does_not_stand_for_the_next_one(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, b = rig.get("alice")
    release(rig, "alice", a)
    assert len(rig.fetch("bob").wakes) == 1
    release(rig, "alice", b)
    assert rig.ready() == ["a", "b", "wake", "wake"]


def test_fenced(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    deliveries = rig.get("alice")
    rig.retire("alice")
    before = rig.dumps()
    assert release(rig, "alice", *deliveries) == [-1]
    assert rig.dumps() == before
    rig.redis.flushall()
    assert release(rig, "alice", *deliveries) == [-1]
    assert rig.dumps() == {}


def test_what_was_read_after_the_lease_was_lost_is_for_others_at_once(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    rig.retire("alice")
    read, _, _ = rig.queue.read(rig.link, "alice", 1)
    assert ids(read) == ["a"]
    assert rig.snapshot()["stream strays"] == {"alice"}
    assert "orphans" not in rig.snapshot()
    assert release(rig, "alice", *read) == [-1]
    assert ids(rig.get("bob")) == ["a"]
    assert "stream strays" not in rig.snapshot()


def test_twice_is_once(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    deliveries = rig.get("alice")
    release(rig, "alice", *deliveries)
    before = rig.dumps()
    assert release(rig, "alice", *deliveries) == [0]
    assert rig.dumps() == before
    # Nor does a late repeat take it from its new owner.
    rig.get("bob")
    before = rig.dumps()
    assert release(rig, "alice", *deliveries) == [0]
    assert rig.dumps() == before


def test_what_is_not_ones_own_is_left_alone(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    rig.get("alice", room=1)
    deliveries = rig.get("bob")
    rig.commit("bob", *map(completed, deliveries))
    before = rig.dumps()
    rig.run(scripts.RELEASE, "bob", 0, "1-1", *(delivery.entry_id for delivery in deliveries))
    rig.run(scripts.RELEASE, "bob", 0)
    assert rig.dumps() == before


def test_what_was_deleted_by_hand(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.redis.xdel(rig.keys.stream(), a.entry_id)
    release(rig, "alice", a, b)
    assert ids(rig.get("bob")) == ["b"]
    assert rig.get("bob") == []
    snapshot = rig.snapshot()
    assert snapshot["stream pending"] == {"b": ("bob", 1)}
    assert "orphans" not in snapshot
    assert "stream strays" not in snapshot


@pytest.mark.parametrize("priority", [0, 6])
def test_a_deleted_stream_or_group_stops_nobody(rig: Rig, priority: int) -> None:
    """A commit that fails is repeated until it passes: this one must."""
    rig.hire("alice")
    rig.add("a", priority=priority)
    deliveries = rig.get("alice")
    rig.redis.xgroup_destroy(rig.keys.stream(priority), keys.GROUP)
    assert release(rig, "alice", *deliveries) == [0]
    assert ids(rig.get("alice")) == ["a"]
    rig.redis.delete(rig.keys.stream(priority))
    assert release(rig, "alice", *deliveries) == [0]
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_thousands_at_once(rig: Rig) -> None:
    rig.hire("alice", "bob")
    names = [f"a{number}" for number in range(3000)]
    rig.add(*names)
    assert release(rig, "alice", *rig.get("alice", room=3000)) == [3000]
    got: list[str] = []
    while batch := rig.get("bob", room=700):
        got += ids(batch)
    assert got == names


def test_large_bodies(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b", body=bytes(MIB))
    release(rig, "alice", *rig.get("alice"))
    assert [len(delivery.body) for _ in range(2) for delivery in rig.get("bob")] == [MIB, MIB]
