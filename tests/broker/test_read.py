"""The plain read of a busy worker: new messages, and whether there is more to be looked at."""

from __future__ import annotations

import pytest

from rsq import keys
from rsq.errors import BrokerError
from tests.broker.conftest import Rig, ids


def test_it_takes_new_messages_in_order_and_leaves_the_rest(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    assert rig.get("alice", room=1) != []
    deliveries, wakes, plain = rig.queue.read(rig.link, "alice", 1)
    assert (ids(deliveries), wakes, plain) == (["b"], [], True)
    assert ids(rig.queue.read(rig.link, "alice", 9)[0]) == ["c"]
    assert rig.queue.read(rig.link, "alice", 9) == ([], [], True)
    assert rig.snapshot()["stream pending"] == dict.fromkeys("abc", ("alice", 1))


def test_urgent_messages_and_a_pause_are_noticed(rig: Rig) -> None:
    rig.hire("alice")
    rig.get("alice")
    rig.add("urgent", priority=3)
    assert rig.queue.read(rig.link, "alice", 9) == ([], [], False)
    assert ids(rig.get("alice")) == ["urgent"]
    rig.redis.delete(rig.keys.stream(3))
    assert rig.queue.read(rig.link, "alice", 9)[2]
    rig.redis.set(rig.keys.paused, "")
    assert not rig.queue.read(rig.link, "alice", 9)[2]


def test_an_entry_without_a_call_is_told_apart(rig: Rig) -> None:
    rig.hire("alice")
    rig.get("alice")
    entry_id = rig.redis.xadd(rig.keys.stream(), {"wake": ""})
    assert rig.queue.read(rig.link, "alice", 9) == ([], [entry_id], True)


def test_without_its_group_it_fails_as_a_fault(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.redis.xgroup_destroy(rig.keys.stream(), keys.GROUP)
    with pytest.raises(BrokerError, match="NOGROUP"):
        rig.queue.read(rig.link, "alice", 9)
    assert ids(rig.get("alice")) == ["a"]
