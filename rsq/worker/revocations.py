"""Hears which of the calls that a child holds were revoked after it had fetched them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rsq.broker.connection import Link
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.errors import TaskRevoked
from rsq.worker.inbox import Inbox

EVERY_S = 0.8
"""How often a child asks about what it holds: a revocation is to be heard within a second."""


class Revocations:
    """Asks the server, as long as there is something to ask about. What is fetched is looked at when it is fetched.

    interrupt  raises an error in the body of a delivery, if it still runs and can be reached
    """

    def __init__(
        self, queues: Sequence[WorkerQueue], inbox: Inbox, interrupt: Callable[[Delivery, BaseException], None]
    ) -> None:
        self._queues = queues
        self._inbox = inbox
        self._interrupt = interrupt
        self.due_at = 0.0

    def listen(self, link: Link, running: Sequence[tuple[Delivery, float]], now: float) -> None:
        """What waits here does not start; what runs is interrupted where that was asked for. Raises BrokerError."""
        waiting = self._inbox.held()
        if now < self.due_at and (running or waiting):
            return
        # One that comes to an idle child is not asked about at once: its fetch has looked.
        self.due_at = now + EVERY_S
        for queue in self._queues:
            bodies = [each for each, _ in running if each.queue == queue.name and not each.revoked]
            held = bodies + [each for each in waiting if each.queue == queue.name and not each.revoked]
            for number, (revoked, terminate) in enumerate(queue.revocations(link, held)):
                delivery = held[number]
                if revoked and number >= len(bodies):
                    self._put_aside(delivery)
                elif terminate:
                    delivery.revoked = True
                    self._interrupt(delivery, TaskRevoked(f"{delivery.task}[{delivery.id}] was revoked"))

    def wait_s(self, seconds: float) -> float:
        """So much of a wait, that the next look is not late."""
        return min(seconds, max(0.0, self.due_at - time.monotonic()))

    def _put_aside(self, delivery: Delivery) -> None:
        # Out of the inbox first: one that has just begun runs on, unless it is to be interrupted.
        if self._inbox.take_out(delivery):
            delivery.revoked = True
            self._inbox.put([delivery])
