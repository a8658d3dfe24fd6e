"""register.lua: a consumer begins."""

from __future__ import annotations

from typing import Any

import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Link
from rsq.broker.queue import QueueMoved
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import BrokerRefused
from tests.broker.conftest import FAR, HOUR_MS, Rig, entry, ids


def test_a_lease_and_a_group(rig: Rig) -> None:
    with rig.span() as span:
        assert rig.run(scripts.REGISTER, "alice", HOUR_MS) == span.plus(0)
    assert rig.snapshot() == {"consumers": {"alice": span.plus(HOUR_MS)}}
    assert [group["name"] for group in rig.redis.xinfo_groups(rig.keys.stream())] == [keys.GROUP.encode()]


def test_nobody_registers_where_a_queue_does_not_lie_any_more(rig: Rig, link: Link, queue: WorkerQueue) -> None:
    assert rig.run(scripts.VACATE) == b"moved"
    with pytest.raises(QueueMoved, match="another partition"):
        queue.register(link, "alice")
    assert rig.snapshot() == {"paused": "moved"}


def test_twice_is_a_longer_lease(rig: Rig) -> None:
    rig.run(scripts.REGISTER, "alice", 1)
    rig.add("a")
    with rig.span() as span:
        rig.run(scripts.REGISTER, "alice", HOUR_MS)
    assert rig.snapshot() == {"consumers": {"alice": span.plus(HOUR_MS)}, "stream": [entry("a")]}
    assert ids(rig.get("alice")) == ["a"]


def test_what_was_sent_before_the_first_worker_is_not_missed(rig: Rig) -> None:
    rig.add("a")
    rig.add("u", priority=9)
    rig.hire("alice")
    assert ids(rig.get("alice")) == ["u", "a"]


def test_others_are_left_alone(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.get("alice")
    before = rig.snapshot()
    rig.hire("bob")
    assert rig.snapshot() == {**before, "consumers": {"alice": FAR, "bob": FAR}}


def test_what_a_former_name_holds_without_a_lease_is_for_others(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", "b")
    rig.get("alice", room=1)
    before = rig.snapshot()
    rig.queue.register(rig.link, "alice2", "alice")
    rig.queue.register(rig.link, "bob2", "nobody")
    after = rig.snapshot()
    assert (after["stream pending"], "orphans" in after) == (before["stream pending"], False)
    rig.redis.zrem(rig.keys.consumers, "alice")
    rig.queue.register(rig.link, "alice3", "alice")
    assert ids(rig.get("bob")) == ["a", "b"]


def test_after_a_flush(rig: Rig) -> None:
    rig.hire("alice")
    rig.redis.flushall()
    rig.hire("alice")
    assert rig.snapshot() == {"consumers": {"alice": FAR}}
    rig.add("a")
    assert ids(rig.get("alice")) == ["a"]


def test_a_group_that_was_destroyed_is_made_again_from_the_start(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.redis.xgroup_destroy(rig.keys.stream(), keys.GROUP)
    rig.hire("bob")
    assert ids(rig.get("bob")) == ["a"]


def test_a_stream_that_is_none_is_said(rig: Rig, redis: Any) -> None:
    redis.set(rig.keys.stream(), "", px=HOUR_MS)
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        rig.run(scripts.REGISTER, "alice", HOUR_MS)
    assert not redis.exists(rig.keys.consumers)
