"""One body at a time, in the thread that serves: the main thread of a child (prefork), or of the worker (solo)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rsq.broker.connection import Link
from rsq.broker.queue import Queue
from rsq.errors import BrokerError, LeaseLost
from rsq.message import Delivery
from rsq.outcome import Released
from rsq.worker.attempt import Attempts
from rsq.worker.board import ChildBoard
from rsq.worker.committer import Committer
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox

log = logging.getLogger("rsq.worker")

TAKE_PAUSE_S = 0.2
"""Wait before an early acknowledgement is tried again."""


class SerialExecutor:
    """Takes from the inbox, runs, hands the verdict to the committer."""

    slots = 1

    def __init__(
        self,
        attempts: Attempts,
        inbox: Inbox,
        committer: Committer,
        identity: Identity,
        board: ChildBoard,
        queues: Sequence[Queue],
        make_link: Callable[[], Link],
        max_tasks: int | None = None,
    ) -> None:
        self.done = 0
        self.busy_s = 0.0
        self._attempts = attempts
        self._inbox = inbox
        self._committer = committer
        self._identity = identity
        self._board = board
        self._slot = board.slots[0]
        self._queues = {queue.name: (index, queue) for index, queue in enumerate(queues)}
        self._make_link = make_link
        self._link: Link | None = None
        self._max_tasks = max_tasks
        self._running: tuple[Delivery, float] | None = None

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        running = self._running
        return [] if running is None else [running]

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs and can be reached."""
        self._attempts.interrupt.throw(delivery, error)

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or `max_tasks` bodies have run."""
        inbox = self._inbox
        while (delivery := inbox.peek()) is not None:
            # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
            self._running = (delivery, time.monotonic())
            if inbox.remove(delivery):
                self._run(delivery, self._running[1])
            self._running = None
            if self._max_tasks is not None and self.done >= self._max_tasks:
                break
        self._attempts.close()
        if self._link is not None:
            self._link.close()

    def _run(self, delivery: Delivery, now: float) -> None:
        index, queue = self._queues[delivery.queue]
        if now >= self._board.lease_until:
            # Others may have it by now; the fence decides whether it is still ours to hand back.
            self._committer.put(Released(delivery))
            return
        if self._attempts.is_early(delivery) and not self._take(queue, delivery):
            return
        self._slot.start(now, index, delivery.priority, delivery.entry_id, delivery.id.encode())
        verdict = self._attempts.run(delivery)
        self._committer.put(verdict)
        self._slot.end()
        self.done += 1
        self.busy_s += delivery.runtime_s
        self._board.done = self.done

    def _take(self, queue: Queue, delivery: Delivery) -> bool:
        """Acknowledge before the start (`acks_late=False`). False: it must not be started here."""
        if self._link is None:
            self._link = self._make_link()
        while self._identity.lease_holds():
            try:
                if not queue.take(self._link, delivery.consumer, delivery):
                    return False
                delivery.entry_id = b""
                return True
            except LeaseLost:
                return False
            except BrokerError as error:
                # Repeated until there is an answer: the script knows by its token whether the first try arrived.
                log.warning("early acknowledgement of %s failed, trying again: %s", delivery.id, error)
                time.sleep(TAKE_PAUSE_S)
        return False
