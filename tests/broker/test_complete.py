"""complete.lua: the outcome of a call, written once and only by whoever still holds it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link
from rsq.broker.worker_queue import Rules, WorkerQueue
from rsq.calls.outcome import Buried, Completed, Released, Retried
from rsq.calls.placement import Placement
from rsq.errors import BrokerRefused
from rsq.settings import Settings
from tests.broker.conftest import FAR, HOUR_MS, MIB, ODD_IDS, Rig, completed, entry, ids
from tests.conftest import MakeServer
from tests.helpers import wait_until


def test_done(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    a, b, _ = rig.get("alice")
    assert rig.commit("alice", completed(a, b"\x01"), completed(b, b"\x02", ttl_ms=60_000)) == [2]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "stream": [entry("c")],
        "stream pending": {"c": ("alice", 1)},
        "result:a": "\x01",
        "result:b": "\x02",
        "stats": {"succeeded": "2"},
    }
    assert HOUR_MS - 60_000 < rig.ttl_ms("result:a") <= HOUR_MS
    assert 0 < rig.ttl_ms("result:b") <= 60_000


@pytest.mark.parametrize("priority", range(10))
def test_of_any_priority(rig: Rig, priority: int) -> None:
    rig.hire("alice")
    rig.add("a", priority=priority)
    assert rig.commit("alice", *(completed(delivery) for delivery in rig.get("alice"))) == [1]
    assert rig.snapshot() == {"consumers": {"alice": FAR}, "result:a": "done", "stats": {"succeeded": "1"}}


def test_streams_and_counters_are_kept_apart(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", priority=2)
    rig.add("c", "d")
    a, b, c, d = rig.get("alice")
    verdicts = [completed(a), Completed(b, "ignored", b"", 0), completed(c), completed(d)]
    assert rig.commit("alice", *verdicts) == [1, 1, 2]
    snapshot = rig.snapshot()
    assert snapshot["stats"] == {"succeeded": "3", "ignored": "1"}
    assert "stream" not in snapshot
    assert "stream:2" not in snapshot


def test_results_are_pushed(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    with rig.pushes("a", "b") as pushed:
        for _ in range(2):
            rig.commit("alice", completed(a, b"\xff\x00"), completed(b, result=b""))
    assert pushed == [("a", b"\xff\x00")]


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_odd_ids(rig: Rig, task_id: str) -> None:
    rig.hire("alice")
    rig.add(task_id)
    rig.commit("alice", *(completed(delivery) for delivery in rig.get("alice")))
    assert rig.snapshot() == {"consumers": {"alice": FAR}, f"result:{task_id}": "done", "stats": {"succeeded": "1"}}


def test_without_a_result_its_id_is_remembered_for_a_while(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    rig.commit("alice", *(completed(delivery, result=b"") for delivery in rig.get("alice")))
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "ended": [{"ids": "a b c"}],
        "stats": {"succeeded": "3"},
    }
    assert 0 < rig.ttl_ms("ended") <= 20_000


def test_what_was_sent_long_ago_need_not_be_remembered(rig: Rig) -> None:
    rig.hire("alice")
    message = {"id": "a", "task": "tests.task", "body": "", "meta": ""}
    old = rig.redis.time()[0] * 1000 - 20_000
    rig.redis.xadd(rig.keys.stream(), message, id=f"{old}-0")
    rig.commit("alice", *(completed(delivery, result=b"") for delivery in rig.get("alice")))
    assert rig.snapshot() == {"consumers": {"alice": FAR}, "stats": {"succeeded": "1"}}


# -- the fence, and repeats


@pytest.mark.parametrize("way", ["never registered", "retired", "lapsed and found out", "flushed"])
def test_fenced(rig: Rig, way: str) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    a, b = rig.get("alice")
    consumer = "alice"
    match way:
        case "never registered":
            consumer = "mallory"
        case "retired":
            rig.retire("alice")
        case "lapsed and found out":
            rig.lapse("alice")
            rig.get("bob")
        case "flushed":
            rig.redis.flushall()
    before = rig.dumps()
    assert rig.commit(consumer, completed(a), completed(b, result=b"")) == [-1]
    assert rig.dumps() == before


def test_a_lease_that_ran_out_unnoticed_still_counts(rig: Rig) -> None:
    """Nobody has taken over: whoever wants to must unregister the consumer first, in the same script."""
    rig.hire("alice")
    rig.add("a")
    deliveries = rig.get("alice")
    rig.lapse("alice")
    assert rig.commit("alice", *map(completed, deliveries)) == [1]


def test_twice_counts_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    a, b, c = rig.get("alice")
    rig.commit("alice", completed(a), completed(b, result=b""))
    before = rig.snapshot()
    assert rig.commit("alice", completed(a, b"other"), completed(b, result=b"")) == [0]
    assert rig.snapshot() == before
    # A repeat may carry more than the first try did.
    assert rig.commit("alice", completed(a, b"other"), completed(c)) == [1]
    assert rig.snapshot()["result:a"] == "done"
    assert rig.snapshot()["stats"] == {"succeeded": "3"}


def test_an_empty_batch_is_nothing(rig: Rig) -> None:
    rig.hire("alice")
    before = rig.dumps()
    assert rig.commit("alice") == []
    assert rig.run(scripts.COMPLETE, "alice", 0, 0, "succeeded", 0, 0, "") == 0
    assert rig.dumps() == before


# -- early acknowledgement


def test_what_was_taken_is_settled_by_its_token(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    for delivery in (a, b):
        rig.take("alice", delivery)
    assert rig.commit("alice", completed(a), completed(b, result=b"")) == [2]
    after = {
        "consumers": {"alice": FAR},
        "result:a": "done",
        "ended": [{"ids": "b"}],
        "stats": {"succeeded": "2"},
    }
    assert rig.snapshot() == after
    assert rig.commit("alice", completed(a, b"again"), completed(b, result=b"")) == [0]
    assert rig.snapshot() == after


def test_a_late_repeat_leaves_the_next_attempt_alone(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (first,) = rig.get("alice")
    rig.take("alice", first)
    retried = Retried(first, "retried", {"attempt": 2}, HOUR_MS, "")
    rig.commit("alice", retried)
    rig.ripen("a")
    for consumer in ("bob", "alice"):  # whoever has the second attempt
        (second,) = rig.get(consumer)
        rig.take(consumer, second)
        before = rig.dumps()
        assert rig.commit("alice", retried) == [0]
        assert rig.commit("alice", completed(first)) == [0]
        assert rig.dumps() == before
        assert rig.commit(consumer, Retried(second, "retried", {"attempt": 3}, HOUR_MS, "")) == [1]
        rig.ripen("a")
    assert rig.snapshot()["stats"] == {"retried": "3"}


def test_what_was_taken_is_fenced_by_its_token_alone(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.take("alice", a)
    rig.lapse("alice")
    rig.run(scripts.RENEW, HOUR_MS, "bob")
    assert "alice" not in rig.snapshot()["consumers"]
    assert rig.commit("alice", completed(a)) == [1], "nobody else will run it"
    before = rig.dumps()
    assert rig.commit("alice", completed(a)) == [0]
    assert rig.dumps() == before


def test_what_was_taken_and_told_as_lost_is_ended(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.take("alice", a)
    rig.retire("alice")
    before = rig.dumps()
    assert rig.commit("alice", completed(a)) == [0]
    assert rig.dumps() == before


@pytest.mark.parametrize("record", [b"\xc1", b"\x93\x01", b"\x82\xa4slot\x93\x01\x02\x03\xa3key\xc3", b"\xa1x"])
def test_a_record_that_cannot_be_read_costs_its_neighbours_nothing(rig: Rig, record: bytes) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    calls = rig.get("alice")
    rig.redis.hset(f"{rig.keys.prefix}:calls", "b", record)
    assert rig.commit("alice", *map(completed, calls)) == [3]
    snapshot = rig.snapshot()
    assert [snapshot[f"result:{each}"] for each in "abc"] == ["done"] * 3
    assert "calls" not in snapshot


# -- crash marks


def test_the_crashes_of_what_ended_are_forgotten(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    rig.retire("alice", *rig.get("alice"))
    a, b = sorted(rig.get("bob"), key=lambda delivery: delivery.id)
    rig.commit("bob", completed(a))
    assert rig.snapshot()["crashes"] == {"b": "1 signal SIGKILL"}
    rig.commit("bob", completed(b))
    assert "crashes" not in rig.snapshot()


# -- keys gone


def test_what_was_deleted_by_hand_while_it_ran_has_its_outcome_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.redis.xdel(rig.keys.stream(), a.entry_id)
    assert rig.commit("alice", completed(a), completed(b)) == [2]
    assert rig.commit("alice", completed(a), completed(b)) == [0]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "result:a": "done",
        "result:b": "done",
        "stats": {"succeeded": "2"},
    }


def test_a_group_that_was_destroyed_does_not_cost_the_outcome(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.redis.xgroup_destroy(rig.keys.stream(), keys.GROUP)
    (again,) = rig.get("bob")
    assert rig.commit("alice", completed(a, b"first")) == [1]
    assert rig.commit("bob", completed(again, b"second")) == [0]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR, "bob": FAR},
        "result:a": "first",
        "stats": {"succeeded": "1"},
    }


def test_a_deleted_stream(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    deliveries = rig.get("alice")
    rig.redis.delete(rig.keys.stream())
    assert rig.commit("alice", *map(completed, deliveries)) == [0]
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


# -- much at once


def names_of(stream: list[Any]) -> list[str]:
    return [fields[b"id"].decode() for _, fields in stream]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]], ids=str)
def test_many_leave_the_stream_and_no_others_whoever_comes_first(rig: Rig, order: list[int]) -> None:
    rig.hire("alice", "bob", "carol")
    names = [f"a{number}" for number in range(700)]
    rig.add(*names)
    held = {name: rig.get(name, room=200) for name in ("alice", "bob", "carol")}
    left = list(names)
    for place in order:
        name = ("alice", "bob", "carol")[place]
        # All but the first: one that takes long stands before the others.
        assert rig.commit(name, *map(completed, held[name][1:])) == [199]
        left = [each for each in left if each not in {delivery.id for delivery in held[name][1:]}]
        assert names_of(rig.redis.xrange(rig.keys.stream())) == left
    for name, deliveries in held.items():
        assert rig.commit(name, completed(deliveries[0])) == [1]
    assert names_of(rig.redis.xrange(rig.keys.stream())) == names[600:]
    last = rig.get("alice", room=200)
    assert rig.commit("alice", *map(completed, last)) == [100]
    assert rig.snapshot()["stats"] == {"succeeded": "700"}


def test_what_nobody_was_given_stays_where_somebody_has_set_the_group_back(rig: Rig) -> None:
    rig.hire("alice")
    rig.add(*(f"a{number}" for number in range(20)))
    stream, before = rig.keys.stream(), [entry_id for entry_id, _ in rig.redis.xrange(rig.keys.stream())]
    rig.redis.xgroup_setid(stream, keys.GROUP, before[9])
    late = rig.get("alice", room=10)
    rig.redis.xgroup_setid(stream, keys.GROUP, "0")
    assert rig.commit("alice", *map(completed, late)) == [10]
    assert names_of(rig.redis.xrange(stream)) == [f"a{number}" for number in range(10)]
    assert len(rig.get("alice", room=20)) == 10


@pytest.mark.parametrize("result", [b"done", b""])
def test_thousands_at_once(rig: Rig, result: bytes) -> None:
    rig.hire("alice", "bob")
    names = [f"a{number}" for number in range(9000)]
    rig.add(*names)
    rig.get("alice", room=9000)
    rig.redis.hset(rig.keys.crashes, mapping=dict.fromkeys(names, "1 exit 1"))
    rig.retire("alice")
    while deliveries := rig.get("bob", room=9000):
        assert rig.commit("bob", *(completed(delivery, result) for delivery in deliveries)) == [len(deliveries)]
    assert rig.redis.hget(rig.keys.stats, "succeeded") == b"9000"
    assert rig.redis.exists(rig.keys.crashes) == 0
    if result:
        assert len(rig.redis.keys(rig.keys.result("*"))) == 9000


def test_a_large_result(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *(completed(delivery, bytes(MIB)) for delivery in rig.get("alice")))
    assert rig.redis.strlen(rig.keys.result("a")) == MIB


def test_results_expire(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *(completed(delivery, ttl_ms=1) for delivery in rig.get("alice")))
    wait_until(lambda: not rig.redis.exists(rig.keys.result("a")))


# -- a server that has no memory left


def test_a_full_server_takes_nothing_more_and_is_worked_empty(own_server: MakeServer) -> None:
    server = own_server()
    with server.client() as client, closing(Link(Endpoint(server.url), 20)) as link:
        rig = Rig(client, link, WorkerQueue("q", Settings(url=server.url)))
        rig.hire("alice", "old", "older")
        rig.add("of-old", "of-older", *(f"a{number}" for number in range(5)))
        rig.get("old", room=1)
        rig.get("older", room=1)
        rig.enqueue("due", Placement(delay_ms=HOUR_MS))
        rig.enqueue("urgent", Placement(delay_ms=HOUR_MS), priority=9)
        rig.ripen("due", "urgent")
        client.config_set("maxmemory", 1)

        before = rig.dumps()
        with pytest.raises(BrokerRefused):
            rig.enqueue("more", Placement(dedupe_key="k", unique=True))
        with pytest.raises(BrokerRefused):
            rig.enqueue("more", Placement(delay_ms=1))
        with pytest.raises(BrokerRefused):
            rig.link.call_packed(rig.queue.plain_enqueue(rig.message("more")))
        assert rig.dumps() == before

        assert rig.run(scripts.RENEW, HOUR_MS, "alice", "old") == []
        rig.run(scripts.REGISTER, "bob", HOUR_MS)
        rig.retire("old")
        rig.retire("older")
        deliveries = rig.get("bob")
        assert sorted(ids(deliveries)) == ["a0", "a1", "a2", "a3", "a4", "due", "of-old", "of-older", "urgent"]
        urgent, first, second, third, fourth, *rest = deliveries
        limited = Rules(version=("v", 1, HOUR_MS), slot=("s", 1), rate=("r", 1, 1))
        assert rig.begin("bob", first, limited).word == "go"
        assert rig.take("bob", third)
        rig.commit(
            "bob",
            completed(urgent),
            Retried(first, "retried", {}, HOUR_MS, ""),
            Buried(second, "failed", {}, b"error", HOUR_MS),
            completed(third),
            Released(fourth),
        )
        rig.retire("bob", *rest)
        deliveries = rig.get("alice")
        assert len(deliveries) == 5
        rig.commit("alice", *map(completed, deliveries))
        assert rig.run(scripts.PURGE, 10) == [1, 0]
        assert rig.ready() == []
        assert client.zcard(rig.keys.delayed) == 0
