"""Feeds the events of a source into its queue, each once, as calls.

How far the stream was read lies with the calls that it brought, and is written in one step with them. So it does not
matter who feeds, how often he begins anew, and whether somebody else does at the same time: one of all workers feeds,
to spare the work, and the others look from time to time whether it still does.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from rsq.broker import scripts
from rsq.broker.connection import running
from rsq.broker.deadline import Deadline
from rsq.broker.event_stream import EventStream
from rsq.broker.pool import LinkPool
from rsq.broker.rows import Fed
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.source import BEGINNING, NEW, Source, order_of
from rsq.errors import BrokerError
from rsq.streams.declare import sources_of
from rsq.streams.saying import Saying
from rsq.task import Task

log = logging.getLogger("rsq.worker")

LEASE_MS = 3000
"""Who feeds a source is not heard of for so long: then another one does."""

BLOCK_MS = 500
"""A read waits so long for an event before the lease is renewed."""

LOOK_S = 1.0
"""Others look so often whether somebody feeds; and who feeds, whether the stream is still the same."""

WINDOW = 2000
"""So many calls may wait for a worker before no more events are fed: they wait as well in their stream."""

PAGE, PAGE_BYTES = 500, 1024 * 1024
"""Events of one step: at most so many, and of these bytes together, but one at least."""

LEAVE_S = 0.5
"""At its end a process tries for so long to tell that it feeds no more."""

FULL_S = (0.005, 0.25)
"""First and longest wait for room in the queue."""

FAULT_S = (0.1, 2.0)
"""First and longest wait after a fault."""

TELL_S = 600.0
"""Others are told so often how far it is, though that has not changed: somebody may have moved the group."""


class _Answer(NamedTuple):
    """What `feed` says; see there."""

    who: str
    position: str
    number: int


class Feeder:
    """One source, in one process. `start` has it work in a thread of its own.

    name   of the source's task
    links  to the queue
    """

    def __init__(self, source: Source, name: str, queue: WorkerQueue, links: LinkPool) -> None:
        self._source = source
        self._name = name
        self._queue = queue
        self._links = links
        self._me = os.urandom(8).hex()
        self._stream = EventStream(links.endpoint, source.stream, source.group)
        self._feeds = False
        self._page = 1
        self._told = ""
        self._tell_at = 0.0
        self._look_at = 0.0
        self._full_s = FULL_S[0]
        self._saying = Saying()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="rsq-feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Feed no more, and let somebody else. A read that waits ends by itself."""
        self._stop.set()
        self._leave()

    def run(self) -> None:
        """The thread: one step after the other until `stop`."""
        pause_s = FAULT_S[0]
        while not self._stop.is_set():
            try:
                wait_s = self.step()
                pause_s = FAULT_S[0]
            except Exception as error:
                self._saying.warn(f"{self._source} is not read: {error}", error)
                self._stream.close()
                self._look_at = 0.0
                wait_s, pause_s = pause_s, min(FAULT_S[1], 2 * pause_s)
            self._stop.wait(wait_s)
        self._leave()
        self._stream.close()

    def _leave(self) -> None:
        if self._feeds:
            self._feeds = False
            try:
                self._ask(lease_ms=0, deadline=Deadline(LEAVE_S))
            except BrokerError as error:
                log.debug("%s is fed by others once the lease has ended: %s", self._source, error)

    def step(self) -> float:
        """Feed what is there, or wait for it. Gives the seconds until the next step is due."""
        answer = self._ask()
        while answer.who == "you" and answer.number > 0 and not self._stop.is_set():
            if not answer.position:
                answer = self._ask(after="", upto=self._first())
                continue
            if monotonic() >= self._look_at:
                answer = self._look(answer)
            if answer.position != self._told or monotonic() >= self._tell_at:
                self._stream.tell(answer.position)
                self._told, self._tell_at = answer.position, monotonic() + TELL_S
            events = self._stream.read(answer.position, min(self._page, answer.number), BLOCK_MS)
            if self._stop.is_set():
                return 0.0
            answer = self._feed(answer.position, events) if events else self._ask()
            self._full_s = FULL_S[0]
        if answer.who == "you":
            wait_s, self._full_s = self._full_s, min(FULL_S[1], 2 * self._full_s)
            return wait_s
        self._look_at, self._told = 0.0, ""
        self._stream.close()
        return LOOK_S if answer.who == "moved" else min(LOOK_S, answer.number / 1000)

    def _first(self) -> str:
        """Where a source begins that was never read: where its group stands, if that is there, else as it says."""
        look = self._stream.look()
        if look.delivered is not None:
            log.info("%s begins behind %s, where the group stood", self._source, look.delivered)
            return look.delivered
        return (look.last or BEGINNING) if self._source.start == NEW else self._source.start

    def _look(self, answer: _Answer) -> _Answer:
        """What others may have done to the stream. Gives how far it is to count as read."""
        look = self._stream.look()
        self._look_at = monotonic() + LOOK_S
        if look.foreign:
            who = ", ".join(self._stream.consumers())
            told = "read in this group, too, though rsq reads all of it: give them a group of their own"
            self._saying.warn(f"{self._source}: {who} {told}")
        if self._told and look.last is not None and look.delivered is None:
            log.warning("%s: the group was destroyed; it is made again behind %s", self._source, answer.position)
            self._told = ""
        if order_of(look.last or BEGINNING) >= order_of(answer.position):
            return answer
        if look.last is not None and look.delivered is not None and order_of(look.delivered) <= order_of(look.last):
            # Its group has outlived it, so it is the same stream, on a server that took over without the newest events.
            log.warning("%s has lost what came behind %s: it goes on there", self._source, look.last)
            return self._ask(after=answer.position, upto=look.last)
        # Ids only grow, so this is another stream of that name.
        if look.last is not None:
            log.warning("%s was made anew, with ids from before: it is read from its beginning", self._source)
        return self._ask(after=answer.position, upto=BEGINNING)

    def _feed(self, position: str, events: Sequence[tuple[bytes, list[bytes]]]) -> _Answer:
        sizes = [sum(map(len, fields)) for _, fields in events]
        rows = [Fed(*self._source.call_of(self._name, number, fields)) for number, fields in events]
        self._page = max(1, min(2 * self._page, PAGE, PAGE_BYTES // max(1, *sizes)))
        return self._ask(position, events[-1][0].decode(), rows)

    def _ask(
        self,
        after: str = "",
        upto: str = "",
        rows: Sequence[Fed] = (),
        lease_ms: int = LEASE_MS,
        deadline: Deadline | None = None,
    ) -> _Answer:
        head = (self._source.key, self._me, lease_ms, WINDOW, self._source.kept_ms, after, upto)
        call = (scripts.FEED, self._queue.keys.prefix, (*head, *(part for row in rows for part in row)))
        link = self._links.take()
        try:
            (reply,) = link.follow(running([call], deadline))
        finally:
            self._links.give_back(link)
        if isinstance(reply, BrokerError):
            raise reply
        answer = _Answer(reply[0].decode(), reply[1].decode(), reply[2])
        self._feeds = answer.who == "you" and lease_ms > 0
        return answer


def feeders_of(tasks: Mapping[str, Task[..., Any]], queues: Sequence[WorkerQueue], links: LinkPool) -> list[Feeder]:
    """One for each source whose queue is among these."""
    return [Feeder(source, name, queue, links) for name, source, queue in sources_of(tasks, queues)]
