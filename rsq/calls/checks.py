"""Checks of what an option is given: each gives the value as rsq keeps it, or raises SettingsError in one line."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rsq.errors import LONGEST_S, SettingsError

MOST_ENTRIES = 1_000_000
"""Values that an output keeps."""


def require(name: str, value: Any, *kinds: type | None) -> Any:
    """Give `value` back if it is of one of these kinds (None stands for None itself), else raise SettingsError."""
    for kind in kinds:
        if value is None if kind is None else isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    names = " or ".join("None" if kind is None else kind.__name__ for kind in dict.fromkeys(kinds))
    raise SettingsError(f"{name} takes {names}, not {value!r}")


def positive(name: str, value: Any) -> float:
    seconds = seconds_of(name, value)
    if not seconds > 0:  # NaN, too
        raise SettingsError(f"{name} must be above 0 seconds, not {value!r}")
    return seconds


def not_negative(name: str, value: Any) -> float:
    seconds = seconds_of(name, value)
    if seconds < 0:
        raise SettingsError(f"{name} must be 0 seconds or more, not {value!r}")
    return seconds


def count_of(name: str, value: Any) -> int:
    number: int = require(name, value, int)
    if number < 0:
        raise SettingsError(f"{name} must be 0 or more, not {number}")
    return number


def check_output_length(value: Any) -> int:
    number: int = require("output_length", value, int)
    if not 1 <= number <= MOST_ENTRIES:
        raise SettingsError(f"output_length must be from 1 to {MOST_ENTRIES:,}, not {number}")
    return number


def check_stream(stream: Any) -> None:
    if not isinstance(stream, str) or not 0 < len(stream) <= 500:
        raise SettingsError(f"a stream is named by the text of 1 to 500 characters that is its key, not {stream!r}")


def check_timelimit(timelimit: tuple[float | None, float | None]) -> None:
    hard, soft = timelimit
    if hard is not None and soft is not None and soft >= hard:
        raise SettingsError(
            f"soft_time_limit ({soft:g} s) must be below time_limit ({hard:g} s), so that the task can clean up between"
        )


def check_key(name: str, key: Any) -> None:
    if key is not None and not isinstance(key, str) and not callable(key):
        raise SettingsError(f"{name} takes a text or a function of the arguments, not {key!r}")


def seconds_of(name: str, value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{name} takes seconds (a number or a timedelta), not {value!r}")
    if not -LONGEST_S <= value <= LONGEST_S:
        raise SettingsError(f"{name} takes seconds, a hundred years of them at most, not {value!r}")
    return float(value)


def classes_of(classes: Any) -> Any:
    """A tuple of them; what is none is left for `RetryPolicy` to refuse."""
    if isinstance(classes, type):
        return (classes,)
    return tuple(classes) if isinstance(classes, (list, set, frozenset)) else classes
