"""What the supervisor's loop knows of each of its parts."""

from __future__ import annotations

import math


class Part:
    """Does nothing. The loop calls `tend` once it is due, and `on_readable` for descriptors registered with the part.

    due_at  when it wants to be tended next, on the monotonic clock; `math.inf`: not by itself
    """

    due_at: float = math.inf

    def on_readable(self, fd: int) -> None:
        """This descriptor has something to read."""

    def tend(self, now: float) -> None:
        """Do what is due, and set `due_at` anew. Takes `LINK_TIMEOUT_S` at most, and waits for no user code."""


class Backoff:
    """Waits that double from the first to the longest one, in seconds."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        """How long to wait this time."""
        wait_s, self._next_s = self._next_s, min(self._longest_s, 2 * self._next_s)
        return wait_s

    def reset(self) -> None:
        """It went well: the next wait is the first one again."""
        self._next_s = self._first_s
