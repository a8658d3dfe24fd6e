"""Tasks that emit, for workers as processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rsq import App
from rsq.errors import SoftTimeLimitExceeded
from tests.integration.tasks import journal

app = App("outputs", task_defaults={"retry_backoff": 0.05})


@app.task(bind=True)
def counts(self: Any, number: int, pause_s: float = 0.0) -> int:
    for n in range(number):
        self.emit(n)
        if pause_s:
            time.sleep(pause_s)
    return number


@app.task(bind=True)
async def acounts(self: Any, number: int) -> int:
    for n in range(number):
        await self.aemit(n)
    return number


@app.task
def yields(number: int) -> Generator[int, None, int]:
    yield from range(number)
    return number


@app.task(bind=True, max_crashes=3)
def dies_once(self: Any, number: int, mark: str) -> int:
    """Is killed in the middle of its first run."""
    for n in range(number):
        self.emit(n)
        if n == number // 2 and not Path(mark).exists():
            Path(mark).touch()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
    return number


@app.task(bind=True, max_retries=0, soft_time_limit=1)
def floods(self: Any) -> str:
    try:
        while True:
            self.emit(bytes(64 * 1024))
    except SoftTimeLimitExceeded:
        journal("stopped")
        return "stopped"


@app.task(bind=True, max_retries=0, soft_time_limit=1)
async def afloods(self: Any) -> str:
    try:
        while True:
            await self.aemit(bytes(64 * 1024))
    except SoftTimeLimitExceeded:
        journal("stopped")
        return "stopped"


@app.task(bind=True, max_retries=0)
def fails_later(self: Any, text: str) -> None:
    self.emit(text)
    raise ValueError("no")


@app.task(bind=True, ignore_result=True)
def keeps_nothing(self: Any) -> None:
    self.emit("so far")
