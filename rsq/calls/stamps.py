"""Stamps as they are revoked: each name with a value is a mark, as a call's id is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsq import codec
from rsq.calls.checks import require


def check_stamps(stamps: Any) -> dict[str, Any]:
    """Raises SettingsError for what is no map from texts."""
    checked = dict(require("stamps", stamps, Mapping))
    for name in checked:
        require("the name of a stamp", name, str)
    return checked


def marks_of(stamps: Mapping[str, Any]) -> list[bytes]:
    """What in a queue's revocations stands for these stamps; a list of values means each of them."""
    return [
        b"stamp " + codec.encode([name, each], f"stamp {name}")
        for name, value in stamps.items()
        for each in (value if isinstance(value, (list, tuple)) else [value])
    ]
