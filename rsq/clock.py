"""The server's clock, kept on this side: all due times and expiries are judged by it, never by a host's own clock."""

from __future__ import annotations

import time


class ServerClock:
    """Follows the server's clock between two readings of it, by this host's monotonic clock."""

    __slots__ = ("_offset_ms", "read_at")

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self.read_at = float("-inf")

    def set(self, now_ms: int) -> None:
        """Take over a reading that the server has just given."""
        self.read_at = time.monotonic()
        self._offset_ms = now_ms - self.read_at * 1000

    def now_ms(self) -> int:
        """Milliseconds since the epoch. Before the first reading this host's own clock stands in."""
        return int(self._offset_ms + time.monotonic() * 1000)
