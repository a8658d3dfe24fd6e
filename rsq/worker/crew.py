"""The crew of one child: inbox, committer, fetcher and executor, put together, started and stopped in order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rsq.broker.connection import Endpoint, Link
from rsq.broker.pool import LinkPool
from rsq.broker.worker_queue import LONGEST_BLOCK_MS, WorkerQueue
from rsq.calls.message import Delivery
from rsq.clock import ServerClock
from rsq.settings import Settings
from rsq.task import Task
from rsq.worker.attempt import Attempts
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import Wear
from rsq.worker.committer import Committer
from rsq.worker.executors import make_executor
from rsq.worker.executors.lane import Surroundings
from rsq.worker.fetcher import Fetcher
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.interrupt import InMainThread, InThread
from rsq.worker.prefetch import Prefetch
from rsq.worker.turns import Turns
from rsq.worker.watch import Watch

READ_MARGIN_S = 2.0
"""A blocking read that is this late has lost its peer."""

COMMIT_TIMEOUT_S = 5.0

SWITCH_S = 0.0005
"""For so long a thread keeps the interpreter that another one waits for. With Python's own 5 ms a committer whose reply
has come waits longer for bodies that never let go than it has waited for the server."""


def share_the_interpreter() -> None:
    """Before the app is loaded, which may know better."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))


class Crew:
    """Everything that runs in one child beside the supervisor's work. Also what a solo worker consists of.

    pool        how bodies run: a name of `-P`. As many at once as the board has slots
    wear        after how much the crew begins nothing more; default: never
    weights     of the queues; default: their order is strict
    main_thread  `serve` is called in it
    on_failure  called when nothing can be committed any more; default: `serve` ends
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        settings: Settings,
        queue_names: Sequence[str],
        identity: Identity,
        board: ChildBoard,
        pool: str = "prefork",
        wear: Wear | None = None,
        on_failure: Callable[[], None] | None = None,
        weights: Mapping[str, int] | None = None,
        main_thread: bool = True,
    ) -> None:
        self._endpoint = Endpoint.of(settings)
        queues = [WorkerQueue(name, settings) for name in queue_names]
        clock = ServerClock()
        self._inbox = Inbox()
        self._committer = Committer(
            self._make_link(),
            {queue.name: queue for queue in queues},
            board,
            on_lease_lost=lambda consumer: self._fetcher.fence(consumer),
            on_failure=on_failure or self._inbox.close,
            on_caught_up=self._inbox.hungry.set,
            log_arguments=settings.log_arguments,
        )
        self._watch = Watch(kills=pool == "prefork")
        surroundings = Surroundings(
            inbox=self._inbox,
            committer=self._committer,
            identity=identity,
            board=board,
            queues={queue.name: (index, queue) for index, queue in enumerate(queues)},
            links=LinkPool(self._endpoint, COMMIT_TIMEOUT_S),
            attempts=partial(Attempts, tasks, settings, clock),
            watch=self._watch,
            serving=InMainThread if main_thread else InThread,
            wear=wear or Wear(),
            hand_back=self.stop,
        )
        self.executor = make_executor(pool, surroundings)
        self._fetcher = Fetcher(
            Link(self._endpoint, LONGEST_BLOCK_MS / 1000 + READ_MARGIN_S),
            Turns(queues, weights or {}),
            identity,
            board,
            self._inbox,
            self.executor,
            self._committer,
            Prefetch(settings.prefetch_ms, self.executor.slots),
            clock,
            self._make_link,
        )
        self._board = board
        self._stopping = threading.Lock()

    def serve(self) -> bool:
        """Work in this thread until `stop` is called from another one, or the crew has done enough.

        Returns False when outcomes could not be committed any more.
        """
        self._committer.start()
        self._fetcher.start()
        self.executor.serve()
        self._board.done = self.executor.done
        self._watch.close()
        self.stop()
        return self._committer.close(COMMIT_TIMEOUT_S)

    def stop(self) -> None:
        """Hand back what has not begun, at once; the running body ends in its own time. From any thread, repeatedly."""
        with self._stopping:
            self._inbox.close()
            self._fetcher.stop()

    def unsettled(self) -> list[Delivery]:
        """Deliveries that run, or whose verdict is not known to be written."""
        # In this order: a delivery moves from the first list to the second.
        return [delivery for delivery, _ in self.executor.running()] + self._committer.held()

    def _make_link(self) -> Link:
        return Link(self._endpoint, COMMIT_TIMEOUT_S)
