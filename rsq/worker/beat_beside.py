"""The beat of `rsq worker -B`, as the supervisor sees it: a process beside the children, replaced when it dies."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from rsq.beat.process import BeatChild
from rsq.worker.children import Children, WorkerOptions

log = logging.getLogger("rsq.worker")

REPLACE_S = 1.0
"""Wait before a beat that died is replaced; other beats go on meanwhile, and missed slots are caught up with."""


class BesideBeat:
    """Does nothing until `begin`."""

    def __init__(self, options: WorkerOptions, children: Children, announce: Callable[[str], None]) -> None:
        self._options = options
        self._siblings = children
        self._announce = announce
        self._child: BeatChild | None = None
        self._stopping = False
        self._replacing = False
        self.spawn_at: float | None = None

    def __bool__(self) -> bool:
        """Whether one runs."""
        return self._child is not None

    def begin(self) -> None:
        """The worker runs: start one, where it was asked for."""
        if self._options.beat:
            self.spawn_at = time.monotonic()

    def tend(self, now: float) -> None:
        """Notice its death, and start one when it is time."""
        if self._child is not None and self._child.ended():
            if self._replacing:
                self.spawn_at = now
            elif not self._stopping:
                log.error("the beat (pid %d) died; another one in %.0f s", self._child.pid, REPLACE_S)
                self.spawn_at = now + REPLACE_S
            self._child = None
        if self.spawn_at is not None and now >= self.spawn_at:
            self.spawn_at = None
            self._replacing = False
            self._child = BeatChild(
                self._options.app, self._options.overrides, self._announce, self._siblings.own_pipes()
            )

    def replace(self) -> None:
        """The code has changed: end it, and start one that loads it anew."""
        if self._child is not None and not self._stopping:
            self._replacing = True
            self._child.signal(signal.SIGTERM)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and start none any more."""
        self._stopping, self._replacing = True, False
        self.spawn_at = None
        if self._child is not None:
            self._child.signal(number)
