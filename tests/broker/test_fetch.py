"""fetch.lua: what a worker gets, from where, in which order, and what is put right on the way."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.broker.reads import BlockingRead
from rsq.calls.outcome import Released, Retried
from rsq.calls.placement import Placement
from rsq.errors import LeaseLost
from tests.broker.conftest import FAR, HOUR_MS, MIB, ODD_IDS, Rig, adopt, completed, entry, ids
from tests.helpers import wait_until


def drained(rig: Rig, consumer: str, room: int) -> list[str]:
    """Fetch until there is nothing more."""
    got: list[str] = []
    while batch := ids(rig.get(consumer, room)):
        assert len(batch) <= room
        got += batch
    return got


# -- ready -> running


def test_what_is_ready_is_delivered(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    with rig.span() as span:
        fetched = rig.fetch("alice", room=2)
    assert fetched.now_ms == span.plus(0)
    assert (fetched.next_due_ms, fetched.paused, fetched.priorities, fetched.wakes) == (None, False, [0], [])
    assert [(d.id, d.task, d.body, d.deliveries, d.crashes) for d in fetched.deliveries] == [
        ("a", "tests.task", b"body", 1, 0),
        ("b", "tests.task", b"body", 1, 0),
    ]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "stream": [entry("a"), entry("b"), entry("c")],
        "stream pending": {"a": ("alice", 1), "b": ("alice", 1)},
    }


def test_twice_never_delivers_twice(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    assert ids(rig.get("alice")) == ["a"]
    before = rig.snapshot()
    assert ids(rig.get("alice")) == []
    assert ids(rig.get("bob")) == []
    assert rig.snapshot() == before


def test_a_lost_reply_is_found_in_the_own_pending_list(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    lost = rig.fetch("alice", room=1).deliveries
    known = {delivery.entry_id for delivery in rig.get("alice")}
    deliveries, wakes = adopt(rig.link, rig.queue, "alice", known, [0])
    assert [delivery.entry_id for delivery in deliveries] == [delivery.entry_id for delivery in lost]
    assert wakes == []


def test_no_room_takes_nothing(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    assert ids(rig.get("bob", room=1)) == ["a"]
    rig.retire("bob")
    before = rig.snapshot()
    assert rig.get("alice", room=0) == []
    assert rig.snapshot() == before


def test_urgent_ones_come_first(rig: Rig) -> None:
    rig.hire("alice")
    for priority in (0, 9, 5, 1):
        rig.add(f"{priority}a", f"{priority}b", priority=priority)
    fetched = rig.fetch("alice", room=5)
    assert fetched.priorities == [9, 5, 1, 0]
    assert ids(fetched.deliveries) == ["9a", "9b", "5a", "5b", "1a"]
    assert [delivery.priority for delivery in fetched.deliveries] == [9, 9, 5, 5, 1]
    assert drained(rig, "alice", 2) == ["1b", "0a", "0b"]


@pytest.mark.parametrize("room", [700, 5000])
def test_many_at_once(rig: Rig, room: int) -> None:
    rig.hire("alice")
    names = [f"a{number}" for number in range(3000)]
    rig.add(*names)
    assert drained(rig, "alice", room) == names


def test_large_bodies(rig: Rig) -> None:
    rig.hire("alice", "bob")
    names = [f"a{number}" for number in range(20)]
    rig.add(*names, body=bytes(MIB))
    assert drained(rig, "alice", 20) == names
    rig.retire("alice")
    assert drained(rig, "bob", 20) == names


def test_what_cannot_be_read_is_delivered_as_such(rig: Rig) -> None:
    rig.hire("alice", "bob")
    for fields in ({b"\xff": b"\x00"}, {"id": "a"}, {"id": "\xe4", "task": "t", "body": "", "meta": ""}):
        rig.redis.xadd(rig.keys.stream(), fields)
    rig.redis.xadd(rig.keys.stream(), {"id": "a", "task": "t", "body": "", "meta": "\xc1"})
    for consumer in ("alice", "bob"):
        deliveries = rig.get(consumer)
        assert len(deliveries) == 4
        assert all(delivery.problem for delivery in deliveries)
        rig.retire(consumer)


# -- the fence


def test_fenced(rig: Rig) -> None:
    rig.add("a")
    rig.enqueue("late", Placement(delay_ms=HOUR_MS))
    rig.ripen("late")
    before = rig.dumps()
    with pytest.raises(LeaseLost, match="alice"):
        rig.fetch("alice")
    assert rig.dumps() == before


def test_a_lease_that_ran_out_is_found_out_by_its_own_consumer(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.get("alice")
    rig.lapse("alice")
    for _ in range(2):
        with pytest.raises(LeaseLost):
            rig.fetch("alice")
        assert rig.snapshot() == {
            "orphans": {"alice"},
            "stream": [entry("a")],
            "stream pending": {"a": ("alice", 1)},
            "stream strays": {"alice"},
        }


# -- delayed -> ready


def test_what_is_due_is_ready(rig: Rig) -> None:
    rig.hire("alice")
    for name in ("hour", "second", "first"):
        rig.enqueue(name, Placement(delay_ms=HOUR_MS))
    rig.ripen("first", "second")
    fetched = rig.fetch("alice")
    assert ids(fetched.deliveries) == ["first", "second"]
    assert fetched.next_due_ms == int(rig.redis.zscore(rig.keys.delayed, "hour"))
    snapshot = rig.snapshot()
    assert snapshot["delayed"].keys() == snapshot["messages"].keys() == {"hour"}
    assert snapshot["stream"] == [entry("first"), entry("second")]


def test_by_its_own_time(rig: Rig) -> None:
    rig.hire("alice")
    with rig.span() as span:
        rig.enqueue("a", Placement(delay_ms=30))
    fetched = rig.fetch("alice")
    if not fetched.deliveries:
        assert fetched.next_due_ms == span.plus(30)
    assert ids(fetched.deliveries or wait_until(lambda: rig.get("alice"))) == ["a"]
    assert rig.redis.exists(rig.keys.delayed, rig.keys.messages) == 0


def test_due_ones_keep_their_priority_and_id(rig: Rig) -> None:
    rig.hire("alice")
    for priority, task_id in enumerate(ODD_IDS):
        rig.enqueue(task_id, Placement(delay_ms=HOUR_MS), priority=priority, body=bytes([priority]), attempt=2)
    rig.ripen(*ODD_IDS)
    deliveries = rig.get("alice", room=20)
    assert [(d.priority, d.id, d.body, d.attempt) for d in deliveries] == [
        (priority, task_id, bytes([priority]), 2) for priority, task_id in reversed([*enumerate(ODD_IDS)])
    ]


def test_due_ones_are_moved_in_bounded_steps(rig: Rig) -> None:
    rig.hire("alice")
    names = [f"a{number:03}" for number in range(450)]
    for name in names:
        rig.enqueue(name, Placement(delay_ms=HOUR_MS))
    rig.ripen(*names)
    fetched = rig.fetch("alice", room=1)
    assert fetched.next_due_ms is not None
    assert fetched.next_due_ms <= fetched.now_ms  # so the worker comes again at once
    assert 0 < rig.redis.zcard(rig.keys.delayed) < 450
    assert [*ids(fetched.deliveries), *drained(rig, "alice", 100)] == names
    assert rig.redis.exists(rig.keys.delayed, rig.keys.messages) == 0


def test_an_id_without_its_message_is_dropped(rig: Rig) -> None:
    rig.hire("alice")
    for name in ("a", "b", "c"):
        rig.enqueue(name, Placement(delay_ms=HOUR_MS))
    rig.ripen("a", "b", "c")
    rig.redis.hdel(rig.keys.messages, "b")
    assert ids(rig.get("alice")) == ["a", "c"]
    assert rig.redis.exists(rig.keys.delayed, rig.keys.messages) == 0


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x93\x01", b"\x90", b"\xc0", b"\x94\x00\xc0\xc0\xc0"])
def test_a_message_that_cannot_be_unpacked_stops_nobody(rig: Rig, packed: bytes) -> None:
    rig.hire("alice")
    for name in ("a", "b", "c"):
        rig.enqueue(name, Placement(delay_ms=HOUR_MS))
    rig.ripen("a", "b", "c")
    rig.redis.hset(rig.keys.messages, "b", packed)
    a, b, c = rig.get("alice")
    assert (a.id, c.id) == ("a", "c")
    assert b.problem
    assert rig.redis.exists(rig.keys.delayed, rig.keys.messages) == 0
    assert rig.get("alice") == []


def test_due_ones_of_a_new_stream_wake_others(rig: Rig) -> None:
    """They block on the streams that they know, and this call takes only what it has room for."""
    rig.hire("alice", "bob")
    for name in ("a", "b"):
        rig.enqueue(name, Placement(delay_ms=HOUR_MS), priority=4)
    rig.ripen("a", "b")
    assert ids(rig.get("alice", room=1)) == ["a"]
    assert rig.ready() == ["wake"]


# -- orphans


def test_a_lapsed_consumer_is_inherited(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b", "c")
    rig.add("u", priority=6)
    assert ids(rig.get("alice", room=3)) == ["u", "a", "b"]
    rig.lapse("alice")
    deliveries = rig.get("bob")
    assert [(d.id, d.priority, d.deliveries, d.crashes) for d in deliveries] == [
        ("u", 6, 2, 0),
        ("a", 0, 2, 0),
        ("b", 0, 2, 0),
        ("c", 0, 1, 0),
    ]
    assert rig.snapshot() == {
        "consumers": {"bob": FAR},
        "stream": [entry("a"), entry("b"), entry("c")],
        "stream pending": {"a": ("bob", 2), "b": ("bob", 2), "c": ("bob", 1)},
        "stream:6": [entry("u")],
        "stream:6 pending": {"u": ("bob", 2)},
    }


def test_more_lapsed_consumers_than_one_call_looks_at(rig: Rig) -> None:
    names = [f"old{number}" for number in range(40)]
    rig.hire("alice", *names)
    for name in names:
        rig.add(f"of-{name}")
        rig.get(name)
        rig.lapse(name)
    got = [task_id for _ in range(4) for task_id in ids(rig.get("alice", room=100))]
    assert sorted(got) == sorted(f"of-{name}" for name in names)
    snapshot = rig.snapshot()
    assert "stream strays" not in snapshot
    assert "orphans" not in snapshot
    assert snapshot["consumers"] == {"alice": FAR}


@pytest.mark.parametrize("room", [1, 3, 7])
def test_orphans_with_more_than_there_is_room_for(rig: Rig, room: int) -> None:
    owners = ("old", "older", "oldest")
    rig.hire("alice", *owners)
    for place, owner in enumerate(owners):
        names = [f"{owner}{number}" for number in range(10)]
        rig.add(*names, priority=place)
        assert ids(rig.get(owner, room=10)) == names
        # Some are gone in between, by hand: they neither count nor hold anything up.
        for delivery in rig.get(owner, room=0):
            rig.redis.xdel(rig.keys.stream(place), delivery.entry_id)
    for owner in owners:
        rig.lapse(owner)
    got: list[str] = []
    while batch := ids(rig.get("alice", room)):
        assert len(batch) <= room
        got += batch
        # A consumer goes when it holds nothing, and not before.
        left = {owner for owner in owners if any(f"{owner}{number}" not in got for number in range(10))}
        assert rig.snapshot().get("orphans", set()) == left
        for place, owner in enumerate(owners):
            assert rig.snapshot().get(f"{stream(place)} strays", set()) == left & {owner}
    assert sorted(got) == sorted(f"{owner}{number}" for owner in owners for number in range(10))
    assert [name for name in got if name.startswith("oldest")] == [f"oldest{number}" for number in range(10)]


def stream(priority: int) -> str:
    return f"stream:{priority}" if priority else "stream"


@pytest.mark.parametrize("room", [600, 5000])
def test_orphans_with_very_much(rig: Rig, room: int) -> None:
    rig.hire("old", "alice")
    names = [f"a{number}" for number in range(2500)]
    rig.add(*names)
    assert len(rig.get("old", room=2500)) == 2500
    rig.retire("old")
    assert drained(rig, "alice", room) == names
    assert "stream strays" not in rig.snapshot()


def test_what_was_handed_back_does_not_keep_urgent_ones_waiting(rig: Rig) -> None:
    rig.hire("alice", "old")
    names = [f"a{number}" for number in range(20)]
    rig.add(*names)
    rig.commit("alice", *map(Released, rig.get("alice", room=20)))
    rig.add("u", priority=9)
    assert ids(rig.get("old", room=1)) == ["u"]
    rig.lapse("old")
    rig.add("late", priority=9)
    rig.add("less-urgent", priority=8)
    rig.add("newer")
    expected = ["u", "late", "less-urgent", *names, "newer"]
    looks = range(len(expected) + 3)  # a few find an entry that only wakes
    assert [task_id for _ in looks for task_id in ids(rig.get("alice", room=1))] == expected


def test_what_comes_together_comes_in_the_order_of_its_urgency(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    rig.commit("alice", *map(Released, rig.get("alice")))
    rig.add("u", priority=9)
    rig.add("c")
    assert ids(rig.get("alice")) == ["u", "a", "b", "c"]


def test_a_host_with_hundreds_of_children_is_inherited_by_one_that_wakes_itself(rig: Rig) -> None:
    """As long as there is more than one look shows, another one is asked for at once."""
    names = [f"old{number}" for number in range(250)]
    rig.hire("alice", *names)
    for name in names:
        rig.add(name)
        assert ids(rig.get(name, room=1)) == [name]
    for name in names:
        rig.lapse(name)
    got: list[str] = []
    looks = 0
    while looks == 0 or rig.ready()[-1:] == ["wake"]:
        got += ids(rig.get("alice", room=1000))
        looks += 1
        assert looks < 100
    assert sorted(got) == sorted(names)
    assert "orphans" not in rig.snapshot()


def test_what_one_worker_cannot_take_wakes_the_next(rig: Rig) -> None:
    rig.hire("old", "alice", "bob", "carol")
    rig.add("a", "b", "c")
    rig.get("old")
    rig.retire("old")
    for worker, got in (("alice", ["a"]), ("bob", ["b"]), ("carol", ["c"])):
        # As an idle worker does: the read it was blocked in brings the wake entry, and then it looks at the queue.
        ((_, deliveries, wakes),) = BlockingRead(worker, [(rig.queue, [0])])(rig.link, 1, 1000).got
        assert (deliveries, len(wakes)) == ([], 1)
        rig.link.run_one(rig.queue.drop_wakes_call(worker, wakes))
        assert ids(rig.get(worker, room=1)) == got
    assert rig.ready() == ["a", "b", "c"]


def test_entries_that_were_deleted_by_hand_leave_the_pending_list(rig: Rig) -> None:
    rig.hire("old", "alice")
    first, *_, last = rig.add("a", "b", "c", "d")
    rig.get("old")
    rig.lapse("old")
    rig.redis.xdel(rig.keys.stream(), first, last)
    assert ids(rig.get("alice", room=1)) + ids(rig.get("alice", room=9)) == ["b", "c"]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "stream": [entry("b"), entry("c")],
        "stream pending": {"b": ("alice", 2), "c": ("alice", 2)},
    }


def test_an_orphan_of_nothing_but_deleted_entries(rig: Rig) -> None:
    rig.hire("old", "alice")
    entry_ids = rig.add(*(f"a{number}" for number in range(600)))
    rig.get("old", room=600)
    rig.retire("old")
    rig.redis.xdel(rig.keys.stream(), *entry_ids)
    for _ in range(10):
        assert rig.get("alice", room=100) == []
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_crashes_reach_the_one_who_claims(rig: Rig) -> None:
    rig.hire("alice", "bob", "carol")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.retire("alice", a, how="signal SIGSEGV")
    a, b = sorted(rig.get("bob"), key=lambda delivery: delivery.id)
    assert [(d.crashes, d.crash_how, d.deliveries) for d in (a, b)] == [(1, "signal SIGSEGV", 2), (0, "", 1)]
    rig.retire("bob", a, b, how="exit 1")
    a, b = rig.get("carol")
    assert [(d.crashes, d.crash_how, d.deliveries) for d in (a, b)] == [(2, "exit 1", 3), (1, "exit 1", 2)]
    rig.commit("carol", completed(a), completed(b))


# -- a queue that is paused


def test_paused(rig: Rig) -> None:
    rig.hire("alice", "old")
    rig.add("held", "ready")
    rig.get("old", room=1)
    rig.retire("old")
    rig.enqueue("due", Placement(delay_ms=HOUR_MS))
    rig.ripen("due")
    rig.redis.set(rig.keys.paused, "1")
    fetched = rig.fetch("alice")
    assert (fetched.paused, fetched.deliveries) == (True, [])
    assert rig.ready() == ["held", "ready", "due"]
    assert rig.snapshot()["stream pending"] == {"held": ("released", 0)}
    rig.redis.delete(rig.keys.paused)
    fetched = rig.fetch("alice")
    assert (fetched.paused, ids(fetched.deliveries)) == (False, ["held", "ready", "due"])


def test_paused_is_no_way_around_the_fence(rig: Rig) -> None:
    rig.redis.set(rig.keys.paused, "1")
    with pytest.raises(LeaseLost):
        rig.fetch("alice")
    rig.redis.delete(rig.keys.paused)


# -- wake entries


def test_wake_entries_are_told_apart(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.enqueue("a", Placement(delay_ms=900))
    fetched = rig.fetch("alice")
    assert (fetched.deliveries, len(fetched.wakes)) == ([], 1)
    rig.retire("alice")
    claimed = rig.fetch("bob")
    assert claimed.deliveries == []
    assert fetched.wakes[0] in claimed.wakes
    rig.link.run_one(rig.queue.drop_wakes_call("bob", claimed.wakes))
    assert rig.ready() == []
    assert "ended" not in rig.snapshot()


# -- keys gone


@pytest.mark.parametrize("room", [0, 10])
@pytest.mark.parametrize("priority", [0, 4])
def test_a_group_that_was_destroyed_is_made_again_from_the_start(rig: Rig, room: int, priority: int) -> None:
    rig.hire("alice")
    rig.add("a", "b", priority=priority)
    rig.get("alice", room=1)
    rig.redis.xgroup_destroy(rig.keys.stream(priority), keys.GROUP)
    fetched = rig.fetch("alice", room=room)
    assert ids(fetched.deliveries) == ["a", "b"][:room]
    # The way back after a fault: the groups are there, and the own pending list can be read.
    deliveries, _ = adopt(rig.link, rig.queue, "alice", set(), fetched.priorities)
    assert ids(deliveries) == ids(fetched.deliveries)
    assert drained(rig, "alice", 5) == ["a", "b"][room:]


@pytest.mark.parametrize("room", [0, 10])
def test_a_stream_that_was_deleted(rig: Rig, room: int) -> None:
    rig.hire("alice", "old")
    rig.add("a")
    rig.get("old")
    rig.retire("old")
    rig.redis.delete(rig.keys.stream())
    fetched = rig.fetch("alice", room=room)
    assert fetched.deliveries == []
    assert adopt(rig.link, rig.queue, "alice", set(), fetched.priorities) == ([], [])
    assert "orphans" not in rig.snapshot()
    rig.add("b")
    assert ids(rig.get("alice")) == ["b"]


def test_a_flush_fences_and_a_new_name_goes_on(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", priority=3)
    rig.get("alice")
    rig.redis.flushall()
    rig.add("b", priority=3)
    before = rig.dumps()
    with pytest.raises(LeaseLost):
        rig.fetch("alice")
    assert rig.dumps() == before
    rig.hire("alice2")
    assert ids(rig.get("alice2")) == ["b"]


def test_retried_calls_keep_their_crashes(rig: Rig) -> None:
    rig.hire("alice", "bob", "carol")
    rig.add("a")
    rig.retire("alice", *rig.get("alice"))
    (delivery,) = rig.get("bob")
    rig.commit("bob", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, ""))
    rig.ripen("a")
    (delivery,) = rig.get("bob")
    rig.retire("bob", delivery)
    (delivery,) = rig.get("carol")
    assert (delivery.crashes, delivery.attempt) == (2, 2)
    rig.commit("carol", completed(delivery))
    assert "crashes" not in rig.snapshot()
