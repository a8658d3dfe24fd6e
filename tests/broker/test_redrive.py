"""redrive.lua: a dead letter becomes a call again."""

from __future__ import annotations

import pytest

from rsq.broker.dead_letters import DeadLetter, dead_letters, redrive
from rsq.broker.worker_queue import Rules
from rsq.calls.message import pack_meta
from rsq.calls.outcome import Buried
from rsq.calls.placement import Placement
from rsq.errors import DecodeError, DuplicateCall
from tests.broker.conftest import FAR, HOUR_MS, MIB, ODD_IDS, Rig, completed, entry, ids, text


def bury(rig: Rig, *task_ids: str, priority: int = 0, body: bytes = b"body") -> list[DeadLetter]:
    rig.hire("alice")
    for task_id in task_ids:
        rig.enqueue(task_id, priority=priority, body=body, attempt=4, headers={"x": 1}, expires=1, deferred_since=1)
    for delivery in rig.get("alice", room=len(task_ids)):
        rig.commit("alice", Buried(delivery, "failed", {}, b"failure", HOUR_MS))
    return [*dead_letters(rig.link, rig.queue, newest_first=False)]


def test_it_is_ready_again_as_a_first_attempt(rig: Rig) -> None:
    first, second = bury(rig, "a", "b")
    assert redrive(rig.link, rig.queue, first)
    snapshot = rig.snapshot()
    assert snapshot["stream"] == [entry("a", meta=text(pack_meta({"headers": {"x": 1}})))]
    assert [letter["id"] for letter in snapshot["dead"]] == ["b"]
    # The old failure is no answer to the new attempt.
    assert "result:a" not in snapshot
    assert snapshot["result:b"] == "failure"
    assert snapshot["stats"] == {"dead": "2"}
    (delivery,) = rig.get("alice")
    assert (delivery.id, delivery.attempt, delivery.deliveries, delivery.crashes) == ("a", 1, 1, 0)
    assert second.id == "b"


def test_twice_is_once(rig: Rig) -> None:
    (letter,) = bury(rig, "a")
    assert redrive(rig.link, rig.queue, letter)
    before = rig.dumps()
    assert not redrive(rig.link, rig.queue, letter)
    assert rig.dumps() == before


@pytest.mark.parametrize("task_id", ODD_IDS)
@pytest.mark.parametrize("priority", [0, 9])
def test_it_keeps_id_body_and_priority(rig: Rig, task_id: str, priority: int) -> None:
    body = bytes(range(256)) * (MIB // 256)
    (letter,) = bury(rig, task_id, priority=priority, body=body)
    redrive(rig.link, rig.queue, letter)
    (delivery,) = rig.get("alice")
    assert (delivery.id, delivery.priority) == (task_id, priority)
    assert delivery.body == body


def test_a_new_stream_wakes_one_worker_and_an_old_one_nobody(rig: Rig) -> None:
    letters = bury(rig, "a", "b", "c", priority=4)
    rig.redis.delete(rig.keys.stream(4))
    for letter in letters:
        redrive(rig.link, rig.queue, letter)
    assert rig.ready(4) == ["a", "b", "c"]
    assert rig.ready() == ["wake"]


def test_many_wake_nobody_who_reads_anyway(rig: Rig) -> None:
    names = [f"a{number}" for number in range(600)]
    for letter in bury(rig, *names):
        assert redrive(rig.link, rig.queue, letter)
    assert rig.ready() == names
    assert ids(rig.get("alice", room=600)) == names


def test_markers_are_left_alone(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("a", Placement(unique=True, dedupe_key="k"))
    rig.commit("alice", *(Buried(delivery, "failed", {}, b"", 0) for delivery in rig.get("alice")))
    (letter,) = dead_letters(rig.link, rig.queue)
    assert redrive(rig.link, rig.queue, letter)
    assert rig.enqueue("a", Placement(unique=True)) == ("duplicate", "a")
    assert rig.enqueue("b", Placement(dedupe_key="k")) == ("duplicate", "a")


def test_a_revocation_of_what_was_dead_already_is_forgotten(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *(Buried(delivery, "failed", {}, b"", 0) for delivery in rig.get("alice")))
    rig.link.run_one(rig.queue.revoke_call(["a"], True))
    (letter,) = dead_letters(rig.link, rig.queue)
    assert redrive(rig.link, rig.queue, letter)
    (delivery,) = rig.get("alice")
    assert not delivery.revoked
    assert "revoked" not in rig.snapshot()


@pytest.mark.parametrize("until", ["done", "started"])
def test_it_asks_for_its_dedupe_key(rig: Rig, until: str) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until=until, replaces=True)
    rig.enqueue("a", rule)
    rig.commit("alice", *(Buried(delivery, "failed", {}, b"", 0) for delivery in rig.get("alice")))
    assert rig.enqueue("b", rule) == ("accepted", "b"), "it ended with the first one"
    (letter,) = dead_letters(rig.link, rig.queue)
    before = rig.dumps()
    with pytest.raises(DuplicateCall) as error:
        redrive(rig.link, rig.queue, letter)
    assert error.value.task_id == "b"
    assert rig.dumps() == before
    rig.commit("alice", *map(completed, rig.get("alice")))
    assert redrive(rig.link, rig.queue, letter)
    assert rig.enqueue("c", rule, body=b"newest") == ("replaced", "a"), "it has its key again, with all its rules"
    (a,) = rig.get("alice")
    assert rig.begin("alice", a, Rules()).newer == (1, "tests.task", b"newest", b"")
    rig.commit("alice", completed(a))
    assert rig.enqueue("d", rule) == ("accepted", "d")


def test_it_does_not_double_a_call_that_is_delayed_under_its_id(rig: Rig) -> None:
    (letter,) = bury(rig, "a")
    assert rig.enqueue("a", Placement(delay_ms=HOUR_MS)) == ("accepted", "a")
    before = rig.dumps()
    with pytest.raises(DuplicateCall):
        redrive(rig.link, rig.queue, letter)
    assert rig.dumps() == before


def test_what_was_no_message_stays(rig: Rig) -> None:
    rig.hire("alice")
    rig.redis.xadd(rig.keys.stream(), {"x": "y"})
    rig.commit("alice", *(Buried(delivery, "undecodable", {}, b"", 0) for delivery in rig.get("alice")))
    (letter,) = dead_letters(rig.link, rig.queue)
    before = rig.dumps()
    with pytest.raises(DecodeError):
        redrive(rig.link, rig.queue, letter)
    assert rig.dumps() == before


def test_after_a_flush(rig: Rig) -> None:
    (letter,) = bury(rig, "a")
    rig.redis.flushall()
    assert not redrive(rig.link, rig.queue, letter)
    assert rig.dumps() == {}


def test_it_needs_no_worker(rig: Rig) -> None:
    (letter,) = bury(rig, "a")
    rig.retire("alice")
    redrive(rig.link, rig.queue, letter)
    assert rig.ready() == ["a"]
    assert "consumers" not in rig.snapshot()
    rig.hire("bob")
    assert ids(rig.get("bob")) == ["a"]
    assert rig.snapshot()["consumers"] == {"bob": FAR}
