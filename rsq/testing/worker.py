"""A real worker in a thread of the test's process, and how a test waits until it is idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from rsq import keys
from rsq.app import BaseApp
from rsq.broker.connection import Endpoint, Link
from rsq.broker.source_status import waits
from rsq.broker.wire import Command
from rsq.broker.worker_queue import by_partition
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.streams.declare import sources_of
from rsq.testing.server import LINK_TIMEOUT_S
from rsq.worker.solo import SoloWorker

COUNTS = 1 + len(keys.PRIORITIES)
"""Numbers that tell what waits in a queue: one of its delayed messages, one for each stream."""

LOOK_S = (0.005, 0.05)
"""First and longest pause between two looks at a worker that is not idle."""


class ThreadWorker:
    """A real worker in a thread of this process. Made by `app.testing.worker()`."""

    def __init__(self, app: BaseApp, queue_names: Sequence[str]) -> None:
        self._app = app
        self._settings = app.settings
        self._solo = SoloWorker(app, queue_names, main_thread=False)
        self._link = Link(Endpoint.of(self._settings), LINK_TIMEOUT_S)
        self._thread = threading.Thread(target=self._serve, name="rsq-test-worker", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        """Take a lease and work. Raises BrokerError."""
        self._solo.begin()
        self._thread.start()

    def wait_idle(self, timeout: float = 10.0, delayed: bool = True) -> None:
        """Wait until all that was sent to the worker's queues is done, what tasks send meanwhile included.

        timeout  seconds
        delayed  wait for what has its time yet to come, too: retries, countdowns
        Raises   TimeoutError, which tells what is left; what ended the worker
        """
        deadline = time.monotonic() + timeout
        pause_s = LOOK_S[0]
        while left := self._left(delayed):
            self.check()
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the worker is not idle after {timeout:g} s: {left}")
            time.sleep(pause_s)
            pause_s = min(LOOK_S[1], pause_s * 2)

    def stop(self) -> None:
        """Let the running task end, then end. Raises TimeoutError when it runs longer than `shutdown_timeout_s`."""
        self._solo.stop()
        self._thread.join(self._settings.shutdown_timeout_s)
        self._link.close()
        if self._thread.is_alive():
            raise TimeoutError(f"the worker does not end: {self._running()}")

    def check(self) -> None:
        """Raise what ended the worker before its time, if anything did."""
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        try:
            if not self._solo.serve():
                raise BrokerUnavailable("the worker ended with outcomes that it could not commit")
        except BaseException as error:
            self._error = error

    def _left(self, delayed: bool) -> str:
        """What is not done yet, in words; '' for nothing."""
        solo = self._solo
        done = solo.done
        # What runs may be in no queue any more (`acks_late=False`), and it may send something: look before and after.
        # An event goes from its stream into a queue.
        left = self._unread() or self._running() or self._waiting(delayed) or self._running()
        return left or ("more" if solo.done != done else "")

    def _running(self) -> str:
        held = self._solo.unsettled()
        return f"running: {', '.join(f'{d.task}[{d.id}]' for d in held)}" if held else ""

    def _unread(self) -> str:
        """The streams of events of which not all is fed."""
        sources = sources_of(self._app.tasks, self._solo.queues)
        left = [source for _, source, queue in sources if waits(self._link, queue, source)]
        return f"unread: {', '.join(map(str, left))}" if left else ""

    def _waiting(self, delayed: bool) -> str:
        left = []
        for queues in by_partition(self._solo.queues):
            # One transaction: between two looks a message could move from a queue not yet seen to one seen already.
            # Into another partition none moves.
            commands: list[Command] = []
            for queue in queues:
                commands.append(("ZCARD", queue.keys.delayed))
                commands += [("XLEN", stream) for stream in queue.keys.streams()]
            numbers = self._link.pipeline([("MULTI",), *commands, ("EXEC",)])[-1]
            if isinstance(numbers, BrokerError):
                raise numbers
            for queue in queues:
                (later, *now), numbers = numbers[:COUNTS], numbers[COUNTS:]
                if sum(now) or (delayed and later):
                    left.append(f"queue {queue.name} holds {sum(now)} messages and {later} delayed ones")
        return "; ".join(left)
