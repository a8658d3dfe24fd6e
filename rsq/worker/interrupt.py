"""Raising an error inside a body that runs, from another thread of the process: one class for each way to reach it.

In the main thread by a signal, which also ends a sleep or a read. In another thread as soon as it executes Python code:
a sleep, a read or a C function ends first. In a coroutine by cancelling it: its body sees CancelledError (or its soft
limit, as what it is), and the error is what the run failed with.

A thread is struck in the code of its body alone, see `may_strike`: who throws hears when it was not, and throws again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

from rsq.bell import Bell
from rsq.broker.channel import Channel
from rsq.calls.message import Delivery
from rsq.errors import SoftTimeLimitExceeded
from rsq.worker.loops import RunnerTask

SIGNAL = signal.SIGUSR1
"""Taken by rsq in the processes that run bodies."""

_GUARDED = ("logging", "threading", "queue", "importlib", "concurrent.futures", "rsq")
"""Packages whose code an error must not leave half done: a lock would stay taken, a limit be swallowed."""

_BODIES = ("rsq.task", "rsq.calls.each", "rsq.calls.yields", "rsq.contrib", "rsq.testing", "rsq.demo", "rsq.bench")
"""Parts of rsq that bodies consist of, or that call them."""

_WAITS = (threading.Condition.wait.__code__, Bell.wait.__code__, Channel.readable.__code__)
"""Where a thread waits, for as long as it takes, and cleans up when the wait is interrupted."""


_WAITING = (
    "threading",
    "queue",
    "concurrent.futures",
    "rsq.bell",
    "rsq.broker",
    "rsq.result",
    "rsq.output",
    "rsq.running",
)
"""Who calls them, and is as ready to be interrupted as they are."""

_BEGINS = (threading.Thread.run.__code__, vars(threading.Thread)["_bootstrap_inner"].__code__)
"""Where the code of a thread begins."""


def may_strike(frame: FrameType | None) -> bool:
    """Whether an error may be raised in a thread that stands there: in its body, and in nothing that would be hurt."""
    waits = inside = False
    while frame is not None:
        name, code = frame.f_globals.get("__name__", ""), frame.f_code
        if name.startswith("rsq.worker.") or code in _BEGINS:
            return inside
        if not waits and code in _WAITS:
            # From here on out all stand ready for it. A Condition waits once it has let go of its lock.
            waits = code is not threading.Condition.wait.__code__ or "gotit" in frame.f_locals
        hurt = _is_of(name, _GUARDED) and not _is_of(name, _BODIES) and not (waits and _is_of(name, _WAITING))
        if hurt or code.co_name == "__del__":
            return False
        inside = True
        frame = frame.f_back
    return inside


def _is_of(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in packages)


class Interrupt(ABC):
    """The way to the bodies of one runner, of which one runs at a time."""

    def __init__(self) -> None:
        self._inside: Delivery | None = None

    @abstractmethod
    def enter(self, delivery: Delivery) -> None:
        """The body of this delivery begins. Called where it runs."""

    @abstractmethod
    def leave(self) -> None:
        """It has ended: nothing is raised any more. Repeatable."""

    @abstractmethod
    def throw(self, delivery: Delivery, error: BaseException) -> bool:
        """Raise `error` in the body of this delivery. From any other thread.

        False: it has not been raised, for that body has not begun, has ended, or cannot be struck just now. The same
        error may be thrown again, and is raised once; of two that have not been raised yet the soft one is dropped.
        """

    def meant(self, delivery: Delivery, error: BaseException) -> BaseException:
        """What was thrown, where `error` is only how it arrived in the body."""
        return error


class InMainThread(Interrupt):
    """By a signal."""

    def __init__(self) -> None:
        super().__init__()
        self._thrown: tuple[Delivery, BaseException] | None = None
        self._raised: BaseException | None = None

    def install(self) -> None:
        """Make the main thread hear. Called in it."""
        signal.signal(SIGNAL, self._on_signal)

    def enter(self, delivery: Delivery) -> None:
        self._inside = delivery

    def leave(self) -> None:
        self._inside = self._raised = None

    def throw(self, delivery: Delivery, error: BaseException) -> bool:
        if self._raised is error:
            return True
        if self._inside is not delivery:
            return False
        waiting = self._thrown
        if waiting is None or waiting[0] is not delivery or not isinstance(error, SoftTimeLimitExceeded):
            self._thrown = (delivery, error)
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
        return False  # unless the handler finds a good place for it, which the next one will hear

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        thrown = self._thrown
        if thrown is not None and thrown[0] is self._inside and may_strike(frame):
            self._thrown, self._raised = None, thrown[1]
            raise thrown[1]


class InThread(Interrupt):
    """In a thread that is not the main one.

    The interpreter raises a class there, without arguments, at some later instruction of that thread: so who leaves a
    body takes back what has not arrived, before the thread does anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._thread = 0
        self._thrown: BaseException | None = None
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
                if self._thrown is None or type(error) is not type(self._thrown):
                    raise

    def throw(self, delivery: Delivery, error: BaseException) -> bool:
        # Whoever has just got the interpreter keeps it for a while: nothing moves between the look and the strike.
        time.sleep(0)
        with self._lock:
            if self._inside is not delivery:
                return False
            if self._thrown is not error:
                if not may_strike(sys._current_frames().get(self._thread)):
                    return False
                self._thrown, self._on_its_way = error, True
                _raise_in(self._thread, type(error))
            return True

    def meant(self, delivery: Delivery, error: BaseException) -> BaseException:
        thrown, self._thrown = self._thrown, None
        if thrown is not None and type(error) is type(thrown) and not error.args:
            return thrown.with_traceback(error.__traceback__)
        return error

    def _take_back(self) -> None:
        """It may have arrived already."""
        was, self._on_its_way = self._on_its_way, False
        if was:
            # By another one in its place, which arrives here. Taken back by nothing it would leave a flag standing in
            # the interpreter that says there is something: 3.11 then hangs as soon as a thread is traced.
            with contextlib.suppress(_Arrived):
                _raise_in(self._thread, _Arrived)
                while True:
                    pass


class _Arrived(BaseException):
    """Takes the place of what is on its way to a thread."""


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have an error raised in a thread of Python, in place of what was on its way there."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


class InCoroutine(Interrupt):
    """By the loop, on which nothing else runs meanwhile: so it cannot be another's coroutine."""

    def __init__(self) -> None:
        super().__init__()
        self._task: RunnerTask | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: BaseException | None = None
        self._thrown: BaseException | None = None

    def enter(self, delivery: Delivery) -> None:
        task = asyncio.current_task()
        assert isinstance(task, RunnerTask), "bodies run in one"
        task.enter()
        self._task, self._loop, self._thrown, self._inside = task, task.get_loop(), None, delivery

    def leave(self) -> None:
        if self._task is not None:
            self._task.leave()
        self._inside = self._task = self._loop = self._told = None

    def throw(self, delivery: Delivery, error: BaseException) -> bool:
        loop = self._loop
        if loop is None or self._inside is not delivery:
            return False
        if self._told is not error:
            self._told = error
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the body with it
                loop.call_soon_threadsafe(self._cancel, delivery, error)
        return True

    def meant(self, delivery: Delivery, error: BaseException) -> BaseException:
        thrown, self._thrown = self._thrown, None
        if thrown is not None and isinstance(error, asyncio.CancelledError):
            return thrown.with_traceback(error.__traceback__)
        return _soft_alone(error)

    def is_stray(self, error: BaseException) -> bool:
        """Whether it is a cancellation by the body of another call, which has nothing to do with this one."""
        return (
            isinstance(error, asyncio.CancelledError)
            and self._thrown is None
            and self._task is not None
            and self._task.cancelled_by_another
        )

    async def listen(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run the coroutine of a body with a time limit: it sees the soft one as what it is, not as a cancellation."""
        try:
            return await _Listening(coroutine, self._take_soft)
        except _SoftCancellation as error:
            raise SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__) from None

    def _take_soft(self) -> SoftTimeLimitExceeded | None:
        """The soft limit, where that is what the cancellation stands for."""
        if not isinstance(self._thrown, SoftTimeLimitExceeded):
            return None
        error, self._thrown = self._thrown, None
        return error

    def _cancel(self, delivery: Delivery, error: BaseException) -> None:
        if self._inside is delivery and self._task is not None:
            self._thrown = error
            self._task.cancel()


class _SoftCancellation(SoftTimeLimitExceeded, asyncio.CancelledError):
    """For the body the one, for all of asyncio between it and its loop (task groups, timeouts) the other."""


def _soft_alone(error: BaseException) -> BaseException:
    """The soft limit, where a task group of Python 3.11 or 3.12 has wrapped nothing but that."""
    inner = error
    while type(inner).__name__ in ("BaseExceptionGroup", "ExceptionGroup") and len(inner.exceptions) == 1:  # type: ignore[attr-defined]
        inner = inner.exceptions[0]  # type: ignore[attr-defined]
    if not isinstance(inner, _SoftCancellation):
        return error
    return SoftTimeLimitExceeded(*inner.args).with_traceback(error.__traceback__)


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
