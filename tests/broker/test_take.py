"""take.lua: the acknowledgement before the body starts, and the token by which its outcome is known."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.broker.worker_queue import LOST, LOST_TTL_MS
from rsq.calls.message import Delivery
from rsq.calls.outcome import Retried
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
