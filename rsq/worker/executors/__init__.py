"""How bodies run: one module for each way, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable

from rsq.worker.executors.coroutines import AsyncioExecutor
from rsq.worker.executors.runner import Executor, Surroundings
from rsq.worker.executors.serial import SerialExecutor
from rsq.worker.executors.threads import ThreadsExecutor

_EXECUTORS: dict[str, Callable[[Surroundings], Executor]] = {
    "asyncio": AsyncioExecutor,
    "prefork": SerialExecutor,
    "solo": SerialExecutor,
    "threads": ThreadsExecutor,
}


def make_executor(pool: str, surroundings: Surroundings) -> Executor:
    """The executor of this name of `-P`."""
    return _EXECUTORS[pool](surroundings)
