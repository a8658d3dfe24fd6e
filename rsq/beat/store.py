"""The schedules in Redis: reading, changing, firing them.

Exactly once. A slot is fired by one script in the hash slot of the schedule's *queue*: it compares the slot with the
last one fired (``T:fired:<schedule>``), moves that forward and enqueues, in one step. So it does not matter how many
beats try, how late, or where one dies; and on a cluster, where the schedules' own keys lie elsewhere, it stays one
step. The alternative, to enqueue with a marker by id and then to move the last slot forward, holds only as long as the
marker lives: a beat that wakes up later than that would fire a slot again.

What is left is the change of a definition, since the mark lies in the queue and the definition does not. Each change
has a generation. Before it counts, every queue that earlier ones may have fired into is told of it (``hand_over``),
answers the last slot fired, and from then on refuses what is older: a beat that still holds the old definition can fire
nothing, neither into the old queue nor into the new one. Until that is done the record says so in `before`, and whoever
comes next, beat or command, finishes it: each step may be repeated. After `pause` and `remove` no slot is fired.

When a slot was fired, the schedule's next one is written to ``B:due`` (``advance``), where every beat looks for what is
next. That is bookkeeping: where it is lost, the next beat tries the slot again, hears that it is done, and writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsq.beat.entry import Record, generation_of, unpack_record
from rsq.broker import scripts
from rsq.broker.answers import too_few
from rsq.broker.client import Client
from rsq.broker.connection import Link, ScriptCall
from rsq.broker.faults import checked
from rsq.broker.queue import replication
from rsq.broker.wire import Argument
from rsq.errors import BrokerError, BrokerUnavailable, DecodeError
from rsq.keys import BeatKeys, is_queue

CHUNK = 500
"""Commands in one write."""

HAND_OVER_TTL_MS = 86_400_000
"""A beat that was held up for less than this cannot fire for a definition that is gone."""

_LAST_RUN = re.compile(r"(\d{1,15}) (\S+) (.+)", re.DOTALL)
_LAST_MOMENT_MS = 2.0**53

Change = Callable[[Record | None], Record | None]
"""From the record that is there to the one that should be. The same object back: nothing is changed."""


@dataclass(frozen=True)
class Fired:
    """What became of one slot. `verdict` is the first word that `fire.lua` answers, `detail` the second."""

    record: Record
    slot_ms: int
    verdict: str
    detail: str


@dataclass(frozen=True)
class LastRun:
    """When a schedule ran last (its slot, or the moment of a trigger), and the call that it became."""

    when_ms: int
    queue: str
    task_id: str


class Store:
    """The schedules of one namespace. For any number of threads; all methods raise BrokerError."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.keys = BeatKeys(client.settings.namespace)

    # -- reading

    def read(self, name: str) -> Record | None:
        """One record, with its `due_ms`. Raises DecodeError."""
        raw_name = _as_bytes(name)
        commands = [("HGET", self.keys.schedules, raw_name), ("ZSCORE", self.keys.due, raw_name)]
        with self._client.link() as link:
            kept, due = checked(link.pipeline(commands))
        if kept is None:
            return None
        record = unpack_record(name, kept)
        return record if record.pending else replace(record, due_ms=None if due is None else _moment_ms(due))

    def raw(self, names: Sequence[str]) -> list[bytes | None]:
        """Records as they are kept, in order; None where there is none."""
        if not names:
            return []
        with self._client.link() as link:
            return list(link.call("HMGET", self.keys.schedules, *map(_as_bytes, names)))

    def load(self) -> tuple[dict[str, Record], dict[str, DecodeError]]:
        """All records by name, each with its `due_ms`; and by name what is wrong with those that cannot be read."""
        with self._client.link() as link:
            kept, dues = checked(
                link.pipeline([("HGETALL", self.keys.schedules), ("ZRANGE", self.keys.due, 0, -1, "WITHSCORES")])
            )
        due = dict(_scores(dues))
        records: dict[str, Record] = {}
        unreadable: dict[str, DecodeError] = {}
        for raw_name, packed in zip(kept[::2], kept[1::2], strict=True):
            name = _as_text(raw_name)
            try:
                record = unpack_record(name, packed)
            except DecodeError as error:
                unreadable[name] = error
                continue
            records[record.name] = record if record.pending else replace(record, due_ms=due.get(name))
        return records, unreadable

    def due(self, until_ms: int, limit: int) -> list[tuple[str, int]]:
        """Names and next slots of what is due until then, the earliest first."""
        with self._client.link() as link:
            rows = link.call("ZRANGEBYSCORE", self.keys.due, "-inf", until_ms, "WITHSCORES", "LIMIT", 0, limit)
        return _scores(rows)

    def last_runs(self) -> dict[str, LastRun]:
        """The last run of each schedule that has run, as far as it can be read."""
        with self._client.link() as link:
            rows = link.call("HGETALL", self.keys.last)
        found = {}
        for name, text in zip(rows[::2], rows[1::2], strict=True):
            words = _LAST_RUN.fullmatch(_as_text(text))
            if words and is_queue(words[2]):
                found[_as_text(name)] = LastRun(int(words[1]), words[2], words[3])
        return found

    # -- changing

    def change(self, name: str, change: Change) -> Record | None:
        """Write what `change` makes of the record, and finish what that leaves to be done; gives what is there then.

        A new record counts at once. One that replaces another is handed over first.
        """
        while True:
            there = self.read(name)
            wanted = change(there)
            if wanted is there:
                return there and self.settle(there)
            if there is None:
                assert wanted is not None, "there is nothing to delete"
                written = self.define([wanted])[0]
            else:
                written = self._replace(there, wanted)
            if written is not None:
                return self.settle(written)

    def discard(self, name: str) -> bool:
        """Delete a record that cannot be read, unless it is changed meanwhile; whether there is none any more.

        Nobody here knows its queues, so nothing is handed over: a beat that can read it may fire it once more.
        """
        (kept,) = self.raw([name])
        if kept is None:
            return True
        with self._client.link() as link:
            deleted = link.run(scripts.DEFINE, self.keys.prefix, _as_bytes(name), generation_of(kept), b"", "")
        return bool(deleted)

    def define(self, records: Sequence[Record]) -> list[Record | None]:
        """Write new records, which count at once; None for one of a name that is there already."""
        calls: list[ScriptCall] = [self._define_call(record.name, 0, record) for record in records]
        replies: list[Any] = []
        queues = sorted({record.queue for record in records})
        with self._client.link() as link:
            for queue in queues:
                link.call_packed(self._client.target(queue).introduce())
            for first in range(0, len(calls), CHUNK):
                replies += checked(link.run_many(calls[first : first + CHUNK]))
        return [
            replace(record, generation=reply) if reply else None for record, reply in zip(records, replies, strict=True)
        ]

    def _replace(self, there: Record, wanted: Record | None) -> Record | None:
        """Write a change as pending; None: somebody else was quicker."""
        record = replace(there, removed=True, paused=True) if wanted is None else wanted
        before = tuple(dict.fromkeys((*there.before, there.queue)))
        record = replace(record, before=before, due_ms=None if record.paused else record.due_ms)
        with self._client.link() as link:
            if record.queue != there.queue:
                link.call_packed(self._client.target(record.queue).introduce())
            generation = link.run_one(self._define_call(record.name, there.generation, record))
        return replace(record, generation=generation) if generation else None

    def settle(self, record: Record) -> Record | None:
        """Do what stands in `before`; gives what is there then. Any number of processes may do it at once."""
        if not record.pending:
            return record
        since_ms = record.since_ms
        with self._client.link() as link:
            for queue in record.before:
                tag = self._client.queue(queue).keys.prefix
                last = link.run(scripts.HAND_OVER, tag, record.name, record.generation, HAND_OVER_TTL_MS)
                since_ms = max(since_ms, int(last))
            settled = None if record.removed else replace(record, before=(), since_ms=since_ms)
            generation = link.run_one(self._define_call(record.name, record.generation, settled))
        if not generation:
            return self.read(record.name)
        return settled and replace(settled, generation=generation)

    def _define_call(self, name: str, generation: int, record: Record | None) -> ScriptCall:
        due: Argument = ""
        if record is not None and record.pending:
            due = 0  # at once: the next beat finishes it where we cannot
        elif record is not None and record.due_ms is not None:
            due = record.due_ms
        return scripts.DEFINE, self.keys.prefix, (name, generation, b"" if record is None else record.pack(), due)

    # -- firing

    def fire(self, slots: Iterable[tuple[Record, int]], now_ms: int) -> list[Fired]:
        """Fire slots, each once whoever else tries; those of one schedule in order.

        Raises BrokerUnavailable; some of them may be fired then. What the server refuses is in the answer, as verdict
        ``refused``, and so is what one of several partitions could not take in.
        """
        pairs = list(slots)
        queues = {record.queue: self._client.target(record.queue) for record, _ in pairs}
        barriers = {queue.partition: queue.keys.barrier for queue in queues.values()}
        calls = [record.fire_call(queues[record.queue], slot, now_ms) for record, slot in pairs]
        fired: list[Fired] = []
        with self._client.link() as link:
            for first in range(0, len(calls), CHUNK):
                replies = self._run(link, calls[first : first + CHUNK], barriers.values())
                if all(isinstance(reply, BrokerUnavailable) for reply in replies):
                    raise replies[0]
                for (record, slot), reply in zip(pairs[first : first + CHUNK], replies, strict=True):
                    if isinstance(reply, BrokerError):
                        fired.append(Fired(record, slot, "refused", str(reply)))
                    else:
                        if reply[0] == b"moved":
                            self._client.located([record.queue])  # the next try goes there
                        detail = reply[1].decode() if isinstance(reply[1], bytes) else str(reply[1])
                        fired.append(Fired(record, slot, reply[0].decode(), detail))
        return fired

    def _run(self, link: Link, calls: Sequence[ScriptCall], barriers: Iterable[str]) -> list[Any]:
        """The replies of these. With `wait_replicas` what too few replicas have is fired once more, and then it stands.

        A master that is being replaced takes slots that its successor never hears of; that one takes them at the second
        try.
        """
        replicas, left_s = self._client.settings.wait_replicas, self._client.settings.broker_timeout_s
        then = [part for barrier in barriers for part in replication(barrier, replicas, left_s)] if replicas else []
        replies = link.run_many(calls, then)
        if any(too_few(count, replicas) for count in replies[len(calls) + 1 :: 2]):
            again = link.run_many(calls, then)
            replies = [
                before if isinstance(now, list) and now[0] == b"done" and not isinstance(before, BrokerError) else now
                for before, now in zip(replies[: len(calls)], again, strict=False)
            ]
        return replies[: len(calls)]

    def advance(self, rows: Sequence[tuple[Record, int | None, LastRun | None]]) -> None:
        """Write down next slots and last runs; either may be None: left as it is."""
        with self._client.link() as link:
            for first in range(0, len(rows), CHUNK):
                arguments: list[Argument] = []
                for record, due_ms, last in rows[first : first + CHUNK]:
                    ran = "" if last is None else f"{last.when_ms} {last.queue} {last.task_id}"
                    arguments += (record.name, record.generation, "" if due_ms is None else due_ms, ran)
                link.run(scripts.ADVANCE, self.keys.prefix, *arguments)

    # -- the beats that run

    def check_in(self, beat: str, until_ms: int, now_ms: int) -> tuple[list[str], int, int]:
        """This beat runs, until then; gives all that run, the version of the schedules, and the server's clock."""
        keys = self.keys
        with self._client.link() as link:
            _, _, beats, version, (seconds, micros) = checked(
                link.pipeline(
                    [
                        ("ZADD", keys.beats, until_ms, beat),
                        ("ZREMRANGEBYSCORE", keys.beats, "-inf", now_ms),
                        ("ZRANGE", keys.beats, 0, -1),
                        ("GET", keys.version),
                        ("TIME",),
                    ]
                )
            )
        return [name.decode() for name in beats], int(version or 0), int(seconds) * 1000 + int(micros) // 1000

    def check_out(self, beat: str) -> None:
        """This beat runs no more."""
        with self._client.link() as link:
            link.call("ZREM", self.keys.beats, beat)

    def beats(self) -> Mapping[str, int]:
        """The beats that run, with the moment until which their last word holds."""
        with self._client.link() as link:
            rows = link.call("ZRANGE", self.keys.beats, 0, -1, "WITHSCORES")
        return dict(_scores(rows))


# What lies on the server may be anything: a name that is no text keeps its bytes, and a moment is one of a calendar.


def _as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _moment_ms(score: bytes) -> int:
    return int(min(max(float(score), 0.0), _LAST_MOMENT_MS))


def _scores(rows: Sequence[bytes]) -> list[tuple[str, int]]:
    return [(_as_text(name), _moment_ms(score)) for name, score in zip(rows[::2], rows[1::2], strict=True)]
