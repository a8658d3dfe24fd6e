"""One thread of a child that throws into bodies what is due: their time limits, and what could not strike at once."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from rsq.calls.message import Delivery

log = logging.getLogger("rsq.worker")

AGAIN_S = 0.01
"""Wait before an error is thrown again that has not reached its body."""

LONGEST_WAIT_S = 3600.0
"""What a wait may be given."""

Throw = Callable[[Delivery, BaseException], bool]
"""Raises an error in the body of a delivery; False when it has not, and is to be called again: `Interrupt.throw`."""


class Due(Protocol):
    """What is watched. `next_at` is when to act (monotonic), and changes with each act."""

    next_at: float

    def act(self, now: float) -> None:
        """It is time. In the thread of the watch."""
        ...


class Watch:
    """The clock of one child. Its thread begins with the first thing to watch.

    kills  a body is alone in its process, and the supervisor kills it at its hard limit
    """

    def __init__(self, kills: bool) -> None:
        self.kills = kills
        self._watched: set[Due] = set()
        self._wake_at = math.inf
        self._bell = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, due: Due) -> None:
        """Watch it, from now on."""
        self._watched.add(due)
        if self._thread is None:
            self._start()
        if due.next_at < self._wake_at:
            self._bell.set()

    def discard(self, due: Due) -> None:
        """No longer. The thread finds out by itself: to wake it would cost more than it saves."""
        self._watched.discard(due)

    def throw(self, throw: Throw, delivery: Delivery, error: BaseException, runs: Callable[[], bool]) -> None:
        """Throw until the error has been raised, or its body has ended."""
        if not throw(delivery, error):
            self.add(_Thrown(self, throw, delivery, error, runs))

    def close(self) -> None:
        """Nothing is watched any more."""
        self._closed = True
        self._bell.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rsq-time-limits", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._bell.clear()
            self._wake_at = math.inf  # whoever begins meanwhile rings
            now = time.monotonic()
            for due in tuple(self._watched):
                if due.next_at <= now:
                    self._act(due, now)
            self._wake_at = min((due.next_at for due in tuple(self._watched)), default=math.inf)
            self._bell.wait(max(0.0, min(self._wake_at - time.monotonic(), LONGEST_WAIT_S)))

    def _act(self, due: Due, now: float) -> None:
        try:
            due.act(now)
        except Exception:
            # All other limits hang on this thread.
            self._watched.discard(due)
            log.exception("a time limit could not be raised")


class _Thrown:
    """An error that has not reached its body yet."""

    def __init__(
        self, watch: Watch, throw: Throw, delivery: Delivery, error: BaseException, runs: Callable[[], bool]
    ) -> None:
        self._watch = watch
        self._throw = throw
        self._delivery = delivery
        self._error = error
        self._runs = runs
        self.next_at = time.monotonic() + AGAIN_S

    def act(self, now: float) -> None:
        self.next_at = now + AGAIN_S
        if not self._runs() or self._throw(self._delivery, self._error):
            self._watch.discard(self)
