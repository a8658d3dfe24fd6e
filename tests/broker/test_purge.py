"""purge.lua: what waits is dropped, what runs is left alone."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.broker import queue_control, scripts
from rsq.calls.outcome import Buried, Released, Retried
from rsq.calls.placement import Placement
from tests.broker.conftest import FAR, HOUR_MS, MIB, ODD_IDS, Rig, completed, entry


def purge(rig: Rig, count: int = 1000) -> int:
    return int(rig.run(scripts.PURGE, count)[0])


def test_all_that_waits_goes(rig: Rig) -> None:
    rig.hire("alice", "old")
    rig.add("running", "orphaned", "released", "ready")
    (running,) = rig.get("alice", room=1)
    rig.get("old", room=1)
    (released,) = rig.get("alice", room=1)
    rig.commit("alice", Released(released))
    rig.retire("old")
    rig.enqueue("urgent", priority=9)
    rig.enqueue("later", Placement(delay_ms=HOUR_MS))
    assert purge(rig) == 5
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "orphans": {"released"},
        "stream": [entry("running")],
        "stream pending": {"running": ("alice", 1)},
        "stream strays": {"released"},
        "stats": {"purged": "5"},
    }
    assert rig.commit("alice", completed(running)) == [1]
    assert rig.get("alice") == []
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "result:running": "done",
        "stats": {"succeeded": "1", "purged": "5"},
    }


def test_twice_finds_nothing_more(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    rig.get("alice", room=1)
    assert purge(rig) == 1
    before = rig.dumps()
    assert purge(rig) == 0
    assert rig.dumps() == before


def test_without_workers(rig: Rig) -> None:
    rig.add("a", "b")
    rig.add("u", priority=5)
    assert purge(rig) == 3
    assert rig.snapshot() == {"stats": {"purged": "3"}}


def test_an_empty_queue(rig: Rig) -> None:
    assert purge(rig) == 0
    assert rig.dumps() == {}


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_bounded_steps(rig: Rig, count: int) -> None:
    rig.hire("alice", "old")
    rig.add(*(f"o{number}" for number in range(10)))
    rig.get("old")
    rig.retire("old")
    rig.add(*(f"a{number}" for number in range(10)))
    rig.add(*(f"u{number}" for number in range(10)), priority=2)
    for number in range(10):
        rig.enqueue(f"d{number}", Placement(delay_ms=HOUR_MS))
    steps = [purge(rig, count)]
    while steps[-1] == count:
        steps.append(purge(rig, count))
    assert sum(steps) == 40
    assert rig.snapshot().keys() == {"consumers", "orphans", "stream strays", "stats"}
    rig.get("alice")
    assert rig.snapshot() == {"consumers": {"alice": FAR}, "stats": {"purged": "40"}}


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_the_crashes_of_what_goes_are_forgotten(rig: Rig, task_id: str) -> None:
    rig.hire("alice", "bob")
    rig.add(*(f"{task_id[:99]}{number}" for number in (1, 2, 3)))
    first, second, third = rig.get("alice")
    rig.retire("alice", first, second, third)
    for delivery in rig.get("bob"):
        if delivery.id == first.id:
            rig.commit("bob", Retried(delivery, "retried", {}, HOUR_MS, ""))  # delayed
        elif delivery.id == second.id:
            rig.commit("bob", Retried(delivery, "retried", {}, HOUR_MS, ""))
            rig.ripen(second.id)
            rig.fetch("bob", room=0)  # ready
        else:
            rig.retire("bob", delivery)  # handed on
    assert len(rig.snapshot()["crashes"]) == 3
    assert purge(rig) == 3
    assert "crashes" not in rig.snapshot()


def test_wake_entries_go_and_are_no_messages(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("a", Placement(delay_ms=900))
    rig.add("b", "c")
    assert rig.ready() == ["wake", "b", "c"]
    assert purge(rig, 2) == 2
    assert purge(rig, 2) == 1
    assert rig.snapshot() == {"consumers": {"alice": FAR}, "stats": {"purged": "3"}}


def test_what_people_look_at_stays(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("done", "dead")
    done, dead = rig.get("alice")
    rig.commit("alice", completed(done), Buried(dead, "failed", {}, b"failure", HOUR_MS))
    before = rig.dumps()
    assert queue_control.purge(rig.link, rig.queue) == 0
    assert rig.dumps() == before


def test_a_priority_that_no_worker_has_read_yet(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *map(Released, rig.get("alice")))
    rig.add("u", priority=3)  # its stream has no group
    assert purge(rig) == 2
    assert rig.ready() == rig.ready(3) == []


def test_a_group_that_was_destroyed(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.get("alice")
    rig.retire("alice")
    rig.redis.xgroup_destroy(rig.keys.stream(), keys.GROUP)
    assert purge(rig) == 1
    assert rig.ready() == []


def test_a_deleted_stream(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.get("alice")
    rig.retire("alice")
    rig.redis.delete(rig.keys.stream())
    assert purge(rig) == 0


def test_groups_of_others_do_not_count(rig: Rig) -> None:
    """Somebody looks into the stream with a group of his own: what runs runs all the same."""
    rig.hire("alice")
    rig.redis.xgroup_create(rig.keys.stream(), "aaa", "0")
    rig.redis.xgroup_create(rig.keys.stream(), "zzz", "0")
    rig.add("a", "b")
    deliveries = rig.get("alice", room=1)
    assert purge(rig) == 1
    assert rig.commit("alice", *map(completed, deliveries)) == [1]


def test_what_was_deleted_by_hand(rig: Rig) -> None:
    rig.hire("alice", "bob")
    entry_ids = rig.add(*(f"a{number}" for number in range(250)))
    rig.get("alice", room=250)
    rig.retire("alice")
    rig.redis.xdel(rig.keys.stream(), *entry_ids[1:])
    assert purge(rig) == 1
    assert "stream pending" not in rig.snapshot()


def test_thousands_and_large_bodies(rig: Rig) -> None:
    rig.add(*(f"a{number}" for number in range(2500)))
    rig.add("large", "larger", body=bytes(MIB))
    for number in range(1200):
        rig.enqueue(f"d{number}", Placement(delay_ms=HOUR_MS))
    assert queue_control.purge(rig.link, rig.queue) == 3702
    assert rig.snapshot() == {"stats": {"purged": "3702"}}
