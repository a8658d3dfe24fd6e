"""The tasks that are measured. Their bodies do nothing, so that what is left is rsq itself."""

from __future__ import annotations

import os
import time

from rsq import App
from rsq.task import Task

app = App("bench")


@app.task
def add(x: int, y: int) -> int:
    """The usual task of the benchmarks: its result is kept."""
    return x + y


@app.task
def total(values: list[int]) -> int:
    """The body of a chord."""
    return sum(values)


@app.task
async def aadd(x: int, y: int) -> int:
    """The same as a coroutine."""
    return x + y


@app.task(ignore_result=True)
def add_quietly(x: int, y: int) -> int:
    """The same, and nobody wants the result."""
    return x + y


@app.task(ignore_result=True)
def swallow(data: bytes) -> None:
    """Takes whatever it is given."""


@app.task
def mark() -> tuple[int, float, float]:
    """Who runs this, the moment by the monotonic clock, which all processes of a host share, and the seconds of
    processor time that the process has used so far.
    """
    return os.getpid(), time.monotonic(), time.process_time()


@app.task(bind=True, ignore_result=True, retry_backoff=0, default_retry_delay=0)
def fail_once(self: Task[[], None]) -> None:
    """Fails in its first attempt, with the second one due at once."""
    if self.request.attempt == 1:
        raise RuntimeError("the first attempt fails")


@app.task(bind=True)
def emit_numbers(self: Task[[int], None], count: int) -> None:
    """Emits so many values, as fast as it can."""
    for number in range(count):
        self.emit(number)


@app.task(bind=True)
def emit_moments(self: Task[[int, float], None], count: int, pause_s: float) -> None:
    """Emits the moment by the monotonic clock, so often, with a pause before each."""
    for _ in range(count):
        time.sleep(pause_s)
        self.emit(time.monotonic())


@app.task
def hold(seconds: float) -> tuple[int, float, float]:
    """Who ran this, and from when to when by the monotonic clock."""
    began = time.monotonic()
    time.sleep(seconds)
    return os.getpid(), began, time.monotonic()


@app.task
def lateness(due_s: float) -> float:
    """Seconds from the due time (since the epoch) to the start of the body."""
    return time.time() - due_s
