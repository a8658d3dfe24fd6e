"""take.lua: the acknowledgement before the body starts, and the token by which its outcome is known."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.broker.worker_queue import LOST, LOST_TTL_MS
from rsq.calls.message import Delivery
from rsq.calls.outcome import Retried, unpack_result
from rsq.errors import LeaseLost
from tests.broker.conftest import FAR, HOUR_MS, ODD_IDS, Rig, completed, entry, ids, text


def delivered(rig: Rig, task_id: str = "a", priority: int = 0) -> Delivery:
    rig.hire("alice")
    rig.add(task_id, priority=priority)
    (delivery,) = rig.get("alice")
    return delivery


@pytest.mark.parametrize("task_id", ODD_IDS)
@pytest.mark.parametrize("priority", [0, 5])
def test_what_is_taken_leaves_the_stream(rig: Rig, task_id: str, priority: int) -> None:
    delivery = delivered(rig, task_id, priority)
    assert rig.take("alice", delivery)
    token = f"alice {delivery.entry_id.decode()}"
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "taken:alice": {task_id},
        "calls": {task_id: {"taken": ["alice", token, text(LOST), str(LOST_TTL_MS)]}},
    }


def test_fenced(rig: Rig) -> None:
    delivery = delivered(rig)
    rig.retire("alice")
    before = rig.dumps()
    with pytest.raises(LeaseLost):
        rig.take("alice", delivery)
    assert rig.dumps() == before


def test_twice_is_one_start(rig: Rig) -> None:
    delivery = delivered(rig)
    assert rig.take("alice", delivery)
    before = rig.dumps()
    assert rig.take("alice", delivery)
    assert rig.dumps() == before


def test_twice_after_the_outcome_is_no_start(rig: Rig) -> None:
    delivery = delivered(rig)
    assert rig.take("alice", delivery)
    rig.commit("alice", completed(delivery))
    before = rig.dumps()
    assert not rig.take("alice", delivery)
    assert rig.dumps() == before


def test_only_one_of_two_takes_it(rig: Rig) -> None:
    """Both have the same entry after somebody destroyed the group."""
    delivery = delivered(rig)
    rig.hire("bob")
    rig.redis.xgroup_destroy(rig.keys.stream(), keys.GROUP)
    (again,) = rig.get("bob")
    assert again.entry_id == delivery.entry_id
    assert rig.take("bob", again)
    before = rig.dumps()
    assert not rig.take("alice", delivery)
    assert rig.commit("alice", completed(delivery, b"from alice")) == [0]
    assert rig.dumps() == before
    assert rig.commit("bob", completed(again, b"from bob")) == [1]
    assert rig.snapshot()["result:a"] == "from bob"


def test_what_was_deleted_by_hand_is_not_started(rig: Rig) -> None:
    delivery = delivered(rig)
    rig.redis.xdel(rig.keys.stream(), delivery.entry_id)
    assert not rig.take("alice", delivery)
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_what_was_flushed_is_not_started(rig: Rig) -> None:
    delivery = delivered(rig)
    rig.redis.flushall()
    rig.hire("alice")
    assert not rig.take("alice", delivery)
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_a_deleted_stream(rig: Rig) -> None:
    delivery = delivered(rig)
    rig.redis.delete(rig.keys.stream())
    assert not rig.take("alice", delivery)
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_the_next_attempt_is_taken_anew(rig: Rig) -> None:
    first = delivered(rig)
    rig.take("alice", first)
    rig.commit("alice", Retried(first, "retried", {"attempt": 2}, HOUR_MS, ""))
    rig.ripen("a")
    (second,) = rig.get("alice")
    assert rig.take("alice", second)
    assert not rig.take("alice", first)
    assert rig.snapshot()["calls"]["a"]["taken"][1] == f"alice {second.entry_id.decode()}"


def test_others_are_left_alone(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, _ = rig.get("alice")
    rig.take("alice", a)
    snapshot = rig.snapshot()
    assert snapshot["stream"] == [entry("b")]
    assert snapshot["stream pending"] == {"b": ("alice", 1)}
    assert ids(rig.get("alice")) == []


def test_a_commit_that_is_repeated_late_leaves_the_next_attempt_alone(rig: Rig) -> None:
    rig.hire("bob")
    first = delivered(rig)
    rig.take("alice", first)
    again = Retried(first, "retried", {"attempt": 2}, 0, "")
    assert rig.commit("alice", again) == [1]
    (second,) = rig.get("bob")
    assert rig.take("bob", second)
    before = rig.dumps()
    assert rig.commit("alice", again) == [0]
    assert rig.dumps() == before
    assert rig.commit("bob", completed(second)) == [1]


def test_a_worker_that_comes_back_answers_for_what_it_took(rig: Rig) -> None:
    rig.hire("bob")
    delivery = delivered(rig)
    rig.take("alice", delivery)
    rig.lapse("alice")
    rig.run(scripts.RENEW, HOUR_MS, "bob")
    assert {*rig.snapshot()["missing"]} == {"alice"}
    rig.run(scripts.REGISTER, "alice-2", HOUR_MS, "alice")
    snapshot = rig.snapshot()
    assert "missing" not in snapshot
    assert snapshot["taken:alice-2"] == {"a"}
    assert rig.commit("alice", completed(delivery)) == [1], "an outcome on its way under the old name counts"
    assert not {"calls", "taken:alice", "taken:alice-2"} & rig.snapshot().keys()


def test_what_a_worker_took_that_nobody_hears_of_is_lost_and_told(rig: Rig) -> None:
    rig.hire("bob")
    delivery = delivered(rig)
    rig.take("alice", delivery)
    with rig.pushes("a") as pushes:
        rig.miss("alice")
    assert pushes == [("a", LOST)]
    result = unpack_result(rig.redis.get(rig.keys.result("a")))
    assert result.error is not None
    assert result.error["type"] == "rsq.errors.WorkerLost"
    snapshot = rig.snapshot()
    assert snapshot["stats"] == {"lost": "1"}
    assert not {"calls", "missing", "taken:alice"} & snapshot.keys()
    assert rig.commit("alice", completed(delivery)) == [0]


def test_what_lost_its_lease_without_a_word_is_found(rig: Rig) -> None:
    """The record of the lease vanished."""
    delivery = delivered(rig)
    rig.take("alice", delivery)
    rig.redis.delete(rig.keys.consumers)
    rig.reconcile()
    assert {*rig.snapshot()["missing"]} == {"alice"}


# -- a living consumer knows nothing of what it has taken


def disclaim(rig: Rig, consumer: str, *task_ids: str) -> int:
    return int(rig.link.run_one(rig.queue.disclaim_call(consumer, task_ids)))


def test_what_is_disclaimed_is_lost_and_its_caller_told(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    first, second = rig.get("alice")
    assert rig.take("alice", first)
    assert rig.take("alice", second)
    with rig.pushes("a") as pushed:
        assert disclaim(rig, "alice", "a", "unknown") == 1
    assert pushed == [("a", LOST)]
    assert rig.snapshot()["taken:alice"] == {"b"}
    assert rig.redis.hget(rig.keys.stats, "lost") == b"1"
    assert disclaim(rig, "alice", "a") == 0
    assert rig.commit("alice", completed(first)) == [0]
    assert rig.commit("alice", completed(second)) == [1]


def test_nobody_disclaims_what_another_answers_for(rig: Rig) -> None:
    delivery = delivered(rig)
    assert rig.take("alice", delivery)
    rig.hire("bob")
    before = rig.dumps()
    assert disclaim(rig, "bob", "a") == 0
    assert rig.dumps() == before
