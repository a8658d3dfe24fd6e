"""Raising an error inside a body that runs, from another thread of the process.

In the main thread by a signal, which also ends a sleep or a read. In a coroutine by cancelling it: its body sees
CancelledError (or its soft limit, as what it is), and the error is what the run failed with. In another thread as soon
as it executes Python code: a sleep, a read or a C function ends first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

from rsq.calls.message import Delivery
from rsq.errors import SoftTimeLimitExceeded

SIGNAL = signal.SIGUSR1
"""Taken by rsq in the processes that run bodies."""


class Interrupt:
    """What stands between whoever interrupts and the one body that runs in the main thread, or in a coroutine."""

    def __init__(self) -> None:
        self._inside: Delivery | None = None
        self._thrown: tuple[Delivery, BaseException] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coroutine: asyncio.Task[Any] | None = None
        self._installed = False

    def install(self) -> None:
        """Make the main thread hear. Called in the main thread."""
        signal.signal(SIGNAL, self._on_signal)
        self._installed = True

    def enter(self, delivery: Delivery) -> None:
        """The body of this delivery begins in this thread."""
        self._inside = delivery

    def enter_coroutine(self, delivery: Delivery) -> None:
        """The body of this delivery begins in the coroutine that calls this."""
        self._thrown = None
        self._coroutine = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._inside = delivery

    def leave(self) -> None:
        """It has ended: nothing is raised any more."""
        self._inside = None

    def leave_coroutine(self) -> None:
        """The same for a body that was entered as a coroutine."""
        self._inside = self._loop = self._coroutine = None

    def run(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run the coroutine of the body that was entered to its end."""
        late = self._go_in(loop)
        self._coroutine = loop.create_task(coroutine)
        if late:
            self._coroutine.cancel()
        try:
            return loop.run_until_complete(self._coroutine)
        finally:
            self._loop = self._coroutine = None

    def throw(self, delivery: Delivery, error: BaseException, again: bool = False) -> None:
        """Raise `error` in the body of this delivery, if it still runs. From any other thread.

        again  also in one that has caught an error of this kind before, or is about to get it
        """
        loop = self._loop
        if loop is not None:
            self._cancel_on(loop, delivery, error)
        elif self._installed:
            self._thrown = (delivery, error)
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def meant(self, delivery: Delivery, error: BaseException) -> BaseException:
        """What was thrown, where `error` is only how it arrived in the body."""
        thrown, self._thrown = self._thrown, None
        if thrown is None or thrown[0] is not delivery:
            return error
        bare = type(error) is type(thrown[1]) and not error.args
        if bare or isinstance(error, asyncio.CancelledError):
            return thrown[1].with_traceback(error.__traceback__)
        return error

    async def tell(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run the coroutine of a body with a time limit: it sees the soft one as what it is, not as a cancellation."""
        try:
            return await _Listening(coroutine, self._take_soft)
        except _SoftCancellation as error:
            raise SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__) from None

    def _take_soft(self) -> SoftTimeLimitExceeded | None:
        """The soft limit, where that is what the cancellation stands for."""
        if self._thrown is None or not isinstance(self._thrown[1], SoftTimeLimitExceeded):
            return None
        error, self._thrown = self._thrown[1], None
        return error

    def _go_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        """From now on the way is by the loop. True: an error is on its way already."""
        self._loop = loop
        return False

    def _cancel_on(self, loop: asyncio.AbstractEventLoop, delivery: Delivery, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the body with it
            loop.call_soon_threadsafe(self._cancel, delivery, error)

    def _cancel(self, delivery: Delivery, error: BaseException) -> None:
        """On the loop: nothing runs there meanwhile, so it cannot be another's coroutine."""
        if self._inside is delivery and self._coroutine is not None:
            self._thrown = (delivery, error)
            self._coroutine.cancel()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        thrown = self._thrown
        if thrown is None or thrown[0] is not self._inside:
            return
        self._thrown = None
        if self._loop is not None:
            self._cancel_on(self._loop, *thrown)
            return
        raise thrown[1]


class ThreadInterrupt(Interrupt):
    """The same for a body in a thread that is not the main one.

    The interpreter raises a class there, without arguments, at some later instruction of that thread: so who leaves a
    body takes back what has not arrived, before the thread does anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._thread = 0
        self._on_its_way = False

    def enter(self, delivery: Delivery) -> None:
        self._thread = threading.get_ident()
        self._thrown = None
        self._inside = delivery

    def leave(self) -> None:
        while True:
            try:
                with self._lock:
                    self._inside = None
                    self._take_back()
                return
            except BaseException as error:
                # It arrived here, too late.
                if self._thrown is None or type(error) is not type(self._thrown[1]):
                    raise

    def throw(self, delivery: Delivery, error: BaseException, again: bool = False) -> None:
        with self._lock:
            if self._inside is not delivery:
                return
            if self._loop is not None:
                self._cancel_on(self._loop, delivery, error)
            elif again or not self._on_its_way or self._thrown is None or type(self._thrown[1]) is not type(error):
                self._thrown = (delivery, error)
                self._on_its_way = True
                _raise_in(self._thread, type(error))

    def _go_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        with self._lock:
            self._loop = loop
            return self._take_back()

    def _take_back(self) -> bool:
        """Whether something was on its way. It may have arrived already."""
        was, self._on_its_way = self._on_its_way, False
        if was:
            # By another one in its place, which arrives here. Taken back by nothing it would leave a flag standing in
            # the interpreter that says there is something: 3.11 then hangs as soon as a thread is traced.
            with contextlib.suppress(_Arrived):
                _raise_in(self._thread, _Arrived)
                while True:
                    pass
        return was


class _SoftCancellation(SoftTimeLimitExceeded, asyncio.CancelledError):
    """For the body the one, for all of asyncio between it and its loop (task groups, timeouts) the other."""


class _Listening(Generator[Any, Any, Any]):
    """Awaits a coroutine; where it is cancelled for its soft limit it sees that error."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, object], take_soft: Callable[[], SoftTimeLimitExceeded | None]
    ) -> None:
        self._coroutine = coroutine
        self._take_soft = take_soft

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def close(self) -> None:
        self._coroutine.close()

    def throw(self, error: Any, *more: Any) -> Any:
        soft = self._take_soft()
        if soft is None:
            return self._coroutine.throw(error, *more)
        task = asyncio.current_task()
        if sys.version_info >= (3, 11) and task is not None:
            task.uncancel()  # the body may await what it likes while it cleans up
        return self._coroutine.throw(_SoftCancellation(*soft.args))


class _Arrived(BaseException):
    """Takes the place of what is on its way to a thread."""


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have an error raised in a thread of Python, in place of what was on its way there."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
