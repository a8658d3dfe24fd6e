"""Raising an error inside a body that runs, from another thread of the process.

In the main thread by a signal, which also ends a sleep or a read; in a coroutine by cancelling it. A body that holds
the GIL in C hears of it when it comes back. Elsewhere there is no way: a thread that is not the main one runs on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from types import FrameType

from rsq.message import Delivery

SIGNAL = signal.SIGUSR1
"""Taken by rsq in the processes that run bodies."""


class Interrupt:
    """What stands between whoever interrupts and the one body that runs in a thread."""

    def __init__(self) -> None:
        self._inside: Delivery | None = None
        self._thrown: tuple[Delivery, BaseException] | None = None
        self._coroutine: asyncio.Task[object] | None = None
        self._installed = False

    def install(self) -> None:
        """Make the main thread hear. Called in the main thread."""
        signal.signal(SIGNAL, self._on_signal)
        self._installed = True

    def enter(self, delivery: Delivery) -> None:
        """The body of this delivery begins."""
        self._inside = delivery

    def leave(self) -> None:
        """It has ended: nothing is raised any more."""
        self._inside = None

    def run(self, loop: asyncio.AbstractEventLoop, coroutine: asyncio.Task[object]) -> object:
        """Run the coroutine of the body that was entered to its end."""
        self._coroutine = coroutine
        try:
            return loop.run_until_complete(coroutine)
        except asyncio.CancelledError:
            thrown, self._thrown = self._thrown, None
            if thrown is not None and thrown[0] is self._inside:
                raise thrown[1] from None
            raise
        finally:
            self._coroutine = None

    def throw(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs. From any other thread."""
        self._thrown = (delivery, error)
        coroutine = self._coroutine
        if coroutine is not None:
            coroutine.get_loop().call_soon_threadsafe(coroutine.cancel)
        elif self._installed:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        thrown = self._thrown
        if thrown is not None and thrown[0] is self._inside and self._coroutine is None:
            self._thrown = None
            self._inside = None
            raise thrown[1]
