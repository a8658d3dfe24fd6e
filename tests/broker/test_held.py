"""All that a call can hold at once, and that it is gone however the call ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rsq.broker import scripts
from rsq.broker.queue_control import purge
from rsq.broker.replies import Begin
from rsq.broker.rows import Fed
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Released, Retried, revoked
from rsq.calls.placement import Placement
from rsq.states import ENDINGS
from tests.broker.conftest import FAR, HOUR_MS, Rig, completed

RULES = Rules(version=("v", 1, HOUR_MS), slot=("s", 1), rate=("r", 60_000_000, 5))
KEPT = {"consumers", "stats", "dead", "orphans"}
"""Keys without a TTL that a queue keeps."""


def succeeds(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", completed(delivery))


def dies(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    rig.ripen("a")
    (again,) = rig.get("alice")
    assert rig.begin("alice", again, RULES, 1) == Begin("go")
    rig.commit("alice", Buried(again, "failed", {}, b"", 0))


def ignores(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Completed(delivery, "ignored", b"", 0))


def expires(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Completed(delivery, "expired", b"", 0))


def is_superseded(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Completed(delivery, "superseded", b"old", HOUR_MS))


def is_revoked_running(rig: Rig, delivery: Delivery) -> None:
    rig.link.run_one(rig.queue.revoke_call(["a"], True))
    rig.commit("alice", revoked(delivery))


def is_revoked_between_two_attempts(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "failed"))
    assert rig.link.run_one(rig.queue.revoke_call(["a"], False)) == [b"revoked"]


def is_purged_after_it_was_handed_back(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Released(delivery))
    assert purge(rig.link, rig.queue) == 1


def is_purged_while_it_waits_for_its_slot(rig: Rig, delivery: Delivery) -> None:
    rig.commit("alice", Retried(delivery, "deferred", {}, HOUR_MS, "limited", ("s", 1)))
    assert purge(rig.link, rig.queue) == 1


def crashes(rig: Rig, delivery: Delivery) -> None:
    rig.retire("alice", delivery)
    rig.hire("bob")
    (again,) = rig.get("bob")
    assert again.crashes == 1
    rig.commit("bob", Buried(again, "worker-lost", {}, b"", 0))


def is_revoked_after_a_crash(rig: Rig, delivery: Delivery) -> None:
    rig.link.run_one(rig.queue.revoke_call(["a"], True))
    rig.retire("alice", delivery)
    rig.hire("bob")
    (again,) = rig.get("bob")
    assert (again.crashes, again.revoked) == (1, True)
    rig.commit("bob", revoked(again))


def is_lost(rig: Rig, delivery: Delivery) -> None:
    rig.take("alice", delivery)
    rig.retire("alice", delivery)


def is_lost_with_its_host(rig: Rig, delivery: Delivery) -> None:
    rig.take("alice", delivery)
    rig.miss("alice")


WAYS: dict[Callable[[Rig, Delivery], None], str] = {
    succeeds: "succeeded",
    dies: "dead",
    ignores: "ignored",
    expires: "expired",
    is_superseded: "superseded",
    is_revoked_running: "revoked",
    is_revoked_between_two_attempts: "revoked",
    is_purged_after_it_was_handed_back: "purged",
    is_purged_while_it_waits_for_its_slot: "purged",
    crashes: "dead",
    is_revoked_after_a_crash: "revoked",
    is_lost: "lost",
    is_lost_with_its_host: "lost",
}


def test_each_way_is_tried() -> None:
    assert set(WAYS.values()) == set(ENDINGS)


@pytest.mark.parametrize("until", ["ttl", "done", "started"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_left_however_it_ends(rig: Rig, way: Callable[[Rig, Delivery], None], until: str) -> None:
    rig.hire("alice")
    rule = Placement(dedupe_key="k", dedupe_until=until, replaces=True)
    rig.enqueue("a", rule, body=b"old")
    assert rig.enqueue("b", rule, body=b"newest") == ("replaced", "a")
    (delivery,) = rig.get("alice")
    assert rig.begin("alice", delivery, RULES, 1) == Begin("go")
    assert {"calls", "slots:s"} <= rig.snapshot().keys()
    way(rig, delivery)
    assert set(ENDINGS) & rig.snapshot()["stats"].keys() == {WAYS[way]}
    left = {name for name in rig.snapshot() if rig.ttl_ms(name) < 0 and "strays" not in name}
    assert left <= KEPT | {"stream"}, left
    assert "a" not in rig.ready()
    # The key is free again, unless it was to be kept, and so is the slot.
    assert rig.enqueue("c", rule)[0] == ("duplicate" if until == "ttl" else "accepted")
    rig.redis.zadd(rig.keys.consumers, {"carol": FAR})
    assert rig.begin("carol", "d", RULES).word == "go"
    rig.redis.flushall()  # what `c` and `d` hold now is not told by any entry


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_id_of_an_event_is_free_only_where_that_never_ran(rig: Rig, way: Callable[[Rig, Delivery], None]) -> None:
    rig.hire("alice")
    event = Fed(b"a", b"body", b"", "k")
    rig.run(scripts.FEED, "g:events", "me", HOUR_MS, 100, HOUR_MS, 1, 0, 0, "tests.task", "", "5-0", *event)
    (delivery,) = rig.get("alice")
    assert rig.begin("alice", delivery, RULES) == Begin("go")
    way(rig, delivery)
    kept = WAYS[way] not in ("revoked", "purged", "expired")
    assert (0 < rig.ttl_ms("dedupe:key:k") <= HOUR_MS) == kept
    left = {name for name in rig.snapshot() if rig.ttl_ms(name) < 0 and "strays" not in name}
    assert left <= KEPT | {"stream", "sources"}, left
