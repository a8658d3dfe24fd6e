"""Threads of several lanes that do the same one after the other: what comes up meanwhile is done together.

Side by side each would do a third as much at once, thrice as often, and they would all wait for the interpreter.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rsq.bell import Bell

LATE_S = 0.05
"""One that takes longer, since its server is away or slow, is waited for no more: the others pass it by."""


class Turnstile:
    """Lets one in at a time, in the order in which they came, as long as each is quick. For any number of threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._line = deque[Bell]()
        self._taken = False
        self._since = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One's turn has come, or the one before is late."""
        mine = self._enter()
        try:
            yield
        finally:
            if mine:
                self._leave()

    def _enter(self) -> bool:
        with self._guard:
            if not self._taken:
                self._taken, self._since = True, monotonic()
                return True
            bell = Bell()
            self._line.append(bell)
        while (left_s := self._since + LATE_S - monotonic()) > 0:
            if bell.wait(left_s):
                return True
        with self._guard:
            if bell in self._line:
                self._line.remove(bell)
                return False
            return True  # it came just now

    def _leave(self) -> None:
        with self._guard:
            if self._line:
                self._since = monotonic()
                self._line.popleft().set()
            else:
                self._taken = False
