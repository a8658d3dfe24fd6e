"""Several bodies at once, each in a thread of one process."""

from __future__ import annotations

import threading
import time

from rsq.calls.message import Delivery
from rsq.worker.executors.runner import Executor, Runner, Surroundings
from rsq.worker.interrupt import InThread


class ThreadsExecutor(Executor):
    """One thread for each slot of the board. Whoever is free waits for its turn at the inbox, which has one reader."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings, len(surroundings.board.slots), InThread)
        self._hand_back = surroundings.hand_back
        self._turn = threading.Lock()
        self._begun = 0
        self._failure: BaseException | None = None

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough. Raises what ended a thread."""
        threads = [
            threading.Thread(target=self._serve_runner, args=(runner,), name=f"rsq-task-{number}", daemon=True)
            for number, runner in enumerate(self._runners)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._links.close()
        if self._failure is not None:
            raise self._failure

    def _serve_runner(self, runner: Runner) -> None:
        try:
            while (delivery := self._next(runner)) is not None:
                done, since = runner.done, time.monotonic()
                runner.run(delivery, since)
                runner.running = None
                if runner.done == done:
                    with self._turn:
                        self._begun -= 1  # it was not begun after all
            runner.attempts.close()
        except BaseException as error:
            # With fewer threads than it says, it must not go on.
            self._failure = error
            self._hand_back()

    def _next(self, runner: Runner) -> Delivery | None:
        """Take what comes next into this runner; None when there is nothing more to begin."""
        while True:
            with self._turn:
                if self._wear.limited and self._wear.is_reached(self._begun):
                    break
                delivery = self._inbox.peek()
                if delivery is None:
                    return None
                # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
                runner.running = (delivery, time.monotonic())
                if self._inbox.remove(delivery):
                    self._begun += 1
                    return delivery
                runner.running = None
        self._hand_back()
        return None
