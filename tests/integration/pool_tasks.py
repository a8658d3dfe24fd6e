"""More tasks of the same app: those that tell one way of running bodies from another."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextvars import ContextVar
from typing import Any

from rsq import Task
from tests.integration.tasks import app, journal

word: ContextVar[str] = ContextVar("word", default="unset")


@app.task(bind=True)
def meet(self: Task[..., Any], path: str, given: str) -> tuple[str, str, str, bool]:
    """What the context held at the start, and what it holds after all have met."""
    before = word.get()
    word.set(given)
    mine = self.request.id
    journal("began meet")
    while not os.path.exists(path):
        time.sleep(0.01)
    return before, word.get(), given, mine == self.request.id


@app.task(bind=True)
async def ameet(self: Task[..., Any], path: str, given: str) -> tuple[str, str, str, bool]:
    """The same as a coroutine."""
    before = word.get()
    word.set(given)
    mine = self.request.id
    journal("began ameet")
    while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - the test makes the file
        await asyncio.sleep(0.05)
    return before, word.get(), given, mine == self.request.id


@app.task(bind=True, max_retries=2)
async def aflaky(self: Task[..., Any], fail_times: int) -> int:
    await asyncio.sleep(0)
    if self.request.attempt <= fail_times:
        raise ValueError(f"attempt {self.request.attempt}")
    return self.request.attempt


@app.task(bind=True, max_retries=5)
async def aasks_for_retry(self: Task[..., Any]) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        self.retry(countdown=0.01)
    return self.request.attempt


@app.task
async def atogether(number: int, path: str) -> int:
    """One of many that begin before any ends."""
    journal("began", number)
    while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - the test makes the file
        await asyncio.sleep(0.05)
    return number


@app.task
async def ping() -> str:
    return "pong"


@app.task
def thread_name() -> str:
    return threading.current_thread().name


_kept: list[bytearray] = []


@app.task
def grow(mib: int) -> int:
    """Leaks memory; gives the process that did."""
    _kept.append(bytearray(os.urandom(1024)) * 1024 * mib)
    return os.getpid()


@app.task(bind=True)
def advances(self: Task[..., Any], steps: int, path: str) -> str:
    """Tells of each step, and then runs until the file is there."""
    for step in range(1, steps + 1):
        self.progress(step, steps, what=f"row {step}")
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"
