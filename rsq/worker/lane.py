"""One partition in one child: its queues are read, and its outcomes written, whatever becomes of the others.

A lane has its own links, threads, consumer name, lease and clock. What runs bodies is the child's, and so is the number
of messages that it holds, which its lanes share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rsq import keys
from rsq.broker.connection import Endpoint, Link
from rsq.broker.worker_queue import LONGEST_BLOCK_MS, WorkerQueue
from rsq.clock import ServerClock
from rsq.worker.board import ChildBoard
from rsq.worker.committer import Committer
from rsq.worker.fetcher import Fetcher, Workload
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.prefetch import Prefetch
from rsq.worker.turns import Turns
from rsq.worker.turnstile import Turnstile

READ_MARGIN_S = 2.0
"""A blocking read that is this late has lost its peer."""

COMMIT_TIMEOUT_S = 5.0


class Lane:
    """What is done in one partition.

    queues      its queues, in order
    turnstile   of all lanes of the child; None: there is no other
    on_failure  called when nothing can be committed any more
    """

    def __init__(
        self,
        endpoint: Endpoint,
        queues: Sequence[WorkerQueue],
        identity: Identity,
        turnstile: Turnstile | None,
        on_failure: Callable[[], None],
    ) -> None:
        settings = queues[0].settings
        self.queues = queues
        self.identity = identity
        self.inbox = Inbox()
        self.clock = ServerClock()
        self._endpoint = endpoint.at(keys.tag(settings.namespace, queues[0].partition))
        self._fetcher: Fetcher
        self.committer = Committer(
            self._link(),
            {queue.name: queue for queue in queues},
            identity,
            on_lease_lost=lambda consumer: self._fetcher.fence(consumer),
            on_failure=on_failure,
            on_caught_up=self.inbox.hungry.set,
            log_arguments=settings.log_arguments,
            turnstile=turnstile,
        )

    def feed(self, workload: Workload, board: ChildBoard, weights: Mapping[str, int], prefetch: Prefetch) -> None:
        """Whose inbox it is to fill."""
        self._fetcher = Fetcher(
            Link(self._endpoint, LONGEST_BLOCK_MS / 1000 + READ_MARGIN_S),
            Turns(self.queues, weights),
            self.identity,
            board,
            self.inbox,
            workload,
            self.committer,
            prefetch,
            self.clock,
            self._link,
        )

    def start(self) -> None:
        self.committer.start()
        self._fetcher.start()

    def stop(self) -> None:
        """Read no more, and hand back at once what has not begun. Repeatedly, if need be."""
        self._fetcher.stop()

    def close(self) -> bool:
        """Write what is left. False when that could not be done in time."""
        return self.committer.close(COMMIT_TIMEOUT_S)

    def _link(self) -> Link:
        return Link(self._endpoint, COMMIT_TIMEOUT_S)
