"""The event loops on which bodies run: what a body may do to its loop, and how a loop ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("rsq.worker")

CLEANUP_S = 5.0
"""What background tasks of bodies are given to end once they are cancelled."""


class RunnerTask(asyncio.Task[Any]):
    """Runs rsq's own code, and in it one body at a time: that alone is what others can cancel.

    A body may cancel all tasks of its loop; the runners, and what feeds them, must outlive that.
    """

    _open = False
    _by_another = False

    def enter(self) -> None:
        """A body begins in it."""
        self._open, self._by_another = True, False

    def leave(self) -> None:
        """It has ended."""
        self._open = False

    @property
    def cancelled_by_another(self) -> bool:
        """Whether its body was cancelled by the body of another call."""
        return self._by_another

    def cancel(self, msg: Any | None = None) -> bool:
        if not self._open:
            return False
        with contextlib.suppress(RuntimeError):  # from outside of a loop: no body
            who = asyncio.current_task()
            self._by_another = self._by_another or (who is not self and isinstance(who, RunnerTask))
        return super().cancel(msg)


def run_to_end(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run rsq's coroutine on this loop to its end, whatever the bodies in it do to the loop."""
    results: list[T] = []

    async def keep() -> None:
        results.append(await coroutine)

    task = RunnerTask(keep(), loop=loop)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except RuntimeError:
            if task.done() or loop.is_closed():
                raise
            log.warning("a task has stopped the event loop that it runs on: it goes on")
        except asyncio.CancelledError:
            pass  # of a body that cancelled itself and ended all the same
    if not results:
        task.result()
    return results[0]


def close_loop(loop: asyncio.AbstractEventLoop, *last: Coroutine[Any, Any, object]) -> None:
    """End a loop as `asyncio.run` does: what bodies have left on it is cancelled, and may clean up.

    last  run on it after that
    """
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=CLEANUP_S))
    for coroutine in last:
        loop.run_until_complete(coroutine)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
