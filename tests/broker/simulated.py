"""The scripts with a clock that tests set by hand: hours pass in no time, and it may jump."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from rsq.broker import scripts

_NOW_MS = re.compile(r"local function now_ms\(\)\n.*?\nend\n", re.DOTALL)
_KEY = "{rsq:0}:simulated-clock"


class SimulatedClock:
    """Time by the scripts, in ms, until the test ends. It stands still unless it is moved.

    In a copy of each script's text `now_ms` reads it; no other line of a worker's scripts knows the time.
    """

    def __init__(self, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._redis = redis
        self.set(1_800_000_000_000)
        for script in {*scripts.ALL, *(script.sharded for script in scripts.ALL)}:
            read = f"local function now_ms() return tonumber(redis.call('GET', '{_KEY}')) end\n"
            source, replaced = _NOW_MS.subn(read, script.source)
            assert replaced == 1 or "now_ms" not in source
            monkeypatch.setattr(script, "source", source)
            monkeypatch.setattr(script, "sha", hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

    def set(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._redis.set(_KEY, now_ms, px=3_600_000)

    def jump(self, seconds: float) -> None:
        self.set(self.now_ms + int(seconds * 1000))
