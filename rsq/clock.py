"""The server's clock, kept on this side: all due times and expiries are judged by it, never by a host's own clock.

And the clock on the wall: what a time means that is written down without its offset.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone, tzinfo
from functools import lru_cache

from rsq.errors import SettingsError

LONGEST_S = 100 * 365 * 86_400
"""No time that a setting, an option or a message carries is longer: Redis refuses what its own numbers cannot hold."""


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


@lru_cache(maxsize=1024)
def zone_of(name: str) -> tzinfo:
    """The time zone of this name. Raises SettingsError."""
    if name == "UTC":
        return timezone.utc  # there everywhere, with no data of the system
    from zoneinfo import ZoneInfo  # late: few programs name a zone

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, TypeError, OSError):
        raise SettingsError(
            f"there is no time zone {name!r}: take a name such as Europe/Paris; "
            "where the system knows no zones, pip install tzdata"
        ) from None


def epoch_ms(moment: datetime, zone: str) -> int:
    """A datetime in ms since the epoch; one without an offset is a time on the wall clock of `zone`."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone_of(zone))
    return int(moment.timestamp() * 1000)
