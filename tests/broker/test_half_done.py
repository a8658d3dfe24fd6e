"""Each command of each script fails once, and nothing half-done is left.

Under one key after the other lies something of another type. A script either refuses before it has written anything, or
does all that it is for: only a counter may be missing then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.dead_letters import DeadLetter, redrive
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Retried, revoked
from rsq.calls.placement import Placement
from rsq.errors import BrokerError
from tests.broker.conftest import HOUR_MS, Rig, completed

RULE = Placement(dedupe_key="k", dedupe_until="done", replaces=True)
LIMITS = Rules(version=("v", 1, HOUR_MS), slot=("s", 1), rate=("r", 60_000_000, 5))
LETTER = DeadLetter("1-1", "q", "dead", "tests.task", "failed", {}, 1, 0, None, b"body", b"")

KEYS = [
    *("stream", "stream:4", "delayed", "messages", "consumers", "orphans", "crashes", "overdue", "calls", "revoked"),
    *("dead", "ended", "wakes", "missing", "stats", "paused", "slots:s", "parked:s", "rate:r", "version:v"),
    *("dedupe:key:k", "taken:alice", "taken:bob", "result:a", "result:taken", "result:new"),
]


class World:
    """A queue with one call of each kind: `a` runs under all rules, `line` waits for its slot, `taken` runs, ..."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.hire("alice", "bob")
        rig.enqueue("a", RULE)
        rig.enqueue("taken", RULE.__class__(dedupe_key="t", dedupe_until="done"))
        rig.add("line")
        self.a, self.taken, line = rig.get("alice")
        rig.begin("alice", self.a, LIMITS)
        rig.begin("alice", self.taken, Rules(version=("w", 1, HOUR_MS)))
        rig.take("alice", self.taken)
        rig.commit("alice", Retried(line, "limited", {}, HOUR_MS, "", ("s", 1)))
        rig.add("plain")
        (self.plain,) = rig.get("bob")
        rig.add("waits")
        rig.link.run_one(rig.queue.revoke_call(["unknown"], False))
        rig.redis.hset(rig.keys.crashes, "a", "1 signal SIGKILL")
        rig.redis.hset(rig.keys.overdue, "a", "2.5")
        rig.redis.xadd(
            rig.keys.dead,
            {"id": "dead", "task": "tests.task", "body": "body", "meta": "", "priority": 0, "error": "", "reason": ""},
            id="1-1",
        )

    def has(self, name: str) -> bool:
        """Whether the stream holds this call, where it is one."""
        return self.rig.redis.type(self.rig.keys.stream()) != b"stream" or name in self.rig.ready()


def commits(*verdicts: Callable[[World], Any]) -> Callable[[World], object]:
    return lambda world: world.rig.commit("alice", *(verdict(world) for verdict in verdicts))


def gone(name: str) -> Callable[[World], bool]:
    return lambda world: not (world.has(name) and world.rig.redis.type(world.rig.keys.stream()) == b"stream")


def enqueued(world: World) -> bool:
    return world.has("new")


def retries(world: World, delivery: Delivery) -> Retried:
    return Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "")


SCRIPTS: dict[str, tuple[Callable[[World], object], Callable[[World], bool]]] = {
    "complete": (commits(lambda w: completed(w.a)), gone("a")),
    "complete silently": (commits(lambda w: completed(w.a, b"")), gone("a")),
    "complete taken": (commits(lambda w: completed(w.taken)), gone("taken")),
    "complete revoked": (commits(lambda w: revoked(w.a)), gone("a")),
    "retry": (commits(lambda w: retries(w, w.a)), gone("a")),
    "retry taken": (commits(lambda w: retries(w, w.taken)), gone("taken")),
    "park": (commits(lambda w: Retried(w.a, "limited", {}, HOUR_MS, "", ("s", 1))), gone("a")),
    "bury": (commits(lambda w: Buried(w.a, "failed", {}, b"error", HOUR_MS)), gone("a")),
    "bury silently": (commits(lambda w: Buried(w.a, "failed", {}, b"", 0)), gone("a")),
    "take": (lambda w: w.rig.take("alice", w.a), gone("a")),
    "begin": (lambda w: w.rig.begin("bob", w.plain, Rules(slot=("t", 1), rate=LIMITS.rate)), lambda w: True),
    "begin again": (lambda w: w.rig.begin("alice", w.a, LIMITS), lambda w: True),
    "enqueue": (lambda w: w.rig.enqueue("new", Placement(unique=True, max_length=1000)), enqueued),
    "enqueue urgently": (lambda w: w.rig.enqueue("new", priority=4), lambda w: True),
    "enqueue a key": (lambda w: w.rig.enqueue("new", Placement(dedupe_key="n", replaces=True)), enqueued),
    "enqueue a duplicate": (lambda w: w.rig.enqueue("new", RULE), lambda w: True),
    "delay": (lambda w: w.rig.enqueue("new", Placement(unique=True, delay_ms=10)), lambda w: True),
    "revoke": (lambda w: w.rig.link.run_one(w.rig.queue.revoke_call(["line", "a"], True)), lambda w: True),
    "redrive": (lambda w: redrive(w.rig.link, w.rig.queue, LETTER), lambda w: w.has("dead")),
    "purge": (lambda w: w.rig.run(scripts.PURGE, 1000), gone("waits")),
}


def differences(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> set[bytes]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_all_or_nothing(rig: Rig, name: str) -> None:
    act, is_done = SCRIPTS[name]
    refused = 0
    for suffix in KEYS:
        rig.redis.flushall()
        world = World(rig)
        wrong = f"{rig.keys.prefix}:{suffix}"
        rig.redis.delete(wrong)
        rig.redis.rpush(wrong, "of another kind")
        before = rig.dumps()
        try:
            act(world)
        except BrokerError:
            refused += 1
            assert differences(before, rig.dumps()) == set(), f"{name} began, and failed at {suffix}"
        else:
            assert is_done(world), f"{name} did not end with {suffix}"
    rig.redis.flushall()
    assert refused, "nothing was refused: does it look at anything?"
