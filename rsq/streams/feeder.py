"""Feeds the events of a source into its queue, each once, as calls.

How far the stream was read lies with the calls that it brought, and is written in one step with them. So it does not
matter who feeds, how often he begins anew, and whether somebody else does at the same time: one of all workers feeds,
to spare the work, and the others look from time to time whether it still does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from rsq.broker.event_stream import EventStream, StreamLook
from rsq.broker.pool import LinkPool
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.source import BEGINNING, NEW, Source, order_of
from rsq.streams.declare import sources_of
from rsq.streams.feeding import LINE, LINES, Answer, Feed
from rsq.streams.losses import Losses
from rsq.streams.saying import Saying
from rsq.task import Task

log = logging.getLogger("rsq.worker")

BLOCK_MS = 500
"""A read waits so long for an event before the lease is renewed."""

LOOK_S = 1.0
"""Others look so often whether somebody feeds; and who feeds, whether the stream is still the same."""

FULL_S = (0.005, 0.25)
"""First and longest wait for room in the queue."""

FAULT_S = (0.1, 2.0)
"""First and longest wait after a fault."""

TELL_S = 600.0
"""Others are told so often how far it is, though that has not changed: somebody may have moved the group."""


class Feeder:
    """One source, in one process. `start` has it work in a thread of its own.

    name   of the source's task
    links  to the queue
    """

    def __init__(self, source: Source, name: str, queue: WorkerQueue, links: LinkPool) -> None:
        self._source = source
        self._feed = Feed(source, name, queue, links)
        self._stream = EventStream(links.endpoint, source.stream, source.group)
        self._told = ""
        self._tell_at = 0.0
        self._look_at = 0.0
        self._full_s = FULL_S[0]
        self._saying = Saying()
        self._losses = Losses()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="rsq-feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Feed no more, and let somebody else. A read that waits ends by itself."""
        self._stop.set()
        self._feed.leave()

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
                self._losses.forget()
                self._look_at = 0.0
                wait_s, pause_s = pause_s, min(FAULT_S[1], 2 * pause_s)
            self._stop.wait(wait_s)
        self._feed.leave()
        self._stream.close()

    def step(self) -> float:
        """Feed what is there, or wait for it. Gives the seconds until the next step is due."""
        answer = self._feed.ask()
        while answer.who == "you" and answer.number > 0 and not self._stop.is_set():
            if not answer.position:
                answer = self._feed.ask(after="", upto=self._first())
                continue
            if monotonic() >= self._look_at:
                answer = self._look(answer)
            if answer.position != self._told or monotonic() >= self._tell_at:
                self._stream.tell(answer.position)
                self._told, self._tell_at = answer.position, monotonic() + TELL_S
            events = self._stream.read(answer.position, min(self._feed.page, answer.number), BLOCK_MS)
            if self._stop.is_set():
                return 0.0
            before = answer.position
            answer = self._feed.events(before, events) if events else self._feed.ask()
            if answer.position != before or not events:
                self._full_s = FULL_S[0]
            self._losses.read([before, *(number.decode() for number, _ in events)], answer.position)
        if answer.full:
            self._say_full(answer.full)
        if answer.who == "you":
            wait_s, self._full_s = self._full_s, min(FULL_S[1], 2 * self._full_s)
            return wait_s
        self._look_at, self._told = 0.0, ""
        self._losses.forget()
        self._stream.close()
        return LOOK_S if answer.who == "moved" else min(LOOK_S, answer.number / 1000)

    def _say_full(self, order: str) -> None:
        waits = f"{LINES} calls are delayed in its queue"
        if order != "*":
            key = order.removeprefix(f"{self._source.key}:")
            waits = f"{LINE} events with {self._source.order_by} {key} have not ended"
        self._saying.warn(f"{self._source}: {waits}, so no more is read until some have ended")

    def _first(self) -> str:
        """Where a source begins that was never read: where its group stands, if that is there, else as it says."""
        look = self._stream.look()
        if look.delivered is not None:
            log.info("%s begins behind %s, where the group stood", self._source, look.delivered)
            return look.delivered
        return (look.last or BEGINNING) if self._source.start == NEW else self._source.start

    def _count_lost(self, look: StreamLook, position: str) -> None:
        first = None
        if look.added is None and order_of(look.last or BEGINNING) > order_of(position):
            first = next((number.decode() for number, _ in self._stream.read(position, 1)), None)
        if lost := self._losses.look(look, position, first):
            self._stream.count_lost(lost)
            log.warning("%s: %d events or more were deleted by others before they were read", self._source, lost)

    def _look(self, answer: Answer) -> Answer:
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
            self._count_lost(look, answer.position)
            return answer
        self._losses.forget()
        if look.last is not None and look.delivered is not None and order_of(look.delivered) <= order_of(look.last):
            # Its group has outlived it, so it is the same stream, on a server that took over without the newest events.
            log.warning("%s has lost what came behind %s: it goes on there", self._source, look.last)
            return self._feed.ask(after=answer.position, upto=look.last)
        # Ids only grow, so this is another stream of that name.
        if look.last is not None:
            log.warning("%s was made anew, with ids from before: it is read from its beginning", self._source)
        return self._feed.ask(after=answer.position, upto=BEGINNING)


def feeders_of(tasks: Mapping[str, Task[..., Any]], queues: Sequence[WorkerQueue], links: LinkPool) -> list[Feeder]:
    """One for each source whose queue is among these."""
    return [Feeder(source, name, queue, links) for name, source, queue in sources_of(tasks, queues)]
