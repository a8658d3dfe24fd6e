"""The scripts in any order, against a model: each call is in exactly one place, and its outcome is written once.

How long and how far it looks, see `tests.broker.models`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rsq import keys
from rsq.broker import scripts
from rsq.broker.dead_letters import dead_letter, redrive
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Released, Retried, Verdict, revoked
from rsq.calls.placement import Placement
from rsq.errors import LeaseLost
from tests.broker.conftest import HOUR_MS, Rig, adopt, text
from tests.broker.models import keep_to

PRIORITIES = (0, 4)
KEYS = ("", "", "k1", "k2")
MOST_CONSUMERS = 8
REPEATABLE_S = 10
"""A producer may repeat for longer than this, but the model does not: no test depends on how fast it is."""

VERDICTS = (
    "complete",
    "complete silently",
    "revoke",
    "retry",
    "retry at once",
    "defer",
    "bury",
    "bury silently",
    "release",
)


@dataclass
class Call:
    """What should be known of one call.

    place    ready | delayed | running | taken | done | dead | gone (purged)
    owner    consumer in whose pending list it is or, once taken, whose token it has; '' = none
    entry    its delivery under that owner
    silent   it ended without a result
    revoked  it ended as one that was revoked before it had run
    """

    id: str
    priority: int
    place: str = "ready"
    owner: str = ""
    entry: Delivery | None = None
    attempt: int = 1
    deliveries: int = 0
    crashes: int = 0
    silent: bool = False
    revoked: bool = False
    ended_at: float = 0.0

    def end(self, place: str, silent: bool = False, revoked: bool = False) -> None:
        self.place, self.silent, self.revoked, self.ended_at = place, silent, revoked, time.monotonic()
        self.owner, self.entry, self.crashes, self.deliveries = "", None, 0, 0


@dataclass
class Worker:
    """A consumer. `held` are its deliveries, also after it was unregistered: the dead may still try."""

    registered: bool = True
    lapsed: bool = False
    held: list[Delivery] = field(default_factory=list)


def place_of(delivery: Delivery) -> tuple[int, bytes]:
    """Stream and entry: what names a delivery within its queue."""
    return delivery.priority, delivery.entry_id


class Machine(RuleBasedStateMachine):
    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig = rig
        self.calls: dict[str, Call] = {}
        self.workers: dict[str, Worker] = {}
        self.counters: Counter[str] = Counter()
        self.winners: dict[str, str] = {}
        self.marks: dict[str, set[str]] = {"revoked": set(), "terminate": set()}
        self.paused = False
        self.commits: list[tuple[str, list[Verdict]]] = []
        self.retirements: list[tuple[str, list[Delivery]]] = []

    # -- helpers

    def at(self, *places: str) -> list[Call]:
        return [call for call in self.calls.values() if call.place in places]

    def registered(self) -> list[str]:
        return [name for name, worker in self.workers.items() if worker.registered]

    def new_id(self) -> str:
        return f"c{len(self.calls)}"

    def owns(self, name: str, delivery: Delivery) -> bool:
        """Whether this very delivery is still the consumer's, by the server's books."""
        call = self.calls[delivery.id]
        return call.owner == name and call.entry is not None and place_of(call.entry) == place_of(delivery)

    def unregister(self, name: str) -> None:
        self.workers[name].registered = False
        for call in self.at("running"):
            if call.owner == name:
                call.place = "ready"

    def notice_lapsed(self) -> None:
        """What every fetch does first, and every renewal last."""
        for name in self.registered():
            if self.workers[name].lapsed:
                self.unregister(name)

    def forget_marks(self, call: Call) -> None:
        for marked in self.marks.values():
            marked.discard(call.id)

    # -- producers

    @initialize()
    def begin(self) -> None:
        self.rig.redis.flushall()
        self.hire()
        self.hire()
        self.add(PRIORITIES[0], 3)

    @rule(priority=st.sampled_from(PRIORITIES), number=st.integers(1, 4))
    def add(self, priority: int, number: int) -> None:
        for _ in range(number):
            call = Call(self.new_id(), priority)
            self.calls[call.id] = call
            self.rig.add(call.id, priority=priority)

    @rule(
        priority=st.sampled_from(PRIORITIES),
        key=st.sampled_from(KEYS),
        delayed=st.booleans(),
        unique=st.booleans(),
        spare=st.sampled_from([None, 0, 1]),
        repeated=st.booleans(),
    )
    def enqueue(self, priority: int, key: str, delayed: bool, unique: bool, spare: int | None, repeated: bool) -> None:
        """`spare`: how many messages the queue may take before it is full; `repeated`: the first try was lost."""
        call = Call(self.new_id(), priority, "delayed" if delayed else "ready")
        held = len(self.at("ready", "delayed", "running"))
        placement = Placement(
            delay_ms=HOUR_MS if delayed else None,
            max_length=0 if spare is None else held + spare,
            unique=unique,
            dedupe_key=key,
        )
        answer = self.rig.enqueue(call.id, placement, priority=priority, since_ms=10_000 if repeated else None)
        if key in self.winners:
            assert answer == ("duplicate", self.winners[key])
        elif spare == 0 and held:  # a bound of 0 is none
            assert answer == ("full", held)
        else:
            assert answer == ("accepted", call.id)
            self.calls[call.id] = call
            if key:
                self.winners[key] = call.id

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def repeat_enqueue(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from([*self.calls.values()]))
        forgotten = call.silent and time.monotonic() > call.ended_at + REPEATABLE_S
        if call.place != "gone" and not forgotten:
            answer = self.rig.enqueue(call.id, priority=call.priority, since_ms=10_000)
            assert answer == ("accepted", call.id)

    # -- workers

    @precondition(lambda self: len(self.registered()) < MOST_CONSUMERS)
    @rule()
    def hire(self) -> None:
        name = f"w{len(self.workers)}"
        self.rig.hire(name)
        self.workers[name] = Worker()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), room=st.integers(0, 6), lost=st.booleans())
    def fetch(self, data: st.DataObject, room: int, lost: bool) -> None:
        """`lost`: the reply does not arrive, and the worker looks into its pending list."""
        self.fetch_as(data.draw(st.sampled_from([*self.workers])), room, lost)

    @precondition(lambda self: self.registered())
    @rule(data=st.data(), room=st.integers(1, 6), number=st.integers(0, 3))
    def work(self, data: st.DataObject, room: int, number: int) -> None:
        """Most of what happens: a living worker takes what is there. All else needs that it holds something."""
        if number:
            self.add(data.draw(st.sampled_from(PRIORITIES)), number)
        self.fetch_as(data.draw(st.sampled_from(self.registered())), room)

    @precondition(lambda self: len(self.registered()) > 1)
    @rule(data=st.data())
    def pass_on(self, data: st.DataObject) -> None:
        """A worker leaves, or dies, and another one takes what it held."""
        gone, heir = data.draw(st.permutations(self.registered()))[:2]
        self.leave(data, gone)
        self.fetch_as(heir, 6)

    def fetch_as(self, name: str, room: int, lost: bool = False) -> None:
        worker = self.workers[name]
        self.notice_lapsed()
        if not worker.registered:
            with pytest.raises(LeaseLost):
                self.rig.fetch(name, room)
            return
        for call in self.at("delayed"):
            if self.rig.redis.zscore(self.rig.keys.delayed, call.id) <= self.rig.now_ms():
                call.place = "ready"
        fetched = self.rig.fetch(name, room)
        if fetched.wakes:
            self.rig.link.run_one(self.rig.queue.drop_wakes_call(name, fetched.wakes))
        assert fetched.paused == self.paused
        assert len(fetched.deliveries) + len(fetched.wakes) <= room
        for delivery in fetched.deliveries:
            call = self.calls[delivery.id]
            assert call.place == "ready"
            call.deliveries += 1
            assert (delivery.priority, delivery.attempt) == (call.priority, call.attempt)
            assert delivery.deliveries == call.deliveries
            assert delivery.crashes == (call.crashes if call.owner else 0)
            assert delivery.revoked == (call.id in self.marks["revoked"])
            call.place, call.owner, call.entry = "running", name, delivery
        if not self.paused and len(fetched.deliveries) + len(fetched.wakes) < room:
            assert not self.at("ready")
        got = fetched.deliveries
        if lost:
            got = self.adopt(name, fetched.priorities)
            assert {*map(place_of, got)} == {*map(place_of, fetched.deliveries)}
            assert all(delivery.revoked == (delivery.id in self.marks["revoked"]) for delivery in got)
        for delivery in got:
            delivery.consumer = name
        worker.held += got

    def adopt(self, name: str, priorities: Iterable[int]) -> list[Delivery]:
        """What the consumer was given and does not hold."""
        found: list[Delivery] = []
        for priority in priorities:
            # Entries of two streams may bear the same id.
            known = {held.entry_id for held in self.workers[name].held if held.priority == priority}
            deliveries, wakes = adopt(self.rig.link, self.rig.queue, name, known, [priority])
            assert not wakes
            found += deliveries
        # To read one's own pending list may count as a delivery.
        for call in self.at("running"):
            if call.owner == name and call.entry is not None:
                stream, entry_id = self.rig.keys.stream(call.priority), call.entry.entry_id
                (row,) = self.rig.redis.xpending_range(stream, keys.GROUP, entry_id, entry_id, 1)
                call.deliveries = row["times_delivered"]
        return found

    @precondition(lambda self: any(worker.held for worker in self.workers.values()))
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, worker in self.workers.items() if worker.held]))
        delivery = data.draw(st.sampled_from(self.workers[name].held))
        if not self.workers[name].registered:
            with pytest.raises(LeaseLost):
                self.rig.take(name, delivery)
            return
        for _ in range(data.draw(st.integers(1, 2))):
            assert self.rig.take(name, delivery)
        self.calls[delivery.id].place = "taken"

    @precondition(lambda self: any(worker.held for worker in self.workers.values()))
    @rule(data=st.data(), number=st.integers(1, 4))
    def commit(self, data: st.DataObject, number: int) -> None:
        name = data.draw(st.sampled_from([name for name, worker in self.workers.items() if worker.held]))
        chosen = data.draw(st.lists(st.sampled_from(self.workers[name].held), min_size=1, max_size=number, unique=True))
        verdicts: list[Verdict] = []
        for delivery in chosen:
            kind = data.draw(st.sampled_from(VERDICTS))
            if kind == "release" and delivery.taken:
                kind = "complete"  # what has begun is not handed back
            verdicts.append(self.verdict(kind, delivery))
        self.write(name, verdicts)
        self.commits.append((name, verdicts))

    @precondition(lambda self: self.commits)
    @rule(data=st.data())
    def repeat_commit(self, data: st.DataObject) -> None:
        """The reply was lost, and the worker tries again, sooner or much later."""
        self.write(*data.draw(st.sampled_from(self.commits)))

    def verdict(self, kind: str, delivery: Delivery) -> Verdict:
        again = {"attempt": delivery.attempt + 1}
        match kind:
            case "complete":
                return Completed(delivery, "succeeded", b"done", HOUR_MS)
            case "complete silently":
                return Completed(delivery, "succeeded", b"", 0)
            case "revoke":
                return revoked(delivery)
            case "retry":
                return Retried(delivery, "retried", again, HOUR_MS, "")
            case "retry at once":
                return Retried(delivery, "retried", again, 0, "")
            case "defer":
                return Retried(delivery, "deferred", delivery.meta, HOUR_MS, "")
            case "bury":
                return Buried(delivery, "failed", {}, b"failure", HOUR_MS)
            case "bury silently":
                return Buried(delivery, "failed", {}, b"", 0)
            case _:
                return Released(delivery)

    def write(self, name: str, verdicts: list[Verdict]) -> None:
        replies = self.rig.commit(name, *verdicts)
        worker = self.workers[name]
        if worker.registered:
            assert -1 not in replies
        else:
            assert (-1 in replies) == any(not verdict.delivery.taken for verdict in verdicts)
        settled = 0
        for verdict in verdicts:
            delivery = verdict.delivery
            call = self.calls[delivery.id]
            if not worker.registered and not delivery.taken:
                continue
            if not self.owns(name, delivery) or call.place not in ("running", "taken"):
                continue
            settled += 1
            worker.held = [held for held in worker.held if place_of(held) != place_of(delivery)]
            match verdict:
                case Completed():
                    self.counters[verdict.counter] += 1
                    early = verdict.counter == "revoked" and call.attempt == 1
                    call.end("done", silent=not verdict.result, revoked=early)
                    self.forget_marks(call)
                case Buried():
                    self.counters["dead"] += 1
                    call.end("dead", silent=not verdict.result)
                    self.forget_marks(call)
                case Retried():
                    self.counters[verdict.counter] += 1
                    call.place, call.owner, call.entry, call.deliveries = "delayed", "", None, 0
                    call.attempt = verdict.meta.get("attempt", 1)
                case Released():
                    call.place, call.owner = "ready", keys.RELEASED
                    call.deliveries -= 1
        assert sum(reply for reply in replies if reply != -1) == settled

    # -- leases

    @precondition(lambda self: self.registered())
    @rule(data=st.data())
    def lapse(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.registered()))
        self.rig.lapse(name)
        self.workers[name].lapsed = True

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from([*self.workers]), unique=True))
        lost = self.rig.run(scripts.RENEW, HOUR_MS, *names)
        assert {text(name) for name in lost} == {name for name in names if not self.workers[name].registered}
        for name in names:
            self.workers[name].lapsed = False
        self.notice_lapsed()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        """Also one whose lease ran out before its supervisor could tell."""
        self.leave(data, data.draw(st.sampled_from([*self.workers])))

    def leave(self, data: st.DataObject, name: str) -> None:
        held = self.workers[name].held
        ran = data.draw(st.lists(st.sampled_from(held), max_size=2, unique=True)) if held else []
        ran += [delivery for delivery in held if self.calls[delivery.id].place == "taken" and delivery not in ran]
        self.mark(name, ran)
        self.retirements.append((name, ran))

    @precondition(lambda self: self.retirements)
    @rule(data=st.data())
    def repeat_retire(self, data: st.DataObject) -> None:
        self.mark(*data.draw(st.sampled_from(self.retirements)))

    def mark(self, name: str, ran: Iterable[Delivery]) -> None:
        if self.workers[name].registered:
            self.unregister(name)
        marked = 0
        for delivery in ran:
            call = self.calls[delivery.id]
            if not self.owns(name, delivery):
                continue
            if call.place == "taken":
                call.end("done")
                self.forget_marks(call)
                self.counters["lost"] += 1
                marked += 1
            elif call.place == "ready":
                call.owner = keys.RELEASED
                call.crashes += 1
                self.counters["crashed"] += 1
                marked += 1
        for call in self.at("ready"):
            if call.owner == name:  # it was merely given them: that delivery does not count
                call.owner = keys.RELEASED
                call.deliveries -= 1
        assert self.rig.retire(name, *ran) == marked

    def missing(self) -> dict[str, list[Call]]:
        """Workers that nobody hears of, with what they acknowledged early."""
        found: dict[str, list[Call]] = {}
        for call in self.at("taken"):
            if not self.workers[call.owner].registered:
                found.setdefault(call.owner, []).append(call)
        return found

    @precondition(lambda self: self.missing())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Nobody has heard of a worker for too long, as the renewal of any other one finds."""
        missing = self.missing()
        name = data.draw(st.sampled_from([*missing]))
        self.rig.redis.zadd(f"{self.rig.keys.prefix}:missing", {name: 1})
        self.rig.run(scripts.RENEW, HOUR_MS)
        self.notice_lapsed()
        for call in missing[name]:
            call.end("done")
            self.forget_marks(call)
            self.counters["lost"] += 1

    @precondition(lambda self: any(not worker.registered for worker in self.workers.values()))
    @rule(data=st.data())
    def late_read(self, data: st.DataObject) -> None:
        """A read that reaches the server after its consumer was unregistered, and what mends it."""
        name = data.draw(st.sampled_from([name for name, worker in self.workers.items() if not worker.registered]))
        stream = self.rig.keys.stream()
        had = name.encode() in self.rig.redis.smembers(self.rig.keys.orphans)
        reply = self.rig.link.call("XREADGROUP", "GROUP", keys.GROUP, name, "COUNT", 2, "STREAMS", stream, ">")
        entries = reply[0][1] if reply else []
        self.rig.redis.delete(f"{self.rig.keys.prefix}:reconciled")
        found = self.rig.run(scripts.RECONCILE, 0, HOUR_MS)
        assert found == ([name.encode()] if entries and not had else [])
        for entry_id, fields in entries:
            if fields[0] == b"wake":  # counts as a message until somebody takes it over
                self.rig.redis.xack(stream, keys.GROUP, entry_id)
                self.rig.redis.xdel(stream, entry_id)
                continue
            call = self.calls[text(fields[1])]
            assert call.place == "ready"
            call.owner, call.deliveries = name, call.deliveries + 1

    # -- time and people

    @precondition(lambda self: self.at("delayed"))
    @rule(data=st.data())
    def ripen(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(call.id for call in self.at("delayed"))), min_size=1))
        self.rig.ripen(*chosen)

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        if self.paused:
            self.rig.redis.set(self.rig.keys.paused, "1")
        else:
            self.rig.redis.delete(self.rig.keys.paused)

    @precondition(lambda self: len(self.at("ready", "delayed")) > 3)
    @rule(step=st.sampled_from([1, 3, 1000]))
    def purge(self, step: int) -> None:
        waiting = self.at("ready", "delayed")
        dropped, left = 0, 1
        while left:
            number, left = self.rig.run(scripts.PURGE, step)
            dropped += number
        assert dropped == len(waiting)
        self.counters["purged"] += dropped
        for call in waiting:
            call.end("gone")
            self.forget_marks(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), terminate=st.booleans())
    def revoke(self, data: st.DataObject, terminate: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from([*self.calls]), min_size=1, max_size=3, unique=True))
        answers = self.rig.link.run_one(self.rig.queue.revoke_call(chosen, terminate))
        assert [answer.decode() for answer in answers] == [self.revoked(self.calls[each], terminate) for each in chosen]

    def revoked(self, call: Call, terminate: bool) -> str:
        if call.place == "delayed":
            call.end("done", revoked=True)
            self.counters["revoked"] += 1
            self.forget_marks(call)
            return "revoked"
        if call.place in ("done", "dead") and not call.silent:
            return "revoked" if call.revoked else "done"
        self.marks["revoked"].add(call.id)
        if terminate:
            self.marks["terminate"].add(call.id)
        return "marked"

    @precondition(lambda self: self.at("dead"))
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.at("dead")))
        letter = dead_letter(self.rig.link, self.rig.queue, call.id)
        assert letter is not None
        assert letter.attempts == call.attempt
        assert redrive(self.rig.link, self.rig.queue, letter)
        assert not redrive(self.rig.link, self.rig.queue, letter)
        call.place, call.attempt, call.silent = "ready", 1, False
        self.forget_marks(call)

    # -- what must always hold

    @invariant()
    def each_call_is_in_exactly_one_place(self) -> None:
        seen = self.look()
        expected = {
            call.id: f"{call.place} by {call.owner}" if call.place in ("running", "taken") else call.place
            for call in self.calls.values()
            if call.place != "gone" and not (call.place == "done" and call.silent)
        }
        assert seen == expected

    def look(self) -> dict[str, str]:
        """Where the server has each call; fails for one in two places, and for whatever holds nothing together."""
        redis, k = self.rig.redis, self.rig.keys
        streams = [k.stream(priority) for priority in PRIORITIES]
        with redis.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.xrange(stream)
                pipe.xpending_range(stream, keys.GROUP, "-", "+", 1000)
                pipe.xinfo_consumers(stream, keys.GROUP)
            pipe.zrange(k.delayed, 0, -1)
            pipe.hkeys(k.messages)
            pipe.xrange(k.dead)
            pipe.hgetall(k.crashes)
            pipe.hgetall(k.stats)
            pipe.zrange(k.consumers, 0, -1)
            pipe.smembers(k.orphans)
            pipe.keys(f"{k.prefix}:result:*")
            pipe.keys(f"{k.prefix}:taken:*")
            pipe.zrange(k.revoked, 0, -1, withscores=True)
            replies = pipe.execute(raise_on_error=False)
        *of_streams, delayed, messages, dead, crashes, stats, consumers, orphans, results, taken, marked = replies
        seen: dict[str, str] = {}

        def see(task_id: str, place: str) -> None:
            assert task_id not in seen, f"{task_id} is {place} and {seen[task_id]}"
            seen[task_id] = place

        assert {*consumers} == {name.encode() for name in self.registered()}
        wakes = 0
        for place in range(len(streams)):
            entries, pending, infos = of_streams[3 * place : 3 * place + 3]
            if isinstance(pending, Exception):  # no group yet
                pending = infos = []
            owners = {row["message_id"]: row["consumer"] for row in pending}
            for entry_id, fields in entries:
                owner = owners.pop(entry_id, None)
                assert owner is None or owner in consumers or owner in orphans, f"{entry_id} is stranded with {owner}"
                if b"wake" in fields:
                    wakes += owner is None
                else:
                    held = owner in consumers
                    see(text(fields[b"id"]), f"running by {text(owner)}" if held and owner else "ready")
            assert not owners, "pending entries that are not in the stream"
            for info in infos:
                assert info["name"] in consumers or info["name"] in orphans
        assert wakes <= 1
        assert {*delayed} == {*messages}
        for task_id in delayed:
            see(text(task_id), "delayed")
        for key in taken:
            for member in redis.smembers(key):
                see(text(member), f"taken by {text(key).rpartition(':')[2]}")
        for _, fields in dead:
            see(text(fields[b"id"]), "dead")
        for key in results:
            task_id = text(key).rpartition(":")[2]
            if seen.get(task_id) != "dead":
                see(task_id, "done")
        unsettled = {call.id: call.crashes for call in self.calls.values() if call.crashes}
        assert {text(task_id): int(mark.split()[0]) for task_id, mark in crashes.items()} == unsettled
        ending = {text(task_id) for task_id, until in marked if until % 1}
        assert {"revoked": {text(task_id) for task_id, _ in marked}, "terminate": ending} == self.marks
        counted = {text(name): int(value) for name, value in stats.items() if name != b"wakes"}
        assert counted == dict(self.counters)
        return seen

    def teardown(self) -> None:
        """One worker that outlives all others finds everything, and nothing is left of them."""
        for name in self.registered():
            self.mark(name, [held for held in self.workers[name].held if self.calls[held.id].place == "taken"])
        if self.paused:
            self.pause_or_resume()
        self.hire()
        last = [*self.workers][-1]
        if delayed := self.at("delayed"):
            self.rig.ripen(*(call.id for call in delayed))
        waiting = self.at("ready", "delayed")
        got: list[str] = []
        while batch := self.rig.get(last, 50):
            got += [delivery.id for delivery in batch]
            self.rig.commit(last, *(self.verdict("complete", delivery) for delivery in batch))
            for delivery in batch:
                self.counters["succeeded"] += 1
                self.calls[delivery.id].end("done")
                self.forget_marks(self.calls[delivery.id])
        assert sorted(got) == sorted(call.id for call in waiting)
        self.mark(last, [])
        self.each_call_is_in_exactly_one_place()
        left: dict[str, Any] = self.rig.snapshot()
        assert not {"stream strays", "stream:4 strays", "orphans", "consumers", "delayed", "messages"} & left.keys()


@pytest.mark.timeout(0)  # before it is told, a failure is made small, for up to five minutes
def test_any_order(rig: Rig) -> None:
    keep_to(lambda: Machine(rig))
