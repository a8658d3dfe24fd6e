"""The beat of `rsq worker -B`, as the supervisor sees it: a process beside the children, replaced when it dies."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from rsq.beat.process import run_beat_beside
from rsq.worker.children import WorkerOptions, exit_code, how_it_ended
from rsq.worker.part import Backoff, Part
from rsq.worker.process import fork
from rsq.worker.stop import STOP

log = logging.getLogger("rsq.worker")

REPLACE_S = (1.0, 60.0)
"""First and longest wait before a beat that died young is replaced; missed slots are caught up with."""

YOUNG_S = 60.0
"""A beat that dies within this time has died young: its schedules are wrong more often than not."""


class BesideBeat(Part):
    """Does nothing until `begin`.

    inherited  descriptors that the process may have
    """

    def __init__(self, options: WorkerOptions, inherited: Collection[int], announce: Callable[[str], None]) -> None:
        self._options = options
        self._inherited = inherited
        self._announce = announce
        self._pid = self._go = 0
        self._started = 0.0
        self._stopping = self._replacing = False
        self._backoff = Backoff(*REPLACE_S)

    def __bool__(self) -> bool:
        """Whether one runs."""
        return self._pid != 0

    def begin(self) -> None:
        """The worker runs: start one, where it was asked for."""
        if self._options.beat and not self._stopping:
            self.due_at = 0.0

    def tend(self, now: float) -> None:
        """Start one."""
        self.due_at = math.inf
        self._replacing = False
        try:
            self._start()
            self._started = now
        except OSError as error:
            self._again(f"cannot be started ({error})")

    def _start(self) -> None:
        app, overrides, announce = self._options.app, self._options.overrides, self._announce
        go_read, go = os.pipe()
        try:
            self._pid = fork(
                lambda: run_beat_beside(go_read, app, overrides, announce), keep=(go_read, *self._inherited)
            )
            self._go = go
        except OSError:
            os.close(go)
            raise
        finally:
            os.close(go_read)

    def reap(self) -> None:
        """Notice its death."""
        code = exit_code(self._pid) if self._pid else None
        if code is None:
            return
        pid, self._pid = self._pid, 0
        os.close(self._go)
        if self._stopping:
            return
        if self._replacing:
            self.due_at = 0.0
            return
        if time.monotonic() - self._started >= YOUNG_S:
            self._backoff.reset()
        self._again(f"(pid {pid}) died: {how_it_ended(code)}")

    def replace(self) -> None:
        """The code has changed: end it, and start one that loads it anew."""
        if self._pid and not self._stopping:
            self._replacing = True
            self._end(signal.SIGTERM)
        elif self.due_at < math.inf:
            self.due_at = 0.0

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and start none any more."""
        self._stopping, self._replacing = True, False
        self.due_at = math.inf
        if self._pid:
            self._end(number)

    def _end(self, number: int) -> None:
        """By the pipe, since its app may take signals over; and by a signal, for it may still be loading that."""
        with suppress(BrokenPipeError):
            os.write(self._go, STOP)
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def _again(self, what: str) -> None:
        wait_s = self._backoff.next_s()
        log.error("the beat %s; another one in %.0f s", what, wait_s)
        self.due_at = time.monotonic() + wait_s
