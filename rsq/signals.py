"""Signals: what happens in producers and workers, for code of yours that is to hear of it.

    from rsq.signals import task_failure

    @task_failure.connect
    def alert(sender, task_id, exception, **rest): ...

Names and arguments are Celery's wherever the meaning is the same. A handler is called by name, with `sender` and the
arguments of the signal; it should take `**rest`, for more may come. What it raises is logged and harms nothing.
"""

from __future__ import annotations

import inspect
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

from rsq.errors import SettingsError

log = logging.getLogger("rsq.signals")

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Signal:
    """One of them. Whoever sends it looks at `handlers` first: nobody there costs one truth test.

    name       by which `rsq.signals` has it
    arguments  names of what a handler is given beside `sender`
    handlers   pairs of a handler and the sender that it wants, None = any; replaced as a whole, never changed
    """

    __slots__ = ("_lock", "arguments", "handlers", "name")

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.handlers: tuple[tuple[Callable[..., Any], object], ...] = ()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"

    @overload
    def connect(self, handler: Handler, /, *, sender: object = None) -> Handler: ...

    @overload
    def connect(self, /, *, sender: object = None) -> Callable[[Handler], Handler]: ...

    def connect(self, handler: Any = None, /, *, sender: object = None) -> Any:
        """Have `handler` called at each signal; as a decorator with or without arguments. Twice is once.

        sender  only for signals of this one: a task, for those of tasks
        Raises  SettingsError for what cannot be called, or is a coroutine function
        """
        if handler is None:
            return lambda decorated: self.connect(decorated, sender=sender)
        if not callable(handler) or inspect.iscoroutinefunction(handler):
            raise SettingsError(f"a handler of {self.name} must be a plain function, not {handler!r}")
        with self._lock:
            if (handler, sender) not in self.handlers:
                self.handlers += ((handler, sender),)
        return handler

    def disconnect(self, handler: Callable[..., Any], *, sender: object = None) -> bool:
        """Call it no more. False when it was not connected to this sender."""
        with self._lock:
            kept = tuple(pair for pair in self.handlers if pair != (handler, sender))
            found, self.handlers = len(kept) < len(self.handlers), kept
        return found

    def send(self, sender: object, **arguments: Any) -> None:
        """Call all handlers, one after the other. Whatever they raise is logged; but who may press Ctrl-C is heard."""
        for handler, wanted in self.handlers:
            if wanted is None or wanted == sender:
                try:
                    handler(sender=sender, **arguments)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and _may_be_pressed():
                        raise
                    log.exception("a handler of %s failed: %r", self.name, handler)


def _may_be_pressed() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt here. In the processes of workers it does not."""
    here = threading.current_thread() is threading.main_thread()
    return here and signal.getsignal(signal.SIGINT) is signal.default_int_handler


before_publish = Signal("before_publish", "task_id", "args", "kwargs", "headers", "queue", "flow")
after_publish = Signal("after_publish", "task_id", "headers", "queue", "duplicate", "flow")

task_prerun = Signal("task_prerun", "task_id", "task", "args", "kwargs", "flow")
task_postrun = Signal("task_postrun", "task_id", "task", "args", "kwargs", "retval", "state", "flow")
task_success = Signal("task_success", "result")
task_failure = Signal("task_failure", "task_id", "exception", "args", "kwargs", "traceback", "flow")
task_retry = Signal("task_retry", "request", "reason")
task_revoked = Signal("task_revoked", "request", "terminated", "expired")

child_init = Signal("child_init", "worker_id", "pid")
child_exit = Signal("child_exit", "worker_id", "pid", "exitcode")
worker_ready = Signal("worker_ready", "worker_id", "queues")
worker_shutdown = Signal("worker_shutdown", "worker_id")

ALL = (
    before_publish,
    after_publish,
    task_prerun,
    task_postrun,
    task_success,
    task_failure,
    task_retry,
    task_revoked,
    child_init,
    child_exit,
    worker_ready,
    worker_shutdown,
)
