"""Limits on how often a task starts: what is written is read here, `begin.lua` keeps it."""

from __future__ import annotations

import re

from rsq.errors import SettingsError

_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)?\s*([smhd])\s*")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def interval_us(rate: str) -> int:
    """Microseconds between two starts: of ``"100/m"`` it is 600,000. Raises SettingsError."""
    match = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    number = float(match[1]) if match else 0.0
    span_s = float(match[2] or 1) * _SECONDS[match[3]] if match else 0.0
    if number <= 0 or span_s <= 0:
        raise SettingsError(
            f'rate_limit {rate!r} cannot be read: write starts by time, such as "10/s", "100/m", "5/30s" or "1000/h"'
        )
    return max(1, round(span_s * 1e6 / number))
