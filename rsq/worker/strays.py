"""What is a child's by the word of the server, though it knows nothing of it: nobody takes from a consumer that lives,
so it would lie there for ever.

A reply was lost on the wire, so a delivery was never seen. Or an outcome was lost that the server had confirmed: by a
failover to a replica that did not have it yet, or by a restart from older data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rsq.broker.connection import Link
from rsq.broker.reads import adopting, entries_of, strays
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery

log = logging.getLogger("rsq.worker")

LOOK_S = 30.0
"""Between two looks without any sign: it may have been the committer's connection alone that met a master which was
replaced in the same moment."""


class Strays:
    """For one lane of a child. Used by its fetcher's thread alone.

    held          gives all that the child knows of, in the order in which a delivery moves on, so that none is missed
    lost_replies  there has been a fault
    """

    def __init__(self, link: Link, queues: Sequence[WorkerQueue], held: Callable[[], list[Delivery]]) -> None:
        self.lost_replies = False
        self._link = link
        self._queues = queues
        self._held = held
        self._openings = 0
        self._look_at = time.monotonic() + LOOK_S

    def expected(self) -> bool:
        """There has been a fault, or a connection was made anew: another server may be behind it."""
        self._openings = self._openings or self._link.openings
        return self.lost_replies or self._link.openings > self._openings

    def look(self, consumer: str, in_use: Mapping[str, Sequence[int]], now: float) -> None:
        """Look for some from time to time. What was acknowledged early runs once at most: its caller is told.

        in_use  the priorities of each queue that have a stream
        """
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        held = self._held()
        for queue in self._queues:
            entries, taken = strays(self._link, queue, consumer, held, in_use.get(queue.name) or [0])
            self.lost_replies = self.lost_replies or entries
            if taken and (ended := self._link.run_one(queue.disclaim_call(consumer, taken))):
                log.warning("lost what became of %d calls of queue %s, acknowledged early", ended, queue.name)

    def adopting(
        self, consumer: str, priorities: Mapping[str, Sequence[int]]
    ) -> Iterator[tuple[WorkerQueue, list[Delivery], list[bytes]]]:
        """All of them, as (queue, deliveries, wakes), page by page. Begins once the connection stands.

        priorities  those of each queue that have a stream
        """
        # What comes of a connection that is made after this is seen by the next step.
        self._openings = self._link.openings
        held = self._held()
        for queue in self._queues:
            for priority in priorities[queue.name]:
                known = entries_of(held, queue, priority)
                for deliveries, wakes in adopting(self._link, queue, consumer, known, priority):
                    if deliveries:
                        text = "adopted %d messages of queue %s whose delivery, or outcome, was lost"
                        log.info(text, len(deliveries), queue.name)
                    yield queue, deliveries, wakes
        self.lost_replies = False
        # Calls that were acknowledged early are no entries.
        self._look_at = 0.0
