"""enqueue.lua: into the queue once, now or later, and what a repeat after a lost reply finds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rsq.broker import scripts
from rsq.broker.worker_queue import Rules
from rsq.calls.message import pack_meta
from rsq.calls.outcome import Buried, Retried, revoked
from rsq.calls.placement import Placement
from tests.broker.conftest import HOUR_MS, MIB, ODD_IDS, WAKE, Rig, completed, entry, text
from tests.helpers import wait_until

KEYED = Placement(dedupe_key="k")
UNIQUE = Placement(unique=True)


def soon(delay_ms: int) -> Placement:
    return Placement(delay_ms=delay_ms)


# -- where it goes


def test_ready(rig: Rig) -> None:
    assert rig.enqueue("a", attempt=2) == ("accepted", "a")
    assert rig.snapshot() == {"stream": [entry("a", meta=text(pack_meta({"attempt": 2})))]}


def test_the_example_of_the_protocol(rig: Rig) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    lines = re.findall(r"^\$ redis-cli --eval enqueue.lua '\{rsq:0\}:default' , (.*)$", page, re.MULTILINE)
    arguments = [shlex.split(line) for line in lines]
    answers = [rig.redis.eval(scripts.ENQUEUE.source, 1, rig.keys.prefix, *each) for each in arguments]
    assert answers == [[b"accepted", b"shell-7"], [b"duplicate", b"shell-7"]]


def test_it_writes_what_the_hot_path_writes(rig: Rig) -> None:
    rig.enqueue("a")
    rig.add("b")
    first, second = rig.redis.xrange(rig.keys.stream())
    assert list(first[1]) == list(second[1]) == [b"id", b"task", b"body", b"meta"]


def test_delayed(rig: Rig) -> None:
    with rig.span() as span:
        rig.enqueue("a", soon(HOUR_MS), priority=3)
    assert rig.snapshot() == {
        "delayed": {"a": span.plus(HOUR_MS)},
        "messages": {"a": ["3", "tests.task", "body", ""]},
    }


def test_eta(rig: Rig) -> None:
    eta_ms = 4_000_000_000_123
    rig.enqueue("a", Placement(eta_ms=eta_ms))
    rig.enqueue("past", Placement(eta_ms=1))
    rig.enqueue("now", soon(0))
    assert rig.snapshot() == {
        "delayed": {"a": eta_ms},
        "messages": {"a": ["0", "tests.task", "body", ""]},
        "stream": [entry("past"), entry("now")],
    }


@pytest.mark.parametrize("priority", range(1, 10))
def test_priorities(rig: Rig, priority: int) -> None:
    rig.enqueue("a", priority=priority)
    assert rig.snapshot() == {f"stream:{priority}": [entry("a")]}


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_odd_ids(rig: Rig, task_id: str) -> None:
    placement = Placement(unique=True, dedupe_key=task_id)
    assert rig.enqueue(task_id, placement) == ("accepted", task_id)
    assert rig.enqueue(task_id, placement, since_ms=0) == ("accepted", task_id)
    assert rig.enqueue("other", Placement(dedupe_key=task_id)) == ("duplicate", task_id)
    assert rig.snapshot() == {
        "stream": [entry(task_id)],
        f"dedupe:id:{task_id}": task_id,
        f"dedupe:key:{task_id}": task_id,
    }


def test_large_bodies(rig: Rig) -> None:
    body = bytes(range(256)) * (MIB // 256)
    rig.enqueue("a", body=body)
    rig.enqueue("b", soon(HOUR_MS), body=body)
    rig.hire("alice")
    rig.ripen("b")
    assert [delivery.body == body for _ in range(2) for delivery in rig.get("alice")] == [True, True]


# -- waking


def test_a_new_stream_wakes_one_worker_and_an_old_one_nobody(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("a", priority=5)
    assert rig.ready() == ["wake"]
    rig.enqueue("b", priority=6)
    assert rig.ready() == ["wake"]
    rig.get("alice")
    rig.enqueue("c", priority=5)
    assert rig.ready() == []


def test_nobody_is_woken_where_nobody_works(rig: Rig) -> None:
    rig.enqueue("a", priority=5)
    rig.enqueue("b", soon(10))
    assert rig.ready() == []


def test_what_is_due_within_a_blocking_read_wakes_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("hour", soon(HOUR_MS))
    assert rig.ready() == []
    for delay_ms in (900, 800, 700):
        rig.enqueue(f"in {delay_ms}", soon(delay_ms))
    assert rig.ready() == ["wake"]


def test_what_is_due_after_the_head_wakes_nobody(rig: Rig) -> None:
    rig.enqueue("head", soon(500))
    rig.hire("alice")
    rig.enqueue("a", soon(900))
    assert rig.ready() == []


def test_a_wake_entry_that_was_read_does_not_stand_for_the_next_one(rig: Rig) -> None:
    """Its reader may have looked at the queue before what the new one is for."""
    rig.hire("alice", "bob")
    rig.enqueue("a", soon(900))
    assert len(rig.fetch("alice").wakes) == 1
    rig.enqueue("b", soon(800))
    assert rig.ready() == ["wake", "wake"]


# -- dedupe by key


def test_a_key_lets_one_call_in(rig: Rig) -> None:
    assert rig.enqueue("a", KEYED) == ("accepted", "a")
    before = rig.dumps()
    assert rig.enqueue("b", KEYED) == ("duplicate", "a")
    assert rig.enqueue("b", Placement(dedupe_key="k", delay_ms=5)) == ("duplicate", "a")
    assert rig.dumps() == before
    assert rig.snapshot() == {"stream": [entry("a")], "dedupe:key:k": "a"}


def test_keys_do_not_meet(rig: Rig) -> None:
    rig.enqueue("a", KEYED)
    assert rig.enqueue("b", Placement(dedupe_key="k2")) == ("accepted", "b")
    assert rig.enqueue("k", UNIQUE) == ("accepted", "k")


def test_a_key_expires(rig: Rig) -> None:
    rig.enqueue("a", Placement(dedupe_key="k", dedupe_ttl_ms=1))
    wait_until(lambda: not rig.redis.exists(rig.keys.dedupe("k")))
    assert rig.enqueue("b", Placement(dedupe_key="k", dedupe_ttl_ms=HOUR_MS)) == ("accepted", "b")
    assert HOUR_MS - 60_000 < rig.ttl_ms("dedupe:key:k") <= HOUR_MS


def test_a_key_outlives_its_call(rig: Rig) -> None:
    rig.enqueue("a", KEYED)
    rig.hire("alice")
    rig.commit("alice", completed(rig.get("alice")[0]))
    assert rig.enqueue("b", KEYED) == ("duplicate", "a")


def test_the_same_call_twice_is_a_duplicate_and_only_its_repeat_is_not(rig: Rig) -> None:
    rig.enqueue("a", KEYED)
    assert rig.enqueue("a", KEYED) == ("duplicate", "a")
    assert rig.enqueue("a", KEYED, since_ms=50) == ("accepted", "a")
    assert rig.ready() == ["a"]


# -- dedupe by id


def test_an_id_runs_once(rig: Rig) -> None:
    assert rig.enqueue("a", UNIQUE) == ("accepted", "a")
    before = rig.dumps()
    assert rig.enqueue("a", UNIQUE) == ("duplicate", "a")
    assert rig.dumps() == before
    assert rig.snapshot() == {"stream": [entry("a")], "dedupe:id:a": "a"}


def test_an_id_may_come_again_after_its_marker_and_gets_an_answer_of_its_own(rig: Rig) -> None:
    rig.enqueue("a", Placement(unique=True, dedupe_ttl_ms=1))
    rig.hire("alice")
    rig.commit("alice", completed(rig.get("alice")[0]))
    wait_until(lambda: rig.ttl_ms("dedupe:id:a") < 0)
    assert rig.enqueue("a", UNIQUE) == ("accepted", "a")
    assert not rig.redis.exists(rig.keys.result("a"))
    assert rig.ready() == ["a"]


# -- max_length


def test_the_bound_counts_all_that_is_not_settled(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("running", "ready", priority=0)
    rig.get("alice", room=1)
    rig.enqueue("urgent", priority=9)
    rig.enqueue("later", soon(HOUR_MS))
    bounded = Placement(max_length=5, unique=True, dedupe_key="k")
    assert rig.enqueue("last", bounded) == ("accepted", "last")
    before = rig.dumps()
    assert rig.enqueue("more", Placement(max_length=5, unique=True, dedupe_key="k2")) == ("full", 5)
    assert rig.enqueue("more", Placement(max_length=5, delay_ms=1000)) == ("full", 5)
    assert rig.dumps() == before  # no marker either: the same call may be tried again
    assert rig.enqueue("more", Placement(max_length=6)) == ("accepted", "more")


def test_room_for_one(rig: Rig) -> None:
    one = Placement(max_length=1)
    rig.hire("alice")
    assert rig.enqueue("a", one) == ("accepted", "a")
    assert rig.enqueue("b", one) == ("full", 1)
    rig.commit("alice", completed(rig.get("alice")[0]))
    assert rig.enqueue("b", one) == ("accepted", "b")


def test_a_wake_entry_is_no_message(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("a", soon(900))
    assert rig.snapshot()["stream"] == [WAKE]
    assert rig.enqueue("b", Placement(max_length=2)) == ("accepted", "b")
    assert rig.enqueue("c", Placement(max_length=2))[0] == "full"


def test_a_duplicate_is_told_so_even_by_a_full_queue(rig: Rig) -> None:
    rig.enqueue("a", KEYED)
    assert rig.enqueue("b", Placement(max_length=1, dedupe_key="k")) == ("duplicate", "a")


# -- a repeat after a lost reply

PLACES = [
    "ready",
    "urgent",
    "delayed",
    "running",
    "released",
    "orphaned",
    "taken",
    "taken and done",
    "taken and retried",
    "retried",
    "promoted",
    "done",
    "done without a result",
    "done with a short-lived result",
    "dead",
    "dead without a result",
]


def bring(rig: Rig, task_id: str, place: str) -> int:
    """A call that was sent as `task_id` and is now at `place`; gives its priority."""
    rig.hire("alice")
    if place == "delayed":
        rig.enqueue(task_id, soon(HOUR_MS))
        return 0
    priority = 7 if place == "urgent" else 0
    rig.enqueue(task_id, priority=priority)
    if place in ("ready", "urgent"):
        return priority
    (delivery,) = rig.get("alice")
    if place.startswith("taken"):
        assert rig.take("alice", delivery)
    match place:
        case "released":
            rig.run(scripts.RELEASE, "alice", 0, delivery.entry_id)
        case "orphaned":
            rig.retire("alice", delivery)
        case "retried" | "promoted" | "taken and retried":
            rig.commit("alice", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "why"))
            if place == "promoted":
                rig.ripen(task_id)
                rig.fetch("alice", room=0)
        case "done":
            rig.commit("alice", completed(delivery))
        case "done without a result" | "taken and done":
            rig.commit("alice", completed(delivery, result=b""))
        case "done with a short-lived result":
            rig.commit("alice", completed(delivery, ttl_ms=1))
            wait_until(lambda: not rig.redis.exists(rig.keys.result(task_id)))
        case "dead":
            rig.commit("alice", Buried(delivery, "failed", {}, b"error", HOUR_MS))
        case "dead without a result":
            rig.commit("alice", Buried(delivery, "failed", {}, b"", 0))
    return priority


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("task_id", ["a", *ODD_IDS[4:6]])
def test_a_repeat_finds_what_arrived(rig: Rig, place: str, task_id: str) -> None:
    priority = bring(rig, task_id, place)
    before = rig.dumps()
    assert rig.enqueue(task_id, priority=priority, since_ms=5000) == ("accepted", task_id)
    assert rig.enqueue(task_id, soon(5), priority=priority, since_ms=70000) == ("accepted", task_id)
    assert rig.dumps() == before
    # A plain first try has set no marker: the repeat sets it, so that a third one finds it.
    assert rig.enqueue(task_id, UNIQUE, priority=priority, since_ms=7000) == ("accepted", task_id)
    assert rig.enqueue(task_id, UNIQUE, priority=priority) == ("duplicate", task_id)
    assert rig.redis.delete(f"{rig.keys.prefix}:dedupe:id:{task_id}") == 1
    assert rig.dumps() == before
    rig.run(scripts.PURGE, 1000)  # else its crash mark would be all that is left


@pytest.mark.parametrize("place", PLACES)
def test_a_repeat_mistakes_no_other_call_for_its_own(rig: Rig, place: str) -> None:
    priority = bring(rig, "job-12", place)
    assert rig.enqueue("job-1", priority=priority, since_ms=200) == ("accepted", "job-1")
    assert rig.enqueue("ob-12", priority=priority, since_ms=200) == ("accepted", "ob-12")
    ready = rig.ready(priority)
    assert "job-1" in ready
    assert "ob-12" in ready
    rig.run(scripts.PURGE, 1000)


def test_a_repeat_that_never_arrived_goes_in_once(rig: Rig) -> None:
    placement = Placement(unique=True, dedupe_key="k", max_length=1)
    assert rig.enqueue("a", placement, since_ms=300) == ("accepted", "a")
    assert rig.enqueue("a", placement, since_ms=600) == ("accepted", "a")
    assert rig.snapshot() == {"stream": [entry("a")], "dedupe:id:a": "a", "dedupe:key:k": "a"}


def test_a_repeat_of_a_duplicate_is_one(rig: Rig) -> None:
    rig.enqueue("a", KEYED)
    assert rig.enqueue("b", KEYED, since_ms=100) == ("duplicate", "a")
    assert rig.ready() == ["a"]


def test_a_repeat_finds_its_first_try_among_thousands(rig: Rig) -> None:
    rig.add("a", *(f"x{number}" for number in range(2500)))
    assert rig.enqueue("a", since_ms=60_000) == ("accepted", "a")
    assert rig.enqueue("x2499", since_ms=60_000) == ("accepted", "x2499")
    assert rig.redis.xlen(rig.keys.stream()) == 2501


def test_a_repeat_behind_large_bodies(rig: Rig) -> None:
    rig.add(*(f"x{number}" for number in range(30)), body=bytes(MIB))
    assert rig.enqueue("x29", since_ms=60_000, body=bytes(MIB)) == ("accepted", "x29")
    assert rig.redis.xlen(rig.keys.stream()) == 30


def test_a_repeat_after_the_first_try_was_lost_goes_in(rig: Rig) -> None:
    (entry_id,) = rig.add("a")
    rig.redis.xdel(rig.keys.stream(), entry_id)
    assert rig.enqueue("a", since_ms=100) == ("accepted", "a")
    assert rig.ready() == ["a"]
    rig.redis.flushall()
    assert rig.enqueue("a", since_ms=200) == ("accepted", "a")
    assert rig.ready() == ["a"]


# -- what stands, and what only seems to


@pytest.mark.parametrize("until", ["done", "started"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_call_that_was_revoked_before_it_began_keeps_nobody_out(rig: Rig, until: str, replaces: bool) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until=until, replaces=replaces)
    rig.enqueue("a", rule)
    assert rig.link.run_one(rig.queue.revoke_call(["a"], False)) == [b"marked"]
    assert rig.enqueue("b", rule) == ("accepted", "b")
    a, b = rig.get("alice")
    assert (a.revoked, b.revoked) == (True, False)
    rig.commit("alice", revoked(a))
    assert rig.enqueue("c", rule)[0] != "accepted", "the key is that of b"
    rig.commit("alice", completed(b))


def test_a_call_that_runs_keeps_its_key_though_it_is_revoked(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until="done")
    rig.enqueue("a", rule)
    (a,) = rig.get("alice")
    rig.begin("alice", a, Rules())
    rig.link.run_one(rig.queue.revoke_call(["a"], True))
    assert rig.enqueue("b", rule) == ("duplicate", "a"), "they must not overlap"
    rig.commit("alice", revoked(a))
    assert rig.enqueue("b", rule) == ("accepted", "b")


def test_a_key_that_has_its_time_keeps_it(rig: Rig) -> None:
    rule = Placement(dedupe_key="k")
    rig.enqueue("a", rule)
    rig.link.run_one(rig.queue.revoke_call(["a"], False))
    assert rig.enqueue("b", rule) == ("duplicate", "a")


def test_an_id_that_was_revoked_before_is_another_call_now(rig: Rig) -> None:
    rig.hire("alice")
    rig.link.run_one(rig.queue.revoke_call(["a"], False))
    assert rig.enqueue("a", Placement(unique=True)) == ("accepted", "a")
    (a,) = rig.get("alice")
    assert not a.revoked


@pytest.mark.parametrize("unique", [False, True])
def test_what_waits_is_not_lost_to_another_call_under_its_id(rig: Rig, unique: bool) -> None:
    placement = Placement(unique=unique, delay_ms=HOUR_MS, dedupe_ttl_ms=1)
    rig.enqueue("a", placement, body=b"first")
    rig.redis.delete(f"{rig.keys.prefix}:dedupe:id:a")
    before = rig.dumps()
    assert rig.enqueue("a", placement, body=b"second") == ("duplicate", "a")
    assert rig.dumps() == before


def test_the_marker_of_an_id_lives_until_it_is_due(rig: Rig) -> None:
    rig.enqueue("a", Placement(unique=True, delay_ms=2 * HOUR_MS, dedupe_ttl_ms=1000))
    assert HOUR_MS < rig.ttl_ms("dedupe:id:a") <= 2 * HOUR_MS


def test_a_wake_entry_that_was_read_and_not_settled_is_no_message(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("a", Placement(delay_ms=500))
    assert rig.ready() == ["wake"]
    fetched = rig.fetch("alice")
    assert fetched.wakes
    assert rig.enqueue("b", Placement(max_length=2)) == ("accepted", "b")
    assert rig.enqueue("c", Placement(max_length=2)) == ("full", 2)
    rig.link.run_one(rig.queue.drop_wakes_call("alice", fetched.wakes))
    assert not rig.redis.exists(f"{rig.keys.prefix}:wakes")
