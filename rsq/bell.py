"""A bell between threads: one waits for it, any may ring it."""

from __future__ import annotations

import threading


class Bell:
    """`threading.Event` for one waiting thread, at a third of the cost: one lock, and whoever was woken waits for none.

    A ring that nobody waits for is kept for the next wait, once; the wait that hears it takes it away.
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def set(self) -> None:
        """Ring. From any thread."""
        if self._silent.locked():
            try:
                self._silent.release()
            except RuntimeError:
                pass  # somebody else rang at the same moment

    def clear(self) -> None:
        """Forget a ring that nobody has heard."""
        self._silent.acquire(blocking=False)

    def wait(self, timeout_s: float = -1) -> bool:
        """Until it rings, for `timeout_s` at most; below 0: however long. False when it did not."""
        return self._silent.acquire(timeout=timeout_s)

    def is_set(self) -> bool:
        """Whether a ring waits to be heard."""
        return not self._silent.locked()
