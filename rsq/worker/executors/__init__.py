"""How bodies run: one module for each way, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rsq.message import Delivery
from rsq.worker.executors.coroutines import AsyncioExecutor
from rsq.worker.executors.lane import Surroundings
from rsq.worker.executors.serial import SerialExecutor
from rsq.worker.executors.threads import ThreadsExecutor


class Executor(Protocol):
    """What a crew must know of the way in which its bodies run.

    slots   bodies at once: as many as the board has
    done    bodies that ran to their end
    busy_s  how long they took, summed
    """

    slots: int

    @property
    def done(self) -> int: ...

    @property
    def busy_s(self) -> float: ...

    def install(self) -> None:
        """Let bodies be interrupted. Called in the thread that will serve, when it is the main one."""
        ...

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        ...

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs and can be reached."""
        ...

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough."""
        ...


_EXECUTORS: dict[str, Callable[[Surroundings], Executor]] = {
    "asyncio": AsyncioExecutor,
    "prefork": SerialExecutor,
    "solo": SerialExecutor,
    "threads": ThreadsExecutor,
}


def make_executor(pool: str, surroundings: Surroundings) -> Executor:
    """The executor of this name of `-P`."""
    return _EXECUTORS[pool](surroundings)
