"""Writes what running tasks tell of their progress, so that telling costs them nothing and cannot fail.

A thread writes what is newest of each task, and then nothing for a while: however often tasks tell, a process writes
twice a second at most, and the last report is always written.
"""

from __future__ import annotations

import logging
import threading
import time

from rsq.broker.forks import renew_in_child
from rsq.broker.pool import LinkPool
from rsq.broker.wire import Command
from rsq.calls.progress import TTL_MS
from rsq.errors import BrokerError
from rsq.on_demand import OnDemand

log = logging.getLogger("rsq.worker")

EVERY_S = 0.5
"""Pause between two writes."""

MOST_WAITING = 10_000
"""While the server is away, reports of no more tasks than this are kept."""


class Reporter:
    """For any number of threads. Its own thread starts with the first report, in a forked child anew."""

    def __init__(self, pool: LinkPool) -> None:
        self._pool = pool
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._newest: dict[str, bytes] = {}
        self._something = threading.Event()
        self._thread = OnDemand("rsq-progress")

    def report(self, key: str, packed: bytes) -> None:
        """Have this written soon, in place of what was told before. Raises nothing."""
        with self._lock:
            if key in self._newest or len(self._newest) < MOST_WAITING:
                self._newest[key] = packed
            self._thread.need(self._run)
        self._something.set()

    def flush(self) -> None:
        """Write now what waits: the process is about to end. Raises nothing."""
        if self._newest:
            self._write_newest()

    def _run(self) -> None:
        while True:
            self._something.wait()
            self._something.clear()
            if not self._write_newest():
                self._something.set()
            time.sleep(EVERY_S)

    def _write_newest(self) -> bool:
        with self._writing:  # no older report after a newer one
            with self._lock:
                newest, self._newest = self._newest, {}
            if self._write(newest):
                return True
            with self._lock:
                # What was told meanwhile is newer.
                self._newest = newest | self._newest
            return False

    def _write(self, reports: dict[str, bytes]) -> bool:
        commands: list[Command] = [("SET", key, packed, "PX", TTL_MS) for key, packed in reports.items()]
        link = self._pool.take()
        try:
            refused = [reply for reply in link.pipeline(commands) if isinstance(reply, BrokerError)]
        except BrokerError as error:
            log.debug("progress could not be written, again in %.1f s: %s", EVERY_S, error)
            return False
        finally:
            self._pool.give_back(link)
        if refused:
            log.warning("the progress of %d tasks was refused: %s", len(refused), refused[0])
        return True
