"""Events of a source on their way into its queue, each once. Who does it, and when, is told elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from rsq.broker import scripts
from rsq.broker.connection import running
from rsq.broker.deadline import Deadline
from rsq.broker.faults import checked
from rsq.broker.pool import LinkPool
from rsq.broker.queue import Queue
from rsq.broker.rows import Fed
from rsq.calls.source import Source
from rsq.errors import BrokerError

log = logging.getLogger("rsq.worker")

LEASE_MS = 3000
"""Who feeds a source is not heard of for so long: then another one does."""

WINDOW = 2000
"""So many calls may wait for a worker before no more events are fed: they wait as well in their stream."""

PAGE, PAGE_BYTES = 500, 1024 * 1024
"""Events of one step: at most so many, and of these bytes together, but one at least."""


LINE, LINES = 1000, 10_000
"""Of a source with an order: so many events of one key wait, and so many calls in its queue, before no more is fed."""

LEAVE_S = 0.5
"""Who ends tries for so long to tell that he feeds no more."""


class Answer(NamedTuple):
    """What `feed` says; see there."""

    who: str
    position: str
    number: int
    full: str


class Feed:
    """One source and its queue, for one thread. Raises BrokerError.

    name   of the source's task
    links  to the queue
    page   how many events the next step is to bring
    feeds  whether it has the lease
    """

    def __init__(self, source: Source, name: str, queue: Queue, links: LinkPool) -> None:
        self._source = source
        self._name = name
        self._queue = queue
        self._links = links
        self._me = os.urandom(8).hex()
        self.page = 1
        self.feeds = False

    def events(self, position: str, events: Sequence[tuple[bytes, list[bytes]]]) -> Answer:
        """Feed these events, which come behind a position."""
        source, rows, largest = self._source, list[str | bytes](), 1
        for number, fields in events:
            task_id, body = source.call_of(number, fields)
            if source.has_rules:
                rows += Fed(task_id, body, *source.rules_of(fields), number)
            else:
                rows += (task_id, body)
            largest = max(largest, len(body))
        self.page = max(1, min(2 * self.page, PAGE, PAGE_BYTES // largest))
        answer = self.ask(position, events[-1][0].decode(), rows)
        if answer.full:
            self.page = 1
        return answer

    def ask(
        self,
        after: str = "",
        upto: str = "",
        rows: Sequence[str | bytes] = (),
        lease_ms: int = LEASE_MS,
        deadline: Deadline | None = None,
    ) -> Answer:
        """How the source stands; with `upto`, once it is read up to there, with these `Fed` one behind the other."""
        source = self._source
        rules = (int(source.has_rules), *((LINE, LINES) if source.order_by else (0, 0)))
        numbers = (lease_ms, WINDOW, source.kept_ms, *rules)
        head = (source.key, self._me, *map(str, numbers), self._name, after, upto)
        call = (scripts.FEED, self._queue.keys.prefix, (*head, *rows))
        link = self._links.take()
        try:
            (reply,) = checked(link.follow(running([call], deadline)))
        finally:
            self._links.give_back(link)
        answer = Answer(reply[0].decode(), reply[1].decode(), reply[2], reply[3].decode())
        self.feeds = answer.who == "you" and lease_ms > 0
        return answer

    def leave(self) -> None:
        """Let others feed it. From any thread, repeatedly; raises nothing."""
        if self.feeds:
            self.feeds = False
            try:
                self.ask(lease_ms=0, deadline=Deadline(LEAVE_S))
            except BrokerError as error:
                log.debug("%s is fed by others once the lease has ended: %s", self._source, error)

    def forget(self) -> None:
        """How far it was read is known no more."""
        link = self._links.take()
        try:
            link.call("HDEL", self._queue.keys.sources, self._source.key)
        finally:
            self._links.give_back(link)
