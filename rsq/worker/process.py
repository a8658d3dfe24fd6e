"""What forking means, once: how a supervisor makes a process, how that ends, and what the forks of its tasks inherit.

A process that is made here has nothing of its parent's but memory: no handler, no wakeup descriptor, no pipe, no
connection. What user code forks in it is a fork of any Python program: it neither hears for rsq nor commits for it.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, NoReturn

log = logging.getLogger("rsq.worker")

EXIT_CANNOT_BEGIN = 65
EXIT_ORPHANED = 66
EXIT_UNCOMMITTED = 67
EXIT_FAILED = 70

MOST_DESCRIPTORS = 4096
"""So many are tried where the system does not list those that are open."""

GROUP_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Ctrl-C and hang-up reach the whole group; the supervisor decides what they mean."""

_private: set[int] = set()
_forking = threading.local()


def fork(main: Callable[[], int], keep: Collection[int] = ()) -> int:
    """Make a process that runs `main`, ends with what it returns, and never comes back. Gives its pid.

    keep    descriptors that it may have beside the standard ones; all others are closed in it
    Raises  OSError: no process can be made now
    """
    flush_standard()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(main, keep, mask)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _live(main: Callable[[], int], keep: Collection[int], mask: Iterable[int]) -> NoReturn:
    code = EXIT_FAILED
    try:
        # Until all is set back no signal comes: it would be told to the parent, by its own pipe.
        signal.set_wakeup_fd(-1)
        _set_handlers_back()
        heed_no_group_signals()
        _private.clear()  # they are the parent's
        gc.freeze()  # what of the parent's is never collected here closes no descriptor a second time
        for fd in open_descriptors() - {0, 1, 2, *keep}:
            with suppress(OSError):
                os.close(fd)
        free_forks()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main()
    except SystemExit as exit_:
        code = _code_of(exit_)
    except BaseException:
        log.exception("process %d failed", os.getpid())
    finally:
        try:
            _finish()
        finally:
            os._exit(code & 0xFF)


def heed_no_group_signals() -> None:
    """Again after user code that may have taken them over. In the main thread."""
    for number in GROUP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            # Not ignored: what a task starts would ignore it, too. System calls of libraries go on after it.
            signal.signal(number, _pay_no_heed)
            signal.siginterrupt(number, False)


def _finish() -> None:
    """What the interpreter does at its end, without what it would wait for."""
    for step in (_end_daemons, logging.shutdown, flush_standard):
        with suppress(BaseException):
            step()


def _end_daemons() -> None:
    """Processes of multiprocessing that live no longer than their parent: daemons, pools and managers."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        import multiprocessing

        util._exit_function(active_children=lambda: [p for p in multiprocessing.active_children() if p.daemon])


def flush_standard() -> None:
    """Write what was printed. Where that cannot be, or there is nothing to write to, nobody is told."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()


def open_descriptors() -> set[int]:
    """Those of this process."""
    try:
        numbers = {int(name) for name in os.listdir("/dev/fd")}
    except OSError:
        numbers = set(range(min(MOST_DESCRIPTORS, os.sysconf("SC_OPEN_MAX"))))
    return {fd for fd in numbers if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def can_write(fd: int, within_s: float) -> bool:
    """Whether there is room for `select.PIPE_BUF` bytes, or will be in time."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(within_s * 1000))


# -- forks of user code


def free_forks() -> None:
    """From now on, what is forked here otherwise than by `fork` is a process like any other. Once in a process."""
    os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_become_free)


def keep_private(*fds: int) -> None:
    """Descriptors that forks of user code are not to have."""
    _private.update(fds)


def end_copy(error: BaseException | None) -> NoReturn:
    """This process is a fork of a body that has left it, by `error` or by returning. What follows is its parent's."""
    code = EXIT_FAILED
    if isinstance(error, SystemExit):
        code = _code_of(error)
    else:
        how = f"raised {type(error).__name__}" if error is not None else "returned"
        line = f"rsq: process {os.getpid()}, forked by a task, {how} in place of ending by os._exit(): it is ended\n"
        with suppress(OSError):
            os.write(2, line.encode())
    flush_standard()
    os._exit(code & 0xFF)


def _block_signals() -> None:
    """A signal to the fork before that is free would be lost in our handler."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _become_free() -> None:
    with suppress(ValueError):
        wakes = signal.set_wakeup_fd(-1)
        if wakes != -1 and wakes not in _private:
            signal.set_wakeup_fd(wakes)
        _set_handlers_back()
    for fd in _private:
        with suppress(OSError):
            os.close(fd)
    _private.clear()
    _unblock_signals()


def _set_handlers_back() -> None:
    """Signals that code of rsq handles do what they do in any program."""
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if (getattr(handler, "__module__", None) or "").startswith("rsq."):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _pay_no_heed(number: int, frame: object) -> None:
    pass


def _code_of(exit_: SystemExit) -> int:
    if exit_.code is None:
        return 0
    return exit_.code if isinstance(exit_.code, int) else 1
