"""The crew of one child: lanes and executor, put together, started and stopped in order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rsq.broker.connection import Endpoint
from rsq.broker.pool import LinkPool
from rsq.broker.worker_queue import WorkerQueue, by_partition
from rsq.calls.message import Delivery
from rsq.calls.retention import Retention
from rsq.settings import Settings
from rsq.streams.feeder import Feeder, feeders_of
from rsq.streams.retain import Trimmer, trimmers_of
from rsq.task import Task
from rsq.worker.attempt import Attempts
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import Wear
from rsq.worker.committer import Committer
from rsq.worker.executors import make_executor
from rsq.worker.executors.runner import Source, Surroundings
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.interrupt import InMainThread, InThread
from rsq.worker.lane import COMMIT_TIMEOUT_S, Lane
from rsq.worker.lanes import Committers, Inboxes, side_by_side
from rsq.worker.prefetch import Prefetch
from rsq.worker.turnstile import Turnstile
from rsq.worker.watch import Watch

SWITCH_S = 0.0005
"""For so long a thread keeps the interpreter that another one waits for. With Python's own 5 ms a committer whose reply
has come waits longer for bodies that never let go than it has waited for the server."""


def share_the_interpreter() -> None:
    """Before the app is loaded, which may know better."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))


class Crew:
    """Everything that runs in one child beside the supervisor's work. Also what a solo worker consists of.

    queues      in order; each partition of theirs has a lane
    identities  of the lanes
    pool        how bodies run: a name of `-P`. As many at once as the board has slots
    wear        after how much the crew begins nothing more; default: never
    weights     of the queues; default: their order is strict
    main_thread  `serve` is called in it
    retentions  streams of events that it keeps short
    on_failure  called when nothing can be committed any more; default: `serve` ends
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        settings: Settings,
        queues: Sequence[WorkerQueue],
        identities: Sequence[Identity],
        board: ChildBoard,
        pool: str = "prefork",
        wear: Wear | None = None,
        on_failure: Callable[[], None] | None = None,
        weights: Mapping[str, int] | None = None,
        main_thread: bool = True,
        retentions: Sequence[Retention] = (),
    ) -> None:
        endpoint, by_lane = Endpoint.of(settings), by_partition(queues)
        one = len(by_lane) == 1
        turnstile = None if one else Turnstile()
        self._lanes = lanes = [
            Lane(endpoint, some, identity, turnstile, on_failure or self._give_up)
            for some, identity in zip(by_lane, identities, strict=True)
        ]
        lane_of = {queue.name: lane for lane in lanes for queue in lane.queues}
        self._inbox: Inbox | Inboxes = lanes[0].inbox if one else Inboxes([lane.inbox for lane in lanes])
        self._committer: Committer | Committers = (
            lanes[0].committer if one else Committers({name: lane.committer for name, lane in lane_of.items()})
        )
        self._watch = Watch(kills=pool == "prefork")
        surroundings = Surroundings(
            inbox=self._inbox,
            committer=self._committer,
            board=board,
            sources={
                queue.name: Source(index, queue, lane_of[queue.name].identity) for index, queue in enumerate(queues)
            },
            links=LinkPool(endpoint, COMMIT_TIMEOUT_S),
            attempts=partial(Attempts, tasks, settings, lambda name: lane_of[name].clock),
            watch=self._watch,
            serving=InMainThread if main_thread else InThread,
            wear=wear or Wear(),
            hand_back=self.stop,
        )
        self.executor = make_executor(pool, surroundings)
        for lane in lanes:
            prefetch = Prefetch(settings.prefetch_ms, self.executor.slots, len(lanes))
            lane.feed(self.executor, board, weights or {}, prefetch)
        self._beside: list[Feeder | Trimmer] = [
            *feeders_of(tasks, queues, surroundings.links),
            *trimmers_of(tasks, retentions, endpoint),
        ]
        self._board = board
        self._stopping = threading.Lock()

    def serve(self) -> bool:
        """Work in this thread until `stop` is called from another one, or the crew has done enough.

        Returns False when outcomes could not be committed any more.
        """
        for lane in self._lanes:
            lane.start()
        for each in self._beside:
            each.start()
        self.executor.serve()
        self._board.done = self.executor.done
        self._watch.close()
        self.stop()
        return all(side_by_side([lane.close for lane in self._lanes]))

    def stop(self) -> None:
        """Hand back what has not begun, at once; the running body ends in its own time. From any thread, repeatedly."""
        with self._stopping:
            self._inbox.close()
            side_by_side([*(lane.stop for lane in self._lanes), *(each.stop for each in self._beside)])

    def unsettled(self) -> list[Delivery]:
        """Deliveries that run, or whose verdict is not known to be written."""
        # In this order: a delivery moves from the first list to the second.
        return [delivery for delivery, _ in self.executor.running()] + self._committer.held()

    def _give_up(self) -> None:
        self._inbox.close()
