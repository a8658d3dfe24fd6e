"""A beat as a process: loads the app, and beats until a signal."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from rsq.app import App
from rsq.beat.beat import Beat
from rsq.errors import RsqError
from rsq.loader import load_app

log = logging.getLogger("rsq.beat")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_ORPHANED = 66
EXIT_CANNOT_BEGIN = 65
LONGEST_WAIT_S = 1.0


def run_beat(app: App, announce: Callable[[str], None]) -> int:
    """Beat until SIGTERM, SIGINT or SIGHUP; gives the exit code. A second signal ends it at once.

    Raises SettingsError and BrokerError when it cannot begin; later it waits for a server that is away.
    """
    stop = _Signals()
    beat = Beat(app)
    announce(beat.begin())
    beat.run(stop.wait)
    return 0


class _Signals:
    """Waits for time to pass or for a signal to come, whichever is first."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        for fd in (self._read, write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._caught)

    def wait(self, seconds: float) -> bool:
        """True when it is to stop."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return bool(ready)

    def _caught(self, number: int, _: object) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)


class BeatChild:
    """The beat of `rsq worker -B`: a process beside the children, since a supervisor runs no user code."""

    def __init__(self, app: str | None, overrides: Mapping[str, object], announce: Callable[[str], None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _live(parent, app, overrides, announce)

    def ended(self) -> bool:
        """Whether it has died; asked again and again by whoever keeps it."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True  # the worker has reaped it with its other children

    def signal(self, number: int) -> None:
        """Send a signal; one that is gone already needs none."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass


def _live(
    parent: int, app_name: str | None, overrides: Mapping[str, object], announce: Callable[[str], None]
) -> NoReturn:
    """The whole life of a beat beside a worker. Never returns: nothing of the supervisor's must run in it."""
    # Ctrl-C and hang-up reach the whole group; the supervisor decides what they mean.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    code = EXIT_CANNOT_BEGIN
    try:
        app = load_app(app_name)
        app.configure(**dict(overrides))
        beat = Beat(app)
        announce(beat.begin())
        stop_read, stop_write = os.pipe()
        os.set_blocking(stop_write, False)
        signal.set_wakeup_fd(stop_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

        def wait(seconds: float) -> bool:
            ready, _, _ = select.select([stop_read], [], [], min(seconds, LONGEST_WAIT_S))
            return bool(ready) or os.getppid() != parent

        beat.run(wait)
        code = 0 if os.getppid() == parent else EXIT_ORPHANED
    except RsqError as error:
        log.error("the beat cannot begin: %s", error)
    except BaseException:
        log.exception("the beat failed")
    finally:
        logging.shutdown()
        os._exit(code)
