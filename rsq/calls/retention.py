"""How much of a stream of events stays: `app.stream(...)`. Data, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from rsq.calls.checks import check_stream, positive, require
from rsq.errors import SettingsError


@dataclass(frozen=True)
class Retention:
    """What `app.stream` says; see there.

    length, age_ms  so many entries stay, or those that are not older; one of them is None
    groups      whose reading counts; None: that of every group
    silence_ms  after so long a group counts no more that has something to read; None: each counts for ever
    hard        what is beyond goes though somebody has not read it
    """

    stream: str
    length: int | None
    age_ms: int | None
    groups: tuple[str, ...] | None = None
    silence_ms: int | None = None
    hard: bool = False

    def __str__(self) -> str:
        if self.length is not None:
            return f"{self.length} entries"
        return f"{timedelta(milliseconds=self.age_ms or 0)}"


def retention(
    stream: str,
    retain: int | timedelta,
    retain_for: Iterable[str] | None,
    longest_silence: float | timedelta | None,
    hard: bool,
) -> Retention:
    """What these ask for. Raises SettingsError."""
    check_stream(stream)
    require("hard", hard, bool)
    length = age_ms = None
    if isinstance(retain, timedelta):
        age_ms = max(1, int(positive("retain", retain) * 1000))
    elif isinstance(retain, int) and not isinstance(retain, bool) and 0 <= retain <= 2**53:
        length = retain
    else:
        raise SettingsError(
            f"retain takes a number of entries, 0 or more, or a timedelta for which they stay, not {retain!r}"
        )
    groups = None
    if retain_for is not None:
        groups = () if isinstance(retain_for, (str, bytes)) else tuple(retain_for)
        if not groups or not all(isinstance(each, str) and each for each in groups) or len(groups) > 1000:
            raise SettingsError(f"retain_for takes a list of groups, at most 1,000, not {retain_for!r}")
    silence_ms = None if longest_silence is None else max(1, int(positive("longest_silence", longest_silence) * 1000))
    return Retention(stream, length, age_ms, groups, silence_ms, hard)
