"""What runs emit: the entries of an output, whose they are, and how its end is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from redis.exceptions import ResponseError

from rsq.broker import scripts
from rsq.broker.emitter import Emitter, Output, emit_call
from rsq.broker.pool import LinkPool
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Released, Retried, Verdict
from rsq.calls.placement import Placement
from rsq.errors import BrokerRefused
from tests.broker.conftest import HOUR_MS, Rig, completed, text
from tests.broker.test_held import RULES, WAYS

Entry = tuple[str, dict[str, str]]

LENGTH = 100


class Desk:
    """Emits as a worker does, batch by batch, without its thread."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._emitter = Emitter(LinkPool(rig.link.endpoint, 20))

    def output(self, delivery: Delivery, *values: bytes, length: int = LENGTH) -> Output:
        """Of this run, with values that are still to be written."""
        if delivery.output is None:
            delivery.output = Output(self._emitter, self.rig.keys.prefix, delivery, length, HOUR_MS)
        delivery.output.values.extend(values)
        output: Output = delivery.output
        return output

    def emit(self, delivery: Delivery, *values: bytes, length: int = LENGTH) -> int:
        """Write values; they are confirmed."""
        output = self.output(delivery, *values, length=length)
        reply = self.send(delivery, output.packed(output.first, list(output.values), output.first - 1))
        output.first += len(output.values)
        output.values.clear()
        return reply

    def send(self, delivery: Delivery, emitted: bytes) -> int:
        return int(self.rig.link.run_one(emit_call(self.rig.keys.prefix, delivery, emitted)))


@pytest.fixture
def desk(rig: Rig) -> Desk:
    return Desk(rig)


def entries(rig: Rig, task_id: str = "a") -> list[Entry]:
    found = rig.redis.xrange(rig.keys.output(task_id))
    return [(text(entry_id), {text(k): text(v) for k, v in fields.items()}) for entry_id, fields in found]


def values(*pairs: tuple[str, str]) -> list[Entry]:
    return [(entry_id, {"value": value}) for entry_id, value in pairs]


def start(rig: Rig, consumer: str = "alice", task_id: str = "a") -> Delivery:
    rig.hire(consumer)
    rig.add(task_id)
    (delivery,) = rig.get(consumer)
    return delivery


def again(rig: Rig, delivery: Delivery, consumer: str = "alice") -> Delivery:
    """The next attempt, after a failed one."""
    rig.commit(consumer, Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    rig.ripen(delivery.id)
    (next_one,) = rig.get(consumer)
    return next_one


def heard(rig: Rig, act: Callable[[], object], task_id: str = "a") -> list[bytes]:
    """What is published on the output's channel by something."""
    sharded = rig.link.endpoint.sharded
    with closing(rig.redis.pubsub()) as pubsub:
        (pubsub.ssubscribe if sharded else pubsub.subscribe)(rig.keys.output(task_id))
        assert pubsub.get_message(timeout=20)
        act()
        rig.redis.execute_command("SPUBLISH" if sharded else "PUBLISH", rig.keys.output(task_id), "over")
        found = []
        while (message := pubsub.get_message(timeout=20))["data"] != b"over":
            found.append(message["data"])
        return found


# -- ids


def test_values_are_numbered_in_their_run_and_without_holes(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    assert desk.emit(delivery, b"x", b"y") == 1
    assert desk.emit(delivery, b"z") == 1
    assert entries(rig) == values(("1-1", "x"), ("1-2", "y"), ("1-3", "z"))
    assert 0 < rig.ttl_ms("output:a") <= HOUR_MS


def test_a_batch_that_is_repeated_adds_nothing_and_one_that_grew_begins_behind_the_top(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    output = desk.output(delivery)
    for some in ([b"x", b"y"], [b"x", b"y"], [b"x", b"y", b"z"]):
        assert desk.send(delivery, output.packed(1, some, 0)) == 1
    assert entries(rig) == values(("1-1", "x"), ("1-2", "y"), ("1-3", "z"))


def test_a_run_after_a_failed_attempt_is_another_one(rig: Rig, desk: Desk) -> None:
    first = start(rig)
    desk.emit(first, b"x", b"y")
    second = again(rig, first)
    desk.emit(second, b"x")
    assert entries(rig) == values(("1-1", "x"), ("1-2", "y"), ("2-3", "x"))


def test_so_is_one_whose_attempt_is_the_same_since_its_worker_died(rig: Rig, desk: Desk) -> None:
    first = start(rig)
    desk.emit(first, b"x", b"y")
    rig.retire("alice", first)
    rig.hire("bob")
    (second,) = rig.get("bob")
    assert second.attempt == first.attempt
    desk.emit(second, b"x")
    assert entries(rig) == values(("1-1", "x"), ("1-2", "y"), ("2-3", "x"))


def test_so_is_one_of_the_same_consumer_that_had_handed_it_back(rig: Rig, desk: Desk) -> None:
    """Consumer and entry are those of the run before."""
    first = start(rig)
    desk.emit(first, b"x")
    late = desk.output(first).packed(2, [b"late"], 1)
    rig.commit("alice", Released(first))
    (second,) = rig.get("alice")
    assert (second.consumer, second.entry_id) == (first.consumer, first.entry_id)
    desk.emit(second, b"y")
    assert desk.send(first, late) == 0
    assert entries(rig) == values(("1-1", "x"), ("2-2", "y"))


def test_a_run_that_emits_nothing_has_no_number(rig: Rig, desk: Desk) -> None:
    first = start(rig)
    desk.emit(first, b"x")
    third = again(rig, again(rig, first))
    desk.emit(third, b"y")
    assert entries(rig) == values(("1-1", "x"), ("2-2", "y"))


def test_redis_refuses_what_is_not_above_the_last_id(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x", b"y")
    for entry_id in ("1-2", "1-1", "0-7"):
        with pytest.raises(ResponseError, match="equal or smaller"):
            rig.redis.xadd(rig.keys.output("a"), {"value": b"late"}, id=entry_id)


def test_a_stream_that_others_have_written_into_hurts_no_outcome(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    rig.redis.xadd(rig.keys.output("a"), {"foreign": "1"}, id="9-9")
    rig.redis.xdel(rig.keys.output("a"), "9-9")
    desk.output(delivery, b"x")
    assert rig.commit("alice", completed(delivery)) == [1]
    assert rig.redis.get(rig.keys.result("a")) == b"done"


# -- the fence


def test_who_lost_the_lease_adds_nothing(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    rig.redis.zrem(rig.keys.consumers, "alice")
    before = rig.dumps()
    assert desk.emit(delivery, b"y") == -1
    assert rig.dumps() == before


@pytest.mark.parametrize("emitted_before", [True, False])
def test_what_comes_after_the_outcome_adds_nothing(rig: Rig, desk: Desk, emitted_before: bool) -> None:
    delivery = start(rig)
    if emitted_before:
        desk.emit(delivery, b"x")
    rig.commit("alice", completed(delivery))
    before = rig.dumps()
    assert desk.emit(delivery, b"late") == 0
    assert rig.dumps() == before


def test_what_comes_after_a_failed_attempt_adds_nothing(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    rig.commit("alice", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    assert desk.emit(delivery, b"late") == 0
    assert entries(rig) == values(("1-1", "x"))


def test_a_call_that_was_acknowledged_early_is_fenced_by_its_token(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    assert rig.take("alice", delivery)
    rig.redis.zrem(rig.keys.consumers, "alice")  # its lease counts no more, its token does
    assert desk.emit(delivery, b"x") == 1
    rig.retire("alice", delivery)
    assert desk.emit(delivery, b"late") == 0
    assert entries(rig) == [*values(("1-1", "x")), ("1-2", {"end": "lost"})]


# -- what rides with the outcome


@pytest.mark.parametrize("emitted_before", [True, False])
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("kind", ["complete", "bury", "retry"])
def test_the_outcome_carries_what_was_emitted_last(
    rig: Rig, desk: Desk, kind: str, taken: bool, emitted_before: bool
) -> None:
    delivery = start(rig)
    if taken:
        rig.take("alice", delivery)
    emitted = []
    if emitted_before:
        desk.emit(delivery, b"x")
        emitted = ["x"]
    desk.output(delivery, b"y", b"z")
    verdicts: dict[str, Verdict] = {
        "complete": completed(delivery),
        "bury": Buried(delivery, "failed", {}, b"failed", HOUR_MS),
        "retry": Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "failed"),
    }
    calls = rig.queue.commit_calls("alice", [verdicts[kind]])
    assert [script.name for script, _, _ in calls] == [kind]
    for answer in (1, 0):  # a commit that is repeated after a lost reply
        assert rig.link.run_many(calls) == [answer]
        found = entries(rig)
        end = {"complete": [{"end": "succeeded"}], "bury": [{"end": "dead"}], "retry": []}[kind]
        assert [fields for _, fields in found] == [{"value": each} for each in [*emitted, "y", "z"]] + end
        assert [entry_id for entry_id, _ in found] == [f"1-{n + 1}" for n in range(len(found))]


def test_what_is_too_much_for_one_script_goes_before_it(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.output(delivery, *(b"%d" % n for n in range(1234)), length=5000)
    calls = rig.queue.commit_calls("alice", [completed(delivery)])
    assert [script.name for script, _, _ in calls] == ["emit", "emit", "complete"]
    assert rig.link.run_many(calls) == [1, 1, 1]
    assert [fields.get("value") for _, fields in entries(rig)] == [*(str(n) for n in range(1234)), None]


def test_an_outcome_waits_for_what_was_emitted_before_it(rig: Rig, desk: Desk) -> None:
    """That was refused: the server was full, say."""
    delivery = start(rig)
    desk.output(delivery, *(b"%d" % n for n in range(600)), length=5000)
    emits, commit = rig.queue.commit_calls("alice", [completed(delivery)])
    before = rig.dumps()
    (refused,) = rig.link.run_many([commit])
    assert isinstance(refused, BrokerRefused)
    assert "is not there yet" in str(refused)
    assert rig.dumps() == before
    assert rig.link.run_many([emits, commit]) == [1, 1]


def test_what_was_lost_with_a_server_shows_in_the_numbers(rig: Rig, desk: Desk) -> None:
    """It was confirmed; the server that has taken over has not heard of it."""
    delivery = start(rig)
    desk.emit(delivery, b"x")
    old = {key: rig.redis.dump(key) for key in (rig.keys.output("a"), f"{rig.keys.prefix}:calls")}
    desk.emit(delivery, b"lost", b"lost, too")
    for key, dump in old.items():
        rig.redis.restore(key, 0, dump, replace=True)
    desk.output(delivery, b"y")
    rig.commit("alice", completed(delivery))
    assert entries(rig) == [*values(("1-1", "x"), ("1-4", "y")), ("1-5", {"end": "succeeded"})]


def test_calls_that_emit_and_others_are_committed_side_by_side(rig: Rig, desk: Desk) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    desk.output(a, b"x")
    assert rig.commit("alice", completed(a)) + rig.commit("alice", completed(b)) == [1, 1]
    assert [fields for _, fields in entries(rig)] == [{"value": "x"}, {"end": "succeeded"}]
    assert entries(rig, "b") == []


# -- the end


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_end_is_told_however_it_comes(rig: Rig, desk: Desk, way: Callable[[Rig, Delivery], None]) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", replaces=True)
    rig.enqueue("a", rule, body=b"old")
    rig.enqueue("b", rule, body=b"newest")
    (delivery,) = rig.get("alice")
    rig.begin("alice", delivery, RULES, 1)
    desk.emit(delivery, b"x")
    said = heard(rig, lambda: way(rig, delivery))
    last_id, last = entries(rig)[-1]
    assert last == {"end": WAYS[way]}
    assert said[-1] == f"{last_id} {WAYS[way]}\n".encode()
    assert 0 < rig.ttl_ms("output:a") <= HOUR_MS
    assert not rig.redis.hexists(f"{rig.keys.prefix}:calls", "a")


def test_a_call_that_has_emitted_nothing_leaves_no_output(rig: Rig) -> None:
    delivery = start(rig)
    rig.commit("alice", completed(delivery))
    assert not rig.redis.exists(rig.keys.output("a"))


@pytest.mark.parametrize("verdict", ["retried", "released"])
def test_what_runs_again_has_not_ended(rig: Rig, desk: Desk, verdict: str) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    if verdict == "retried":
        rig.commit("alice", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    else:
        rig.commit("alice", Released(delivery))
    assert entries(rig) == values(("1-1", "x"))


def test_the_oldest_values_go_and_the_end_stays(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    for first in range(0, 2000, 500):
        desk.emit(delivery, *(b"%d" % n for n in range(first, first + 500)))
    rig.commit("alice", completed(delivery))
    found = entries(rig)
    # The server trims whole nodes, of a hundred entries.
    assert LENGTH < len(found) <= LENGTH + 101
    assert found[-2:] == [("1-2000", {"value": "1999"}), ("1-2001", {"end": "succeeded"})]


def test_a_call_that_is_sent_again_deletes_its_output(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    rig.commit("alice", Buried(delivery, "failed", {}, b"failed", HOUR_MS))
    ((letter_id, _),) = rig.redis.xrange(rig.keys.dead)
    assert rig.run(scripts.REDRIVE, letter_id, b"") == [b"sent", b"a"]
    assert entries(rig) == []
    (second,) = rig.get("alice")
    desk.emit(second, b"y")
    assert entries(rig) == values(("1-1", "y"))


def test_so_does_a_later_call_with_the_same_id(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    rig.commit("alice", Completed(delivery, "succeeded", b"done", HOUR_MS))
    rig.enqueue("a", Placement(unique=True))
    assert entries(rig) == []


def test_one_that_was_sent_past_the_script_begins_its_output_anew(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    rig.commit("alice", completed(delivery))
    desk.emit(start(rig), b"y")
    assert entries(rig) == values(("1-1", "y"))


# -- what watchers are told


def test_the_message_brings_the_values(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"\x01")
    assert heard(rig, lambda: desk.emit(delivery, b"\x02", b"\xa1y")) == [b"1-2\n\x02\xa1y"]


def test_what_is_too_large_for_a_message_is_only_told_of(rig: Rig, desk: Desk) -> None:
    delivery = start(rig)
    assert heard(rig, lambda: desk.emit(delivery, b"x" * 40_000, b"y" * 40_000)) == [b"1-1\n"]


@pytest.mark.parametrize("record", [b"", b"junk", b"\x81\xa6output\x01"])
def test_a_record_that_cannot_be_read_counts_as_none(rig: Rig, desk: Desk, record: bytes) -> None:
    delivery = start(rig)
    desk.emit(delivery, b"x")
    rig.redis.hset(f"{rig.keys.prefix}:calls", "a", record)
    desk.output(delivery, b"y")
    rig.commit("alice", completed(delivery))
    # It does not know the run any more, nor what of it is there.
    assert [entry_id for entry_id, _ in entries(rig)] == ["1-1", "2-3", "2-4"]
