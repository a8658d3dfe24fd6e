"""One body at a time, in the thread that serves: the main thread of a child (prefork), or of the worker (solo)."""

from __future__ import annotations

import logging
import time

from rsq.calls.outcome import Released
from rsq.worker.executors.runner import Executor, Surroundings
from rsq.worker.interrupt import InMainThread

log = logging.getLogger("rsq.worker")

MOST_STRAYS = 100
"""So many errors from nowhere, one after the other, are an error of this process."""


class SerialExecutor(Executor):
    """Takes from the inbox, runs, hands the verdict to the committer."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._way = surroundings.serving()
        super().__init__(surroundings, 1, lambda: self._way)
        self._committer = surroundings.committer
        self._strays = 0

    def install(self) -> None:
        """Let bodies be interrupted. Called in the main thread, which is the one that will serve."""
        if isinstance(self._way, InMainThread):
            self._way.install()

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough."""
        self._committer.leave_to_me()
        going = True
        while going:
            try:
                self._serve()
                going = False
            except BaseException:
                self._strays += 1
                if self._strays > MOST_STRAYS:
                    raise
                # By a signal handler that a body has left behind, such as that of an alarm.
                log.exception("something was raised while no task ran; going on")
                self._hand_back_taken()
        self._runners[0].attempts.close()
        self._links.close()

    def _serve(self) -> None:
        """One after the other. Raises what comes from nowhere."""
        inbox, runner, committer = self._inbox, self._runners[0], self._committer
        wear = self._wear if self._wear.limited else None
        while (wear is None or not wear.is_reached(runner.done)) and (delivery := inbox.peek()) is not None:
            if delivery.crashes or delivery.overdue_s:
                # It may take this process with it: what has ended must not run again for that.
                committer.write_all()
            # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
            now = time.monotonic()
            runner.running = (delivery, now)
            if inbox.remove(delivery):
                runner.run(delivery, now)
            runner.running = None
            self._strays = 0
            if committer.left:
                committer.write_left(idle=not inbox)

    def _hand_back_taken(self) -> None:
        """What has left the inbox and has no outcome is in nobody's hands."""
        runner = self._runners[0]
        if runner.running is None:
            return
        delivery, runner.running = runner.running[0], None
        if delivery not in self._inbox.held() and delivery not in self._committer.held():
            self._committer.put(Released(delivery))
