"""retire.lua: what a worker held that left or died is handed on, and only what ran is a suspect."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.calls.outcome import Buried, Released, Retried
from rsq.calls.placement import Placement
from tests.broker.conftest import FAR, HOUR_MS, ODD_IDS, WAKE, Rig, adopt, completed, entry, ids


def test_an_orderly_end_leaves_nothing(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    rig.add("u", priority=3)
    rig.commit("alice", *map(completed, rig.get("alice")))
    assert rig.retire("alice", how="") == 0
    snapshot = rig.snapshot()
    assert snapshot.pop("stats") == {"succeeded": "3"}
    assert snapshot == {"consumers": {"bob": FAR}} | dict.fromkeys(("result:a", "result:b", "result:u"), "done")


def test_only_what_ran_is_a_suspect(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("ran", "waited", "waited-too")
    ran, *_ = rig.get("alice")
    assert rig.retire("alice", ran) == 1
    assert rig.snapshot() == {
        "consumers": {"bob": FAR},
        "orphans": {"released"},
        "stream": [entry("ran"), entry("waited"), entry("waited-too"), WAKE],
        "stream pending": {"ran": ("released", 1), "waited": ("released", 0), "waited-too": ("released", 0)},
        "stream strays": {"released"},
        "crashes": {"ran": "1 signal SIGKILL"},
        "stats": {"crashed": "1"},
    }
    got = {d.id: (d.crashes, d.crash_how, d.deliveries) for d in rig.get("bob")}
    assert got == {"ran": (1, "signal SIGKILL", 2), "waited": (0, "", 1), "waited-too": (0, "", 1)}
    assert "stream strays" not in rig.snapshot()


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_crashes_add_up_over_consumers(rig: Rig, task_id: str) -> None:
    rig.add(task_id, priority=8)
    for number, consumer in enumerate(("alice", "bob", "carol", "dave")):
        rig.hire(consumer)
        (delivery,) = rig.get(consumer)
        assert delivery.crashes == number
        assert rig.retire(consumer, delivery, how=f"exit {number}") == 1
    assert rig.snapshot()["crashes"] == {task_id: "4 exit 3"}
    assert rig.snapshot()["stats"] == {"crashed": "4"}


def test_twice_counts_once(rig: Rig) -> None:
    """The first reply was lost; nobody, or somebody, has fetched in between."""
    rig.hire("alice", "bob")
    rig.add("ran", "waited")
    ran, _ = rig.get("alice")
    assert rig.retire("alice", ran) == 1
    before = rig.dumps()
    assert rig.retire("alice", ran) == 0
    assert rig.dumps() == before
    rig.get("bob")
    before = rig.dumps()
    assert rig.retire("alice", ran) == 0
    assert rig.dumps() == before
    snapshot = rig.snapshot()
    assert snapshot["crashes"] == {"ran": "1 signal SIGKILL"}
    assert snapshot["stats"] == {"crashed": "1"}


def test_after_the_lease_ran_out_it_still_knows_what_ran(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.lapse("alice")
    assert ids(rig.get("bob", room=1)) == ["a"]
    assert rig.retire("alice", a, b) == 1  # a has a new owner by now
    assert rig.snapshot()["crashes"] == {"b": "1 signal SIGKILL"}
    (again,) = rig.get("bob")
    assert (again.id, again.crashes) == ("b", 1)


def test_what_ended_before_the_crash_is_no_suspect(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("done", "released")
    done, released = rig.get("alice")
    rig.commit("alice", completed(done), Released(released))
    assert rig.retire("alice", done, released) == 0
    snapshot = rig.snapshot()
    assert "crashes" not in snapshot
    assert snapshot["stats"] == {"succeeded": "1"}
    assert [(d.id, d.crashes, d.deliveries) for d in rig.get("bob")] == [("released", 0, 1)]


def test_what_was_taken_early_is_lost_and_its_caller_hears_of_it(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, _ = rig.get("alice")
    rig.take("alice", a)
    rig.redis.hset(rig.keys.crashes, "a", "1 signal SIGKILL")  # of a release that acknowledged it late
    rig.link.run_one(rig.queue.revoke_call(["a"], True))
    with rig.pushes("a") as pushed:
        assert rig.retire("alice", a) == 1
        assert rig.retire("alice", a) == 0
    assert pushed == [("a", b"lost")]
    snapshot = rig.snapshot()
    assert snapshot["result:a"] == "lost"
    assert snapshot["stats"] == {"lost": "1"}
    assert snapshot["stream"] == [entry("b"), WAKE]
    assert not {"taken:alice", "crashes", "revoked"} & snapshot.keys()
    assert 0 < rig.ttl_ms("result:a") <= HOUR_MS
    assert [(d.id, d.crashes) for d in rig.get("bob")] == [("b", 0)]


def test_what_was_taken_and_ended_is_not_lost(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.take("alice", a)
    rig.commit("alice", completed(a))
    assert rig.retire("alice", a) == 0
    assert rig.snapshot() == {"consumers": {"bob": FAR}, "result:a": "done", "stats": {"succeeded": "1"}}


def test_what_was_merely_fetched_is_delivered_as_often_as_before_however_many_neighbours_crash(rig: Rig) -> None:
    rig.hire("heir")
    rig.add("good", "urgent good", priority=2)
    for number in range(20):
        rig.hire(f"w{number}")
        rig.add("bad", priority=3)
        bad, good, urgent = rig.get(f"w{number}")
        assert (good.deliveries, urgent.deliveries) == (1, 1)
        rig.retire(f"w{number}", bad)
        (bad,) = rig.get("heir", room=1)
        rig.commit("heir", Buried(bad, "crashes", {}, b"", 0))


def test_what_ran_when_nobody_could_tell_how_it_ended_counts_as_delivered(rig: Rig) -> None:
    """Its supervisor is gone, perhaps by this body's own hand."""
    rig.add("ran", "waited")
    for number in range(3):
        rig.hire(f"w{number}")
        ran, waited = rig.get(f"w{number}")
        assert (ran.id, ran.deliveries, ran.crashes) == ("ran", number + 1, 0)
        assert (waited.id, waited.deliveries) == ("waited", 1)
        assert rig.retire(f"w{number}", ran, how="") == 0
    assert "crashes" not in rig.snapshot()


def test_several_that_ran(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b", "c")
    rig.add("u", priority=1)
    u, a, b, _ = rig.get("alice")
    rig.take("alice", b)
    assert rig.retire("alice", u, a, b) == 3
    assert rig.snapshot()["stats"] == {"crashed": "2", "lost": "1"}
    assert sorted((d.id, d.crashes) for d in rig.get("bob")) == [("a", 1), ("c", 0), ("u", 1)]


def test_one_that_nobody_knows(rig: Rig) -> None:
    rig.hire("alice")
    before = rig.dumps()
    assert rig.retire("nobody") == 0
    assert rig.dumps() == before


def test_one_worker_is_woken_once(rig: Rig) -> None:
    rig.hire("alice", "bob", "carol")
    rig.add("a", "b")
    rig.get("alice", room=1)
    rig.get("bob")
    rig.retire("alice")
    rig.retire("bob")
    assert rig.ready() == ["a", "b", "wake"]


def test_the_last_one_to_go_leaves_no_wake_entry(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    deliveries = rig.get("alice")
    rig.commit("alice", *map(Released, deliveries))
    assert rig.ready() == ["a", "wake"]
    rig.retire("alice")
    assert rig.snapshot() == {
        "orphans": {"released"},
        "stream": [entry("a")],
        "stream pending": {"a": ("released", 0)},
        "stream strays": {"released"},
    }


def test_a_wake_entry_in_its_hands_goes_with_the_rest(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.enqueue("a", Placement(delay_ms=900))
    assert len(rig.fetch("alice").wakes) == 1
    rig.retire("alice")
    assert rig.get("bob") == []
    snapshot = rig.snapshot()
    assert "stream pending" not in snapshot
    assert "orphans" not in snapshot


def test_what_was_deleted_by_hand_is_no_suspect(rig: Rig) -> None:
    """Nobody would ever forget its mark."""
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.redis.xdel(rig.keys.stream(), a.entry_id)
    assert rig.retire("alice", a, b) == 1
    assert rig.snapshot()["crashes"] == {"b": "1 signal SIGKILL"}
    assert ids(rig.get("bob")) == ["b"]
    snapshot = rig.snapshot()
    assert snapshot["stream pending"] == {"b": ("bob", 2)}
    assert "orphans" not in snapshot
    assert "stream strays" not in snapshot


def test_after_a_flush(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.redis.flushall()
    assert rig.retire("alice", a) == 0
    assert rig.dumps() == {}


def test_a_group_that_was_destroyed(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.redis.xgroup_destroy(rig.keys.stream(), keys.GROUP)
    assert rig.retire("alice", a) == 0
    assert rig.snapshot() == {"consumers": {"bob": FAR}, "stream": [entry("a")]}
    assert ids(rig.get("bob")) == ["a"]


def test_thousands_at_once(rig: Rig) -> None:
    rig.hire("alice", "bob")
    names = [f"a{number}" for number in range(2000)]
    rig.add(*names)
    deliveries = rig.get("alice", room=2000)
    assert rig.retire("alice", *deliveries) == 2000
    got = rig.get("bob", room=1000) + rig.get("bob", room=1000)
    assert ids(got) == names
    assert {delivery.crashes for delivery in got} == {1}
    rig.commit("bob", *map(completed, got))
    assert rig.redis.exists(rig.keys.crashes, rig.keys.orphans) == 0


def test_nobody_is_left_when_all_is_handed_on(rig: Rig) -> None:
    for priority in (0, 1, 9):
        rig.add(*(f"{priority}{letter}" for letter in "abcdef"), priority=priority)
    names = [f"w{number}" for number in range(9)]
    rig.hire(*names)
    for place, name in enumerate(names):
        held = rig.get(name, room=2)
        if place % 3 == 0:
            rig.retire(name, held[0])
        elif place % 3 == 1:
            rig.commit(name, Released(held[0]), completed(held[1]))
            rig.retire(name, how="")
        else:
            rig.lapse(name)
    rig.hire("last")
    while batch := rig.get("last", room=3):
        rig.commit("last", *map(completed, batch))
    rig.retire("last", how="")
    snapshot = rig.snapshot()
    assert {name for name in snapshot if not name.startswith("result:")} == {"stats"}
    assert snapshot["stats"]["succeeded"] == "18"


# -- killed for a time limit


def test_what_was_killed_for_its_limit_is_marked_as_that_and_its_neighbours_not_at_all(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("late", "waited")
    late, _ = rig.get("alice")
    assert rig.retire("alice", how="", overdue=[late]) == 1
    snapshot = rig.snapshot()
    assert snapshot["overdue"] == {"late": "2.5"}
    assert "crashes" not in snapshot
    assert snapshot["stats"] == {"overdue": "1"}
    got = {d.id: (d.overdue_s, d.crashes, d.deliveries) for d in rig.get("bob")}
    assert got == {"late": (2.5, 0, 2), "waited": (0.0, 0, 1)}


def test_a_mark_of_a_limit_counts_once_and_spares_the_crashes(rig: Rig) -> None:
    rig.add("a")
    rig.hire("alice")
    assert rig.retire("alice", *rig.get("alice")) == 1
    rig.hire("bob", "carol")
    (late,) = rig.get("bob")
    assert rig.retire("bob", how="", overdue=[late]) == 1
    before = rig.dumps()
    assert rig.retire("bob", how="", overdue=[late]) == 0
    assert rig.dumps() == before
    (again,) = rig.get("carol")
    assert (again.overdue_s, again.crashes) == (2.5, 1)
    assert rig.retire("bob", how="", overdue=[late]) == 0
    assert rig.snapshot()["overdue"] == {"a": "2.5"}


@pytest.mark.parametrize("how", ["completed", "retried", "buried", "purged"])
def test_the_mark_ends_with_the_attempt(rig: Rig, how: str) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    assert rig.retire("alice", how="", overdue=rig.get("alice")) == 1
    (a,) = rig.get("bob")
    match how:
        case "completed":
            rig.commit("bob", completed(a))
        case "retried":
            rig.commit("bob", Retried(a, "retried", {"attempt": 2}, 0, "late"))
        case "buried":
            rig.commit("bob", Buried(a, "time-limit", {}, b"", 0))
        case "purged":
            rig.commit("bob", Released(a))
            assert rig.run(scripts.PURGE, 100) == [1, 0]
    assert "overdue" not in rig.snapshot()
    if how == "retried":
        (again,) = rig.get("bob")
        assert (again.attempt, again.overdue_s) == (2, 0.0)


def test_the_mark_outlives_a_worker_that_did_not_come_to_settle_it(rig: Rig) -> None:
    rig.hire("alice", "bob", "carol")
    rig.add("a")
    assert rig.retire("alice", how="", overdue=rig.get("alice")) == 1
    (a,) = rig.get("bob")
    rig.commit("bob", Released(a))
    (a,) = rig.get("carol")
    assert a.overdue_s == 2.5


def test_the_mark_is_seen_where_the_reply_of_the_fetch_was_lost(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, b = rig.get("alice")
    assert rig.retire("alice", b, how="exit 1", overdue=[a]) == 2
    rig.get("bob")
    deliveries, _ = adopt(rig.link, rig.queue, "bob", set(), [0])
    assert [(d.id, d.overdue_s, d.crashes, d.deliveries > 1) for d in deliveries] == [
        ("a", 2.5, 0, True),
        ("b", 0.0, 1, True),
    ]


def test_what_was_taken_early_and_killed_for_its_limit_is_over(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.take("alice", a)
    with rig.pushes("a") as pushed:
        assert rig.retire("alice", how="", overdue=[a]) == 1
        assert rig.retire("alice", how="", overdue=[a]) == 0
    assert pushed == [("a", b"overdue")]
    snapshot = rig.snapshot()
    assert snapshot["stats"] == {"lost": "1"}
    assert "overdue" not in snapshot
    assert rig.get("bob") == []
