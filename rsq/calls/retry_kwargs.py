"""Celery's `retry_kwargs`: a map that stands for options of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsq.errors import InvalidTask
from rsq.hints import unknown_text

_NAMES = {"max_retries": "max_retries", "countdown": "default_retry_delay"}


def options_in(retry_kwargs: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that stand in a `retry_kwargs`. Raises InvalidTask, also where `given` says the same thing twice."""
    if not isinstance(retry_kwargs, Mapping):
        raise InvalidTask(f"retry_kwargs takes a map with max_retries and countdown, not {retry_kwargs!r}")
    for name in retry_kwargs:
        if name not in _NAMES:
            raise InvalidTask(unknown_text("retry_kwargs", name, "name in retry_kwargs", _NAMES))
        if _NAMES[name] in given:
            raise InvalidTask(f"{_NAMES[name]} is given twice: leave out {name} in retry_kwargs")
    if "countdown" in retry_kwargs and given.get("retry_backoff"):
        raise InvalidTask("countdown in retry_kwargs says nothing beside retry_backoff, which decides: leave one out")
    return {_NAMES[name]: value for name, value in retry_kwargs.items()}
