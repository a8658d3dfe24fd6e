"""One body at a time, in the thread that serves: the main thread of a child (prefork), or of the worker (solo)."""

from __future__ import annotations

import time

from rsq.worker.executors.lane import Executor, Surroundings


class SerialExecutor(Executor):
    """Takes from the inbox, runs, hands the verdict to the committer."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings, 1, surroundings.interrupt)
        self._committer = surroundings.committer

    def install(self) -> None:
        """Let bodies be interrupted. Called in the main thread, which is the one that will serve."""
        self._lanes[0].interrupt.install()

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough."""
        inbox, lane, committer = self._inbox, self._lanes[0], self._committer
        committer.leave_to_me()
        wear = self._wear if self._wear.limited else None
        while (delivery := inbox.peek()) is not None:
            # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
            lane.running = (delivery, time.monotonic())
            if inbox.remove(delivery):
                lane.run(delivery, lane.running[1])
            lane.running = None
            if committer.left:
                committer.write_left(idle=not inbox)
            if wear is not None and wear.is_reached(lane.done):
                break
        lane.attempts.close()
        self._links.close()
