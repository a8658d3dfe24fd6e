"""Each command of each script fails once, and nothing half-done is left.

Under one key after the other lies something of another type. A script either refuses before it has written anything, or
does all that it is for: only a counter may be missing then. Those that see to a queue (they fetch, renew, hand on) may
have begun; once the key is mended they go on, and no call is lost, there twice, or stranded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from rsq.broker import scripts
from rsq.broker.dead_letters import DeadLetter, redrive
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Released, Retried, revoked
from rsq.calls.placement import Placement
from rsq.errors import BrokerError
from rsq.keys import GROUP, BeatKeys
from tests.broker.conftest import HOUR_MS, Rig, completed

RULE = Placement(dedupe_key="k", dedupe_until="done", replaces=True)
LIMITS = Rules(version=("v", 1, HOUR_MS), slot=("s", 1), rate=("r", 60_000_000, 5))
LETTER = DeadLetter("1-1", "q", "dead", "tests.task", "failed", {}, 1, 0, None, b"body", b"")

BEAT = BeatKeys("rsq").prefix
KEYS = [
    *("stream", "stream:4", "delayed", "messages", "consumers", "orphans", "crashes", "overdue", "calls", "revoked"),
    *("dead", "ended", "wakes", "missing", "stats", "paused", "slots:s", "parked:s", "rate:r", "version:v"),
    *("dedupe:key:k", "taken:alice", "taken:bob", "taken:carol", "result:a", "result:taken", "result:new"),
    *("dedupe:key:f", "fired:s", "heard", "reconciled", "window"),
]
BEAT_KEYS = [f"{BEAT}:{name}" for name in ("schedules", "due", "last", "version")]


class World:
    """A queue with one call of each kind: `a` runs under all rules, `line` waits for its slot, `taken` runs, ..."""

    CALLS = ("a", "taken", "line", "plain", "waits", "due", "orphaned", "dead")

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
        rig.add("orphaned")
        rig.link.run_one(rig.queue.revoke_call(["unknown"], False))
        rig.redis.hset(rig.keys.crashes, "a", "1 signal SIGKILL")
        rig.redis.hset(rig.keys.overdue, "a", "2.5")
        rig.redis.xadd(
            rig.keys.dead,
            {"id": "dead", "task": "tests.task", "body": "body", "meta": "", "priority": 0, "error": "", "reason": ""},
            id="1-1",
        )
        rig.hire("carol", "dora")
        (self.orphaned,) = rig.get("carol", 1)
        self.wake = rig.redis.xadd(rig.keys.stream(), {"wake": ""})
        rig.redis.xreadgroup(GROUP, "dora", {rig.keys.stream(): ">"})
        rig.redis.sadd(f"{rig.keys.prefix}:wakes", self.wake)
        rig.add("waits")
        rig.lapse("carol")
        rig.enqueue("due", Placement(delay_ms=HOUR_MS))
        rig.ripen("due")
        for name, number in (("s", 5), ("t", 6)):
            rig.redis.hset(f"{BEAT}:schedules", name, f"{number}:record")
            rig.redis.hset(f"{BEAT}:last", name, f"1 q {name}")
            rig.redis.zadd(f"{BEAT}:due", {name: 1})
        rig.redis.set(f"{BEAT}:version", 6)
        rig.redis.set(rig.keys.fired("s"), "4 1000")

    def has(self, name: str) -> bool:
        """Whether the stream holds this call, where it is one."""
        return self.rig.redis.type(self.rig.keys.stream()) != b"stream" or name in self.rig.ready()

    def where(self) -> Counter[str]:
        """In how many places each call is."""
        server, keys = self.rig.redis, self.rig.keys
        found = [fields.get(b"id") for priority in range(10) for _, fields in server.xrange(keys.stream(priority))]
        found += server.hkeys(keys.messages) + [fields[b"id"] for _, fields in server.xrange(keys.dead)]
        for name in server.scan_iter(f"{keys.prefix}:taken:*"):
            found += server.smembers(name)
        found += [name.rpartition(b":")[2] for name in server.scan_iter(f"{keys.prefix}:result:*")]
        return Counter(each.decode() for each in found if each)

    def stranded(self) -> set[bytes]:
        """Those that hold entries and are neither known to live nor to be dead."""
        server, keys = self.rig.redis, self.rig.keys
        holders = {row["consumer"] for row in server.xpending_range(keys.stream(), GROUP, "-", "+", 1000)}
        known: set[bytes] = {*server.zrange(keys.consumers, 0, -1), *server.smembers(keys.orphans)}
        return holders - known


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
    "release": (commits(lambda w: Released(w.a)), lambda w: holder(w, "a") in (None, b"released")),
    "drop_wakes": (
        lambda w: w.rig.link.run_one(w.rig.queue.drop_wakes_call("dora", [w.wake])),
        lambda w: holder(w, "a") is None or not w.rig.redis.xrange(w.rig.keys.stream(), w.wake, w.wake),
    ),
    "fire": (lambda w: fire(w, 2000, "new"), enqueued),
    "fire a key": (lambda w: fire(w, 2000, "new", "f"), enqueued),
    "fire a duplicate": (lambda w: fire(w, 2000, "new", "k"), lambda w: True),
    "hand_over": (lambda w: w.rig.run(scripts.HAND_OVER, "s", 5, HOUR_MS), lambda w: True),
    "advance": (
        lambda w: w.rig.link.run(scripts.ADVANCE, BEAT, "s", 5, 2000, "2 q x", "t", 6, 3000, "3 q y"),
        lambda w: w.rig.redis.zrange(f"{BEAT}:due", 0, -1, withscores=True) == [(b"s", 2000), (b"t", 3000)],
    ),
    "define": (
        lambda w: w.rig.link.run(scripts.DEFINE, BEAT, "s", 5, "record", 5000),
        lambda w: w.rig.redis.zscore(f"{BEAT}:due", "s") == 5000,
    ),
    "define nothing": (
        lambda w: w.rig.link.run(scripts.DEFINE, BEAT, "s", 5, "", ""),
        lambda w: w.rig.redis.zscore(f"{BEAT}:due", "s") is None,
    ),
}

UPKEEP: dict[str, Callable[[World], object]] = {
    "fetch": lambda w: w.rig.fetch("bob"),
    "fetch without room": lambda w: w.rig.fetch("bob", 0),
    "renew": lambda w: w.rig.run(scripts.RENEW, HOUR_MS, "alice", "bob"),
    "renew, and one is missing": lambda w: (
        w.rig.redis.zadd(f"{w.rig.keys.prefix}:missing", {"alice": 1}),
        w.rig.run(scripts.RENEW, HOUR_MS, "bob"),
    ),
    "register": lambda w: w.rig.run(scripts.REGISTER, "erin", HOUR_MS),
    "register anew": lambda w: (
        w.rig.redis.zrem(w.rig.keys.consumers, "alice"),
        w.rig.run(scripts.REGISTER, "alice2", HOUR_MS, "alice"),
    ),
    "reconcile": lambda w: (
        w.rig.redis.zrem(w.rig.keys.consumers, "alice"),
        w.rig.redis.delete(f"{w.rig.keys.prefix}:reconciled"),
        w.rig.run(scripts.RECONCILE, 0, HOUR_MS),
    ),
    "retire": lambda w: w.rig.retire("alice", w.a, w.taken),
    "retire one that was killed": lambda w: w.rig.retire("alice", overdue=[w.a]),
    "retire one that has left": lambda w: w.rig.retire("bob", how=""),
}


def fire(world: World, slot_ms: int, task_id: str, key: str = "") -> object:
    call = (task_id, "tests.task", b"body", b"", 0, 0, 0, key, HOUR_MS, "done" if key else "", int(bool(key)))
    return world.rig.run(scripts.FIRE, "s", 5, 0, slot_ms, *call)


def holder(world: World, name: str) -> bytes | None:
    """Who holds this call; None where there is no stream."""
    server, stream = world.rig.redis, world.rig.keys.stream()
    if server.type(stream) != b"stream":
        return None
    ids = {entry_id for entry_id, fields in server.xrange(stream) if fields.get(b"id") == name.encode()}
    rows = server.xpending_range(stream, GROUP, "-", "+", 1000)
    return next((row["consumer"] for row in rows if row["message_id"] in ids), b"")


def differences(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> set[bytes]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_all_or_nothing(rig: Rig, name: str) -> None:
    act, is_done = SCRIPTS[name]
    refused = 0
    for wrong in [*(f"{rig.keys.prefix}:{suffix}" for suffix in KEYS), *BEAT_KEYS]:
        rig.redis.flushall()
        world = World(rig)
        rig.redis.delete(wrong)
        rig.redis.rpush(wrong, "of another kind")
        before = rig.dumps()
        try:
            act(world)
        except BrokerError:
            refused += 1
            assert differences(before, rig.dumps()) == set(), f"{name} began, and failed at {wrong}"
        else:
            assert is_done(world), f"{name} did not end with {wrong}"
    rig.redis.flushall()
    assert refused, "nothing was refused: does it look at anything?"


@pytest.mark.parametrize("name", UPKEEP)
def test_it_goes_on_when_the_key_is_mended(rig: Rig, name: str) -> None:
    refused = 0
    for suffix in KEYS:
        rig.redis.flushall()
        world = World(rig)
        wrong = f"{rig.keys.prefix}:{suffix}"
        kept = rig.redis.dump(wrong)
        rig.redis.delete(wrong)
        rig.redis.rpush(wrong, "of another kind")
        try:
            UPKEEP[name](world)
        except (BrokerError, redis.ResponseError):
            refused += 1
        if rig.redis.type(wrong) == b"list":  # else it was written whole
            rig.redis.delete(wrong)
            if kept is not None:
                rig.redis.restore(wrong, 0, kept)
        UPKEEP[name](world)
        assert world.where() == dict.fromkeys(World.CALLS, 1), f"{name}, {suffix}"
        assert world.stranded() == set(), f"{name}, {suffix}"
    rig.redis.flushall()
    assert refused, "nothing was refused: does it look at anything?"
