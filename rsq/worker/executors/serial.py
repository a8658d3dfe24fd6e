"""One body at a time, in the thread that serves: the main thread of a child (prefork), or of the worker (solo)."""

from __future__ import annotations

import time

from rsq.message import Delivery
from rsq.worker.executors.lane import Lane, Surroundings


class SerialExecutor:
    """Takes from the inbox, runs, hands the verdict to the committer."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.slots = 1
        self._inbox = surroundings.inbox
        self._committer = surroundings.committer
        self._wear = surroundings.wear
        self._links = surroundings.links
        self._lane = Lane(surroundings, 0, surroundings.interrupt())

    @property
    def done(self) -> int:
        """Bodies that ran to their end."""
        return self._lane.done

    @property
    def busy_s(self) -> float:
        """How long they took, summed."""
        return self._lane.busy_s

    def install(self) -> None:
        """Let bodies be interrupted. Called in the main thread, which is the one that will serve."""
        self._lane.interrupt.install()

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        running = self._lane.running
        return [] if running is None else [running]

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs and can be reached."""
        self._lane.interrupt.throw(delivery, error)

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough."""
        inbox, lane, committer = self._inbox, self._lane, self._committer
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
