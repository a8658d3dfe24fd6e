"""How long one step of each script holds the server, with very many small entries and with some big ones.

While a script runs nobody else is answered. So each figure is the longest of all commands of an act, by the server's
own clock: what a step costs must follow from the bound in its header, and neither from how much waits nor from how big
it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from rsq.bench.report import Sample
from rsq.bench.rig import Rig
from rsq.bench.tasks import app, swallow
from rsq.broker.connection import Link
from rsq.broker.dead_letters import dead_letter, redrive
from rsq.broker.queue_control import purge
from rsq.broker.status import counts
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.outcome import Buried, pack_failure
from rsq.keys import GROUP
from rsq.states import State

CASES = ("1,000,000 small", 1_000_000, 16), ("100 of 1 MB", 100, 1_000_000)
"""What waits: how many calls, with so many bytes of arguments each."""

CHUNK_BYTES = 8_000_000
CHUNK = 50_000
ROOM = 1000
HELD, DEAD = 10_000, 10_000
"""So many calls are in one worker's hands, and so many dead letters are kept by default."""

BATCH = 200
REVOKED = 1000
LOOK_BACK_MS = 10_000
FAR_S = 3600.0
LOG_LENGTH = 20_000


class Steps:
    """One case: its calls, and the acts on them. Each consumer acts once, so that no lease runs out."""

    def __init__(self, rig: Rig, link: Link, case: str, calls: int, size_bytes: int) -> None:
        self._rig = rig
        self._link = link
        self._case = case
        self._calls = calls
        self._size_bytes = size_bytes
        self._queue = WorkerQueue(app.settings.default_queue, app.settings)
        self._names = (f"bench-{number}" for number in count())
        self.samples: list[Sample] = []

    def fill(self, **options: Any) -> list[str]:
        """Send all calls; gives the ids of some."""
        self._rig.empty()
        ids: list[str] = []
        wanted = min(REVOKED, self._calls // 2)
        chunk = max(1, min(CHUNK, CHUNK_BYTES // self._size_bytes))
        for first in range(0, self._calls, chunk):
            rows = [(bytes(self._size_bytes),)] * min(chunk, self._calls - first)
            handles = swallow.map_async(rows, **options)
            ids += [handle.id for handle in handles[: wanted - len(ids)]]
        return ids

    def refill(self) -> None:
        """An act on big calls takes most of them; of a million none takes so many."""
        if counts(self._link, self._queue).ready < self._calls // 2:
            self.fill()

    @contextmanager
    def watched(self, step: str) -> Iterator[None]:
        """The longest command of what happens inside is a sample."""
        self._rig.call("SLOWLOG", "RESET")
        yield
        longest_us = max(row[2] for row in self._rig.call("SLOWLOG", "GET", LOG_LENGTH))
        self.samples.append(Sample(f"{step}, {self._case}", "ms", "less", longest_us / 1000))

    def consumer(self) -> str:
        name = next(self._names)
        self._queue.register(self._link, name)
        return name

    def repeat(self) -> None:
        """A send whose first try never arrived: nothing of it is found, however far the look goes."""
        message, placement = swallow.message((bytes(self._size_bytes),))
        script, tag, arguments = self._queue.arrived_call([(message, placement)], app.client.now_ms() - LOOK_BACK_MS)
        with self.watched("look for a call that may have arrived"):
            self._link.run(script, tag, *arguments)

    def fetch(self, step: str = "fetch") -> None:
        consumer = self.consumer()
        with self.watched(step):
            self._queue.fetch(self._link, consumer, ROOM)

    def hold(self, consumer: str) -> None:
        """Take many into one worker's hands."""
        held = 0
        while held < HELD and (deliveries := self._queue.fetch(self._link, consumer, ROOM).deliveries):
            held += len(deliveries)

    def adopt(self) -> None:
        """What a worker held that left goes to others."""
        old = self.consumer()
        self.hold(old)
        script, tag, arguments = self._queue.retire_call(old, "", 0, ())
        with self.watched("retire"):
            self._link.run(script, tag, *arguments)
        self.fetch("fetch, adopting")

    def reconcile(self) -> None:
        """Entries in the hands of somebody who never had a lease."""
        self._queue.fetch(self._link, self.consumer(), 1)  # makes the group, where it is the first
        stream = self._queue.keys.stream()
        self._link.call("XREADGROUP", "GROUP", GROUP, "ghost", "COUNT", HELD, "STREAMS", stream, ">")
        script, tag, arguments = self._queue.reconcile_call()
        with self.watched("reconcile"):
            self._link.run(script, tag, *arguments)

    def bury(self) -> None:
        """As many dead letters as are kept, and one of them sent again."""
        consumer = self.consumer()
        result = pack_failure(State.FAILURE, 1, 0.0, "dead")
        left = min(DEAD, self._calls // 2)
        with self.watched("bury"):
            while left > 0 and (some := self._queue.fetch(self._link, consumer, min(BATCH, left)).deliveries):
                left -= len(some)
                verdicts = [Buried(delivery, "failed", {}, result, 1000) for delivery in some]
                self._link.run_many(self._queue.commit_calls(consumer, verdicts))
        self._redrive()

    def _redrive(self) -> None:
        """The oldest dead letter is looked for, the newest come first."""
        first, *_ = self._link.call("XRANGE", self._queue.keys.dead, "-", "+", "COUNT", 1)
        with self.watched("dead letter look-up"):
            letter = dead_letter(self._link, self._queue, first[0].decode())
        if letter is not None:
            with self.watched("redrive"):
                redrive(self._link, self._queue, letter)

    def purge(self) -> None:
        with self.watched("purge"):
            purge(self._link, self._queue)

    def revoke(self, ids: list[str]) -> None:
        script, tag, arguments = self._queue.revoke_call(ids, False)
        with self.watched("revoke of many, delayed"):
            self._link.run(script, tag, *arguments)

    def promote(self) -> None:
        """All are due at once."""
        delayed = self._queue.keys.delayed
        self._link.call("ZUNIONSTORE", delayed, 1, delayed, "WEIGHTS", 0)
        self.fetch("fetch, promoting")


def steps(rig: Rig) -> Iterator[Sample]:
    """How long one step of each script holds the server, with 1,000,000 small calls and with 100 of 1 MB."""
    for case, calls, size_bytes in CASES:
        with app.client.link() as link:
            act = Steps(rig, link, case, rig.size(calls), size_bytes)
            rig.call("CONFIG", "SET", "slowlog-log-slower-than", 0, "slowlog-max-len", LOG_LENGTH)
            for each in (act.repeat, act.fetch, act.adopt, act.reconcile, act.bury, act.purge):
                act.refill()
                each()
            act.revoke(act.fill(countdown=FAR_S))
            act.promote()
        yield from act.samples
