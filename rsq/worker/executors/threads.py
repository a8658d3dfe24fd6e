"""Several bodies at once, each in a thread of one process."""

from __future__ import annotations

import threading
import time

from rsq.message import Delivery
from rsq.worker.executors.lane import Lane, Surroundings
from rsq.worker.interrupt import ThreadInterrupt


class ThreadsExecutor:
    """One thread for each slot of the board. Whoever is free waits for its turn at the inbox, which has one reader."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.slots = len(surroundings.board.slots)
        self._inbox = surroundings.inbox
        self._wear = surroundings.wear
        self._links = surroundings.links
        self._hand_back = surroundings.hand_back
        self._lanes = [Lane(surroundings, number, ThreadInterrupt()) for number in range(self.slots)]
        self._turn = threading.Lock()
        self._begun = 0
        self._failure: BaseException | None = None

    @property
    def done(self) -> int:
        """Bodies that ran to their end."""
        return sum(lane.done for lane in self._lanes)

    @property
    def busy_s(self) -> float:
        """How long they took, summed."""
        return sum(lane.busy_s for lane in self._lanes)

    def install(self) -> None:
        """Nothing is needed here for bodies to be interrupted."""

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        return [running for lane in self._lanes if (running := lane.running) is not None]

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs and can be reached."""
        for lane in self._lanes:
            running = lane.running
            if running is not None and running[0] is delivery:
                lane.interrupt.throw(delivery, error)

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough. Raises what ended a thread."""
        threads = [
            threading.Thread(target=self._serve_lane, args=(lane,), name=f"rsq-task-{number}", daemon=True)
            for number, lane in enumerate(self._lanes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._links.close()
        if self._failure is not None:
            raise self._failure

    def _serve_lane(self, lane: Lane) -> None:
        try:
            while (delivery := self._next(lane)) is not None:
                done, since = lane.done, time.monotonic()
                lane.run(delivery, since)
                lane.running = None
                if lane.done == done:
                    with self._turn:
                        self._begun -= 1  # it was not begun after all
            lane.attempts.close()
        except BaseException as error:
            # With fewer threads than it says, it must not go on.
            self._failure = error
            self._hand_back()

    def _next(self, lane: Lane) -> Delivery | None:
        """Take what comes next into this lane; None when there is nothing more to begin."""
        while True:
            with self._turn:
                if self._wear.limited and self._wear.is_reached(self._begun):
                    break
                delivery = self._inbox.peek()
                if delivery is None:
                    return None
                # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
                lane.running = (delivery, time.monotonic())
                if self._inbox.remove(delivery):
                    self._begun += 1
                    return delivery
                lane.running = None
        self._hand_back()
        return None
