"""The moment by which something has to be done: one object that goes down to each single wait."""

from __future__ import annotations

from time import monotonic


class Deadline:
    """A moment on the monotonic clock.

    began    when it was set (monotonic seconds)
    seconds  how long after that it strikes
    """

    __slots__ = ("_at", "began", "seconds")

    def __init__(self, seconds: float) -> None:
        self.began = monotonic()
        self.seconds = seconds
        self._at = self.began + seconds

    def left_s(self) -> float:
        """Seconds until it strikes; 0 or less when it has."""
        return self._at - monotonic()

    def within(self, seconds: float) -> Deadline:
        """The earlier of this one and the one so many seconds from now."""
        left_s = self._at - monotonic()
        return Deadline(min(seconds, left_s))

    def share(self, part: float) -> Deadline:
        """The one by which this part of the time that is left will have gone by."""
        return Deadline((self._at - monotonic()) * part)
