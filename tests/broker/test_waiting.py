"""The blocking read of an idle worker: whether there is something of which its last fetch does not know."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rsq.broker.reads import REVOKED_WEIGHT, BlockingRead, Waited, signs
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.placement import Placement
from rsq.settings import Settings
from tests.broker.conftest import FAR, Rig, ids
from tests.broker.test_revoke import revoke


def reader(rig: Rig, consumer: str = "alice") -> BlockingRead:
    """As a child makes it after a fetch."""
    fetched = rig.queue.fetch(rig.link, consumer, 0)
    in_use = [] if fetched.paused else fetched.priorities
    delayed = [] if fetched.next_due_ms is None else [rig.queue.name]
    return BlockingRead(consumer, [(rig.queue, in_use)], delayed)


def wait(rig: Rig, read: BlockingRead) -> Waited:
    return read(rig.link, 9, 1)


def test_calm_as_long_as_nothing_changes(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a", priority=3)
    rig.get("alice")
    rig.enqueue("later", Placement(eta_ms=FAR))
    read = reader(rig)
    for _ in range(3):
        assert wait(rig, read) == Waited([], True, FAR)
    rig.add("b")
    waited = wait(rig, read)
    assert [ids(deliveries) for _, deliveries, _ in waited.got] == [["b"]]
    assert waited.calm


def let_orphans_be(rig: Rig) -> None:
    rig.hire("carol")
    rig.add("lost")
    rig.get("carol")
    rig.retire("carol")
    rig.get("bob", room=0)


NEWS: dict[str, Callable[[Rig], object]] = {
    "pause": lambda rig: rig.redis.set(rig.keys.paused, "pause"),
    "an urgent stream": lambda rig: rig.add("a", priority=5),
    "orphans": let_orphans_be,
    "the first delayed message": lambda rig: rig.enqueue("later", Placement(delay_ms=60_000)),
    "no consumers": lambda rig: rig.redis.delete(rig.keys.consumers),
}


@pytest.mark.parametrize("news", NEWS)
@pytest.mark.parametrize("revoked", [False, True])
def test_not_calm_after(rig: Rig, news: str, revoked: bool) -> None:
    rig.hire("alice", "bob")
    rig.get("alice")
    read = reader(rig)
    assert wait(rig, read).calm
    NEWS[news](rig)
    if revoked:
        revoke(rig, "nobody")
    assert not wait(rig, read).calm


def test_not_calm_when_the_delayed_messages_are_gone(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.enqueue("later", Placement(eta_ms=FAR))
    read = reader(rig)
    rig.ripen("later")
    assert ids(rig.get("bob")) == ["later"]
    assert wait(rig, read).calm is False
    assert wait(rig, reader(rig)).calm


def test_it_tells_when_the_head_of_the_delayed_messages_is_due(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("later", Placement(eta_ms=FAR))
    read = reader(rig)
    with rig.span() as span:
        rig.enqueue("sooner", Placement(delay_ms=5000))
    waited = wait(rig, read)
    assert waited.calm
    assert span.plus(5000) == waited.next_due_ms


def test_a_paused_queue_is_never_calm(rig: Rig) -> None:
    rig.hire("alice")
    rig.redis.set(rig.keys.paused, "pause")
    other = WorkerQueue("other", Settings())
    read = BlockingRead("alice", [(other, [0]), (rig.queue, [])])
    other.register(rig.link, "alice")
    for _ in range(2):
        assert not wait(rig, read).calm
        rig.redis.delete(rig.keys.paused)


def test_revocations_are_told_apart_from_all_else(rig: Rig) -> None:
    """A message that was revoked before it was read is marked, also when another sign goes as that one comes."""
    rig.hire("alice")
    rig.enqueue("later", Placement(eta_ms=FAR))
    read = reader(rig)
    rig.add("x", "y")
    rig.redis.delete(rig.keys.delayed, rig.keys.messages)
    revoke(rig, "y")
    (got,) = wait(rig, read).got
    assert [(delivery.id, delivery.revoked) for delivery in got[1]] == [("x", False), ("y", True)]


def test_the_weight_of_revocations_is_more_than_all_else(rig: Rig) -> None:
    looked_at = signs(rig.queue)
    assert looked_at.count(rig.keys.revoked) == REVOKED_WEIGHT
    assert len(looked_at) - REVOKED_WEIGHT < REVOKED_WEIGHT
