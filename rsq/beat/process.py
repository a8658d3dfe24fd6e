"""A beat as a process: loads the app, and beats until a signal."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from rsq.app import BaseApp
from rsq.beat.beat import AGAIN_S, Beat
from rsq.errors import BrokerUnavailable, RsqError
from rsq.loader import load_app

log = logging.getLogger("rsq.beat")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_ORPHANED = 66
EXIT_CANNOT_BEGIN = 65
LONGEST_WAIT_S = 1.0
"""A beat beside a worker notices within this time that its supervisor is gone."""


def run_beat(app: BaseApp, announce: Callable[[str], None]) -> int:
    """Beat until SIGTERM, SIGINT or SIGHUP; gives the exit code. A second signal ends it at once.

    A server that is away is waited for, at the start too.
    Raises SettingsError and BrokerError for what does not mend itself.
    """
    _beat(app, announce, _stop_on(*STOP_SIGNALS))
    return 0


def _beat(app: BaseApp, announce: Callable[[str], None], wait: Callable[[float], bool]) -> None:
    """From begin to end. `wait` is given seconds, and answers whether to stop."""
    beat = Beat(app)
    while True:
        try:
            announce(beat.begin())
            break
        except BrokerUnavailable as error:
            log.warning("%s; trying again in %.1f s", error, AGAIN_S)
            if wait(AGAIN_S):
                return
    beat.run(wait)


def _stop_on(*numbers: signal.Signals) -> Callable[[float], bool]:
    """A wait that one of these signals ends, with True. The second signal does what it does by itself: it ends us."""
    woken, write = os.pipe()
    for fd in (woken, write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def caught(number: int, _: object) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    for each in numbers:
        signal.signal(each, caught)
    return lambda seconds: bool(select.select([woken], [], [], seconds)[0])


class BeatChild:
    """The beat of `rsq worker -B`: a process beside the children, since a supervisor runs no user code.

    not_ours  file descriptors that only the parent may hold
    """

    def __init__(
        self,
        app: str | None,
        overrides: Mapping[str, object],
        announce: Callable[[str], None],
        not_ours: Iterable[int] = (),
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in not_ours:
                os.close(fd)
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
    code = EXIT_CANNOT_BEGIN
    try:
        # Ctrl-C and hang-up reach the whole group; the supervisor decides what they mean.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stopped = _stop_on(signal.SIGTERM)
        app = load_app(app_name)
        app.configure(**dict(overrides))
        _beat(app, announce, lambda seconds: stopped(min(seconds, LONGEST_WAIT_S)) or os.getppid() != parent)
        code = 0 if os.getppid() == parent else EXIT_ORPHANED
    except RsqError as error:
        log.error("the beat cannot begin: %s", error)
    except BaseException:
        log.exception("the beat failed")
    finally:
        logging.shutdown()
        os._exit(code)
