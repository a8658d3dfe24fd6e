"""begin.lua, and what a call holds until it ends: versions, slots, rates, markers, newer arguments."""

from __future__ import annotations

import pytest

from rsq.broker.queue_control import purge
from rsq.broker.replies import Begin
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery, pack_meta
from rsq.calls.outcome import Buried, Completed, Retried
from rsq.calls.placement import Placement
from rsq.errors import LeaseLost
from rsq.worker.permits import bring_newer
from tests.broker.conftest import HOUR_MS, Rig, completed, ids

GO = Begin("go")
PLAIN = Rules()
MINUTE_US = 60_000_000


def begin(rig: Rig, call: str | Delivery, rules: Rules = PLAIN, consumer: str = "alice", revision: int = 0) -> Begin:
    return rig.begin(consumer, call, rules, revision)


def running(rig: Rig, *task_ids: str) -> dict[str, Delivery]:
    rig.hire("alice", "bob")
    rig.add(*task_ids)
    return {delivery.id: delivery for delivery in rig.get("alice")}


def put_off(delivery: Delivery, delay_ms: int, slot: tuple[str, int] = ("", 0)) -> Retried:
    return Retried(delivery, "deferred", {}, delay_ms, "limited", slot)


def buried(delivery: Delivery) -> Buried:
    return Buried(delivery, "failed", {}, b"", 0)


def test_without_rules_it_begins_and_leaves_nothing(rig: Rig) -> None:
    running(rig, "a")
    before = rig.dumps()
    assert begin(rig, "a") == GO
    assert rig.dumps() == before


def test_fenced(rig: Rig) -> None:
    running(rig, "a")
    rig.retire("alice")
    before = rig.dumps()
    with pytest.raises(LeaseLost):
        begin(rig, "a", Rules(slot=("s", 1), rate=("r", MINUTE_US, 1)))
    assert rig.dumps() == before


# -- versions


def versioned(version: int, key: str = "k") -> Rules:
    return Rules(version=(key, version, HOUR_MS))


def test_an_older_version_does_not_begin_after_a_newer_one(rig: Rig) -> None:
    calls = running(rig, "new", "old", "same", "other", "newer")
    assert begin(rig, "old", versioned(1)) == GO
    assert begin(rig, "new", versioned(2)) == GO
    rig.commit("alice", completed(calls["new"]))
    assert begin(rig, "old", versioned(1)) == Begin("superseded", why="2")
    assert begin(rig, "same", versioned(2)) == GO
    assert begin(rig, "other", versioned(1, "other key")) == GO
    assert begin(rig, "newer", versioned(3)) == GO
    rig.commit("alice", *(completed(calls[each]) for each in ("old", "same", "other", "newer")))
    snapshot = rig.snapshot()
    assert (snapshot["version:k"], snapshot["version:other key"]) == ("3", "1")
    assert "calls" not in snapshot
    assert 0 < rig.ttl_ms("version:k") <= HOUR_MS


def test_a_version_that_failed_supersedes_nothing(rig: Rig) -> None:
    calls = running(rig, "new", "old")
    begin(rig, "new", versioned(2))
    rig.commit("alice", buried(calls["new"]))
    assert begin(rig, "old", versioned(1)) == GO
    rig.commit("alice", Completed(calls["old"], "ignored", b"", 0))
    assert not {"version:k", "calls"} & rig.snapshot().keys()


# -- slots


def test_a_slot_is_held_until_the_end(rig: Rig) -> None:
    calls = running(rig, "a", "b", "c")
    two = Rules(slot=("s", 2))
    assert [begin(rig, each, two).word for each in "abc"] == ["go", "go", "wait"]
    assert begin(rig, "a", two) == GO, "it has its slot already"
    assert rig.snapshot()["slots:s"] == {"a": "alice", "b": "alice"}
    rig.commit("alice", completed(calls["a"]))
    assert begin(rig, "c", two) == GO
    rig.commit("alice", buried(calls["b"]), completed(calls["c"]))
    assert not {"slots:s", "parked:s", "calls"} & rig.snapshot().keys()


def test_a_retry_frees_the_slot(rig: Rig) -> None:
    calls = running(rig, "a", "b")
    one = Rules(slot=("s", 1))
    begin(rig, "a", one)
    rig.commit("alice", Retried(calls["a"], "retried", {"attempt": 2}, 60_000, "failed"))
    assert begin(rig, "b", one) == GO


def test_the_first_that_waits_is_called_when_a_slot_is_free(rig: Rig) -> None:
    calls = running(rig, "a", "b", "c")
    one = Rules(slot=("s", 1))
    begin(rig, "a", one)
    for each in "bc":
        wait = begin(rig, each, one)
        assert (wait.word, wait.why) == ("wait", "slot")
        assert wait.wait_ms >= 5000
        rig.commit("alice", put_off(calls[each], wait.wait_ms, one.slot))
    assert rig.get("alice") == []
    rig.commit("alice", completed(calls["a"]))
    (b,) = rig.get("alice")
    assert b.id == "b"
    assert begin(rig, "b", one) == GO
    rig.commit("alice", completed(b))
    (c,) = rig.get("alice")
    assert begin(rig, "c", one) == GO
    rig.commit("alice", completed(c))
    assert not {"slots:s", "parked:s", "calls"} & rig.snapshot().keys()


def test_a_slot_that_was_freed_before_the_call_was_put_off(rig: Rig) -> None:
    calls = running(rig, "a", "b")
    one = Rules(slot=("s", 1))
    begin(rig, "a", one)
    wait = begin(rig, "b", one)
    rig.commit("alice", completed(calls["a"]))
    rig.commit("alice", put_off(calls["b"], wait.wait_ms, one.slot))
    assert ids(rig.get("alice")) == ["b"]


def test_the_first_that_waits_may_be_looking_by_itself(rig: Rig) -> None:
    calls = running(rig, "a", "b", "c")
    one = Rules(slot=("s", 1))
    begin(rig, "a", one)
    for each in "bc":
        rig.commit("alice", put_off(calls[each], 60_000, one.slot))
    rig.ripen("b")
    (b,) = rig.get("alice")
    rig.commit("alice", completed(calls["a"]))
    assert ids(rig.get("alice")) == []
    assert begin(rig, "c", one).word == "wait", "the slot is kept for the first"
    assert begin(rig, b, one) == GO
    rig.commit("alice", completed(b))
    assert ids(rig.get("alice")) == ["c"]


def test_a_slot_of_a_worker_that_is_gone_is_free(rig: Rig) -> None:
    calls = running(rig, "a", "b")
    one = Rules(slot=("s", 1))
    begin(rig, "a", one)
    rig.hire("carol")
    assert begin(rig, "b", one, "carol").word == "wait"
    rig.retire("alice", calls["a"])
    assert begin(rig, "b", one, "carol") == GO


def test_newcomers_do_not_go_before_who_waited_longer(rig: Rig) -> None:
    calls = running(rig, "holder", "old", "mid")
    one = Rules(slot=("s", 1))
    begin(rig, "holder", one)
    rig.commit("alice", *(put_off(calls[each], HOUR_MS, one.slot) for each in ("old", "mid")))
    since = rig.snapshot()["parked:s"]["old"]
    rig.commit("alice", completed(calls["holder"]))
    rig.add("new")
    new, old = sorted(rig.get("alice"), key=lambda delivery: delivery.id)
    assert begin(rig, new, one).word == "wait"
    # He comes too late after all: another one has it, and he waits where he stood, ahead of those that came after him.
    rig.redis.hset(f"{rig.keys.prefix}:slots:s", "old", "@1")
    assert begin(rig, new, one) == GO
    assert begin(rig, old, one).word == "wait"
    rig.commit("alice", put_off(old, HOUR_MS, one.slot))
    assert rig.snapshot()["parked:s"]["old"] == since
    rig.commit("alice", completed(new))
    (old,) = rig.get("alice")
    assert (old.id, begin(rig, old, one)) == ("old", GO)
    rig.commit("alice", completed(old))
    (mid,) = rig.get("alice")
    assert begin(rig, mid, one) == GO
    rig.commit("alice", completed(mid))
    assert not {"slots:s", "parked:s", "calls"} & rig.snapshot().keys()


def test_who_waits_for_another_slot_leaves_the_old_line(rig: Rig) -> None:
    parked(rig, "a")
    begin(rig, "x", Rules(slot=("t", 1)))
    rig.ripen("a")
    (a,) = rig.get("alice")
    wait = begin(rig, a, Rules(slot=("t", 1)))
    rig.commit("alice", put_off(a, wait.wait_ms, ("t", 1)))
    snapshot = rig.snapshot()
    assert "parked:s" not in snapshot
    assert {*snapshot["parked:t"]} == {"a"}
    rig.redis.flushall()  # `x` is no entry


def parked(rig: Rig, *task_ids: str) -> None:
    """All of them wait for the slot `s`, which nobody holds."""
    calls = running(rig, "holder", *task_ids)
    begin(rig, "holder", Rules(slot=("s", 1)))
    rig.commit("alice", *(put_off(calls[each], HOUR_MS, ("s", 1)) for each in task_ids))
    # The holder's worker is lost, and so is the turn of those that wait: its end calls nobody.
    rig.redis.delete(f"{rig.keys.prefix}:slots:s")
    rig.commit("alice", completed(calls["holder"]))


@pytest.mark.parametrize("way", ["purge", "revoke"])
def test_those_that_end_while_they_wait_leave_the_line(rig: Rig, way: str) -> None:
    parked(rig, "a", "b")
    assert set(rig.snapshot()["parked:s"]) == {"a", "b"}
    if way == "purge":
        purge(rig.link, rig.queue)
    else:
        rig.link.run_one(rig.queue.revoke_call(["a", "b"], False))
    assert not {"parked:s", "calls", "delayed", "messages"} & rig.snapshot().keys()


def test_a_turn_that_was_not_taken_goes_to_the_next(rig: Rig) -> None:
    calls = running(rig, "a", "b", "c")
    begin(rig, "a", Rules(slot=("s", 1)))
    rig.commit("alice", *(put_off(calls[each], HOUR_MS, ("s", 1)) for each in "bc"))
    rig.commit("alice", completed(calls["a"]))
    assert rig.snapshot()["delayed"]["b"] <= rig.now_ms()
    rig.link.run_one(rig.queue.revoke_call(["b"], False))
    assert ids(rig.get("alice")) == ["c"]


def test_who_began_by_its_own_look_is_not_called_out_of_its_backoff(rig: Rig) -> None:
    parked(rig, "a", "b")
    rig.ripen("a")
    (a,) = rig.get("alice")
    assert begin(rig, "a", Rules(slot=("s", 1))) == GO
    rig.commit("alice", Retried(a, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    delayed = rig.snapshot()["delayed"]
    assert delayed["a"] > rig.now_ms() + HOUR_MS - 60_000
    assert delayed["b"] <= rig.now_ms()


def test_what_was_put_off_may_lose_its_limit(rig: Rig) -> None:
    parked(rig, "a")
    rig.ripen("a")
    (a,) = rig.get("alice")
    assert begin(rig, "a") == GO, "a new release has no limit"
    rig.commit("alice", completed(a))
    assert not {"parked:s", "calls"} & rig.snapshot().keys()


def test_what_was_taken_early_and_lost_with_its_host_is_given_up(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until="done")
    rig.enqueue("a", rule)
    rig.enqueue("b", Placement(dedupe_key="other", dedupe_until="done"))
    a, b = rig.get("alice")
    for each in (a, b):
        assert begin(rig, each.id, Rules(slot=("s", 2))) == GO
        assert rig.take("alice", each)
    rig.commit("alice", Retried(b, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    rig.reconcile()
    assert {*rig.snapshot()["calls"]} == {"a", "b"}
    rig.miss("alice")
    snapshot = rig.snapshot()
    assert {*snapshot["calls"]} == {"b"}, "it waits for its retry"
    assert not {"slots:s", "dedupe:key:k"} & snapshot.keys()
    assert rig.enqueue("c", rule) == ("accepted", "c")


# -- rates


def test_a_rate_lets_one_start_in_each_interval(rig: Rig) -> None:
    running(rig, *"abcdx")
    one_a_minute = Rules(rate=("r", MINUTE_US, 1))
    assert begin(rig, "a", one_a_minute) == GO
    waits = [begin(rig, each, one_a_minute) for each in "bcd"]
    assert [wait.why for wait in waits] == ["rate"] * 3
    for number, wait in enumerate(waits, 1):
        assert (number * 60 - 5) * 1000 < wait.wait_ms <= number * 60_000, "each has a turn of its own"
    assert 0 < rig.ttl_ms("rate:r") <= 6 * 60_000
    assert begin(rig, "a", Rules(rate=("another", MINUTE_US, 1))) == GO


def test_a_burst_starts_at_once(rig: Rig) -> None:
    running(rig, *"abcdx")
    rules = Rules(rate=("r", MINUTE_US, 3))
    assert [begin(rig, each, rules).word for each in "abcd"] == ["go", "go", "go", "wait"]


def test_who_was_put_off_goes_before_who_comes_new(rig: Rig) -> None:
    running(rig, *"abcdx")
    rate = Rules(rate=("r", MINUTE_US, 1))
    rig.redis.set(f"{rig.keys.prefix}:rate:r", f"0 {(rig.now_ms() + 60_000) * 1000} 0", px=HOUR_MS)
    assert begin(rig, "a", rate).word == "wait"
    assert begin(rig, "a", rate) == GO, "it comes at its turn"
    assert begin(rig, "b", rate).word == "wait"


def test_who_finds_one_late_before_it_waits_for_that_one_alone(rig: Rig) -> None:
    running(rig, *"abcdx")
    rules, now_us = Rules(rate=("r", MINUTE_US, 1)), rig.now_ms() * 1000
    for each in "ab":
        rig.redis.set(f"{rig.keys.prefix}:rate:r", f"{now_us + MINUTE_US // 2} 0 0", px=HOUR_MS)
        assert begin(rig, each, rules).word == "wait"
    # A hundred have their turns already, and the one whose turn it was a moment ago was late.
    rig.redis.set(f"{rig.keys.prefix}:rate:r", f"{now_us + MINUTE_US // 2} {now_us + 100 * MINUTE_US} 0", px=HOUR_MS)
    waits = [begin(rig, each, rules).wait_ms for each in "ab"]
    assert 25_000 < waits[0] <= 30_000
    assert 85_000 < waits[1] <= 90_000, "and the next one for that"


@pytest.mark.parametrize("first", ["go", "wait"])
def test_a_question_whose_reply_was_lost_takes_no_second_turn(rig: Rig, first: str) -> None:
    a, b, *_ = running(rig, *"abcdx").values()
    rules = Rules(rate=("r", MINUTE_US, 1))
    if first == "wait":
        begin(rig, b, rules)
    answer = begin(rig, a, rules)
    assert answer.word == first
    before = rig.redis.get(f"{rig.keys.prefix}:rate:r")
    again = begin(rig, a, rules)
    assert (again.word, rig.redis.get(f"{rig.keys.prefix}:rate:r")) == (first, before)
    assert 0 <= answer.wait_ms - again.wait_ms < 30_000
    rig.commit("alice", completed(a))
    assert "a" not in rig.snapshot().get("calls", {})


def test_a_clock_that_was_set_back_stops_no_rate(rig: Rig) -> None:
    running(rig, *"abcdx")
    ahead_us = (rig.now_ms() + HOUR_MS) * 1000
    rig.redis.set(f"{rig.keys.prefix}:rate:r", f"{ahead_us} {ahead_us} {ahead_us}", px=2 * HOUR_MS)
    assert begin(rig, "a", Rules(rate=("r", MINUTE_US, 1))) == GO
    assert begin(rig, "b", Rules(rate=("r", MINUTE_US, 1))).wait_ms <= 60_000


def test_who_waits_for_the_rate_holds_no_slot(rig: Rig) -> None:
    running(rig, *"abcdx")
    begin(rig, "x", Rules(rate=("r", MINUTE_US, 1)))
    assert begin(rig, "a", Rules(rate=("r", MINUTE_US, 1), slot=("s", 1))).why == "rate"
    assert begin(rig, "b", Rules(slot=("s", 1))) == GO


# -- markers and newer arguments


def test_a_marker_ends_with_its_call(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until="done")
    assert rig.enqueue("a", rule) == ("accepted", "a")
    (a,) = rig.get("alice")
    begin(rig, "a")
    assert rig.enqueue("b", rule) == ("duplicate", "a")
    rig.commit("alice", Retried(a, "retried", {"attempt": 2}, 1, "failed"))
    assert rig.enqueue("b", rule) == ("duplicate", "a"), "it holds through retries"
    rig.ripen("a")
    (a,) = rig.get("alice")
    rig.commit("alice", completed(a))
    assert rig.enqueue("b", rule) == ("accepted", "b")
    rig.commit("alice", buried(*rig.get("alice")))
    assert not {"calls", "dedupe:key:k"} & rig.snapshot().keys()


def test_a_marker_ends_when_its_call_begins(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until="started")
    rig.enqueue("a", rule)
    (a,) = rig.get("alice")
    assert rig.enqueue("b", rule) == ("duplicate", "a")
    assert begin(rig, "a") == GO
    assert rig.enqueue("b", rule) == ("accepted", "b")
    rig.commit("alice", completed(a))
    assert rig.enqueue("c", rule) == ("duplicate", "b"), "the marker is that of another call now"


@pytest.mark.parametrize("until", ["done", "started"])
def test_a_purge_ends_markers(rig: Rig, until: str) -> None:
    rule = Placement(dedupe_key="k", dedupe_until=until)
    rig.enqueue("a", rule)
    assert purge(rig.link, rig.queue) == 1
    assert rig.enqueue("b", rule) == ("accepted", "b")


def newest(rig: Rig, delivery: Delivery) -> bytes:
    """The arguments with which it starts."""
    body, revision, answer = delivery.body, 0, begin(rig, delivery, consumer=delivery.consumer)
    while answer.newer is not None:
        revision, _, body, _ = answer.newer
        answer = begin(rig, delivery, consumer=delivery.consumer, revision=revision)
    assert answer == GO
    return body


def handed_on(rig: Rig, delivery: Delivery) -> list[Delivery]:
    rig.retire("alice", delivery)
    rig.hire("bob")
    return rig.get("bob")


@pytest.mark.parametrize("delay_ms", [None, 60_000])
def test_a_duplicate_brings_newer_arguments(rig: Rig, delay_ms: int | None) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", replaces=True, delay_ms=delay_ms)
    rig.enqueue("a", rule, body=b"old")
    assert rig.enqueue("b", rule, body=b"newer") == ("replaced", "a")
    assert rig.enqueue("c", rule, body=b"newest") == ("replaced", "a")
    if delay_ms:
        rig.ripen("a")
    (a,) = rig.get("alice")
    assert newest(rig, a) == b"newest"
    assert rig.enqueue("d", rule) == ("duplicate", "a"), "it has begun"
    (again,) = handed_on(rig, a)
    assert newest(rig, again) == b"newest", "after a crash, too"
    rig.commit("bob", completed(again))
    assert not {"calls"} & rig.snapshot().keys()


def test_newer_arguments_for_a_call_that_was_put_off_before_it_began(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", replaces=True)
    rig.enqueue("a", rule, body=b"old")
    rig.enqueue("b", rule, body=b"newer")
    rig.add("x")
    a, _ = rig.get("alice")
    begin(rig, "x", Rules(rate=("r", MINUTE_US, 1)))
    wait = begin(rig, "a", Rules(rate=("r", MINUTE_US, 1)))
    rig.commit("alice", put_off(a, wait.wait_ms))
    assert rig.enqueue("c", rule, body=b"newest") == ("replaced", "a")
    rig.ripen("a")
    (a,) = rig.get("alice")
    assert newest(rig, a) == b"newest"


def test_a_retry_of_newer_arguments_counts_on(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until="done", replaces=True)
    rig.enqueue("a", rule)
    rig.enqueue("b", rule, body=b"newer")
    (a,) = rig.get("alice")
    newer = begin(rig, a).newer
    assert newer is not None
    assert begin(rig, a, revision=bring_newer(a, newer)) == GO
    rig.commit("alice", Retried(a, "retried", {"attempt": 2}, 0, ""))
    (again,) = rig.get("alice")
    assert (again.body, again.attempt) == (b"newer", 2)
    assert begin(rig, again) == GO


def test_newer_arguments_run_under_their_own_limit(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", replaces=True)
    rig.enqueue("a", rule, body=b"acct-1")
    (a,) = rig.get("alice")
    rig.enqueue("b", rule, body=b"acct-2")
    answer = begin(rig, a, Rules(slot=("acct-1", 1)))
    assert answer.newer == (1, "tests.task", b"acct-2", b"")
    assert not [name for name in rig.snapshot() if name.startswith("slots:")]
    assert begin(rig, a, Rules(slot=("acct-2", 1)), revision=1) == GO
    assert [name for name in rig.snapshot() if name.startswith("slots:")] == ["slots:acct-2"]
    rig.commit("alice", completed(a))


@pytest.mark.parametrize("delay_ms", [None, 60_000])
def test_newer_arguments_bring_all_that_came_with_them(rig: Rig, delay_ms: int | None) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", replaces=True, delay_ms=delay_ms)
    rig.enqueue("a", rule, expires=1)
    rig.enqueue("b", rule, body=b"newer", expires=2)
    if delay_ms:
        rig.ripen("a")
    (a,) = rig.get("alice")
    if delay_ms:
        assert (a.body, a.meta) == (b"newer", {"expires": 2})
    else:
        assert begin(rig, a).newer == (1, "tests.task", b"newer", pack_meta({"expires": 2}))
    rig.commit("alice", completed(a))


def test_a_dead_letter_has_the_newest_arguments(rig: Rig) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", replaces=True)
    rig.enqueue("a", rule, body=b"old")
    rig.enqueue("b", rule, body=b"new")
    rig.commit("alice", buried(*rig.get("alice")))
    assert [letter["body"] for letter in rig.snapshot()["dead"]] == ["new"]


def test_a_debounced_call_starts_after_the_last_of_them(rig: Rig) -> None:
    rule = Placement(dedupe_key="k", dedupe_until="started", replaces=True, delay_ms=60_000, debounce_ms=60_000)
    rig.enqueue("a", rule, body=b"first")
    rig.redis.zadd(rig.keys.delayed, {"a": rig.now_ms() + 1000}, xx=True)
    with rig.span() as span:
        assert rig.enqueue("b", rule, body=b"last") == ("replaced", "a")
    snapshot = rig.snapshot()
    assert snapshot["delayed"] == {"a": span.plus(60_000)}
    assert snapshot["messages"]["a"][2] == "last"
