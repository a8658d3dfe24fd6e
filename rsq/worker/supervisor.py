"""The parent of the children: keeps their leases, replaces the dead, stops them. Its parts do that; it calls them.

Single-threaded, and it runs no user code: the app is imported in the children. Whatever a task does to its process, the
supervisor goes on renewing leases, and hands on at once what a dead child held.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from rsq.broker.worker_wishes import Wish
from rsq.errors import SettingsError
from rsq.worker.beat_beside import BesideBeat
from rsq.worker.children import Child, Children, WorkerOptions
from rsq.worker.hard_limits import HardLimits
from rsq.worker.health_report import HealthReport
from rsq.worker.hellos import Hellos
from rsq.worker.identity import new_worker_id
from rsq.worker.lease_keeper import SAY_S, LeaseKeeper
from rsq.worker.part import Part
from rsq.worker.places import Places
from rsq.worker.reload import CodeWatch
from rsq.worker.retirements import Retirements
from rsq.worker.rounds import LINK_TIMEOUT_S
from rsq.worker.stop import StopSignals
from rsq.worker.watchdog import Watchdog

log = logging.getLogger("rsq.worker")

DESCRIPTORS = 32
"""Needed beside those of the children: pipes, connections, files that are open for a moment."""

DESCRIPTORS_A_CHILD = 2

LONGEST_SELECT_S = 1.0

PAUSE_S = 0.1
"""Wait after a part has failed, which may do so again at once."""


class Supervisor(Part):
    """One worker. `run` returns its exit code. As a part of itself it sees to signals and to its own end."""

    def __init__(self, options: WorkerOptions, announce: Callable[[str], None] = lambda text: None) -> None:
        worker_id = new_worker_id()
        target = options.app or os.environ.get("RSQ_APP", "")
        self._options = options
        self._children = children = Children(options, worker_id)
        self._signals = StopSignals(also=signal.SIGCHLD)
        self._signals.hold()
        self._selector = selector = selectors.DefaultSelector()
        self._beat = BesideBeat(options, children.inherited, announce)
        self._keeper = LeaseKeeper(
            options, worker_id, children, selector, announce, self._beat.begin, self._obey, self._fail
        )
        self._retirements = Retirements(self._keeper)
        hellos = Hellos(selector, self._heard)
        self._places = Places(children, hellos, self._keeper, self._retirements, self._fail, options.reload)
        self._watchdog = Watchdog(children)
        self._health = HealthReport(worker_id, target, children, self._keeper)
        # In this order, when several are due: the leases of the living first.
        self._parts: list[Part] = [self, HardLimits(children), self._keeper, self._retirements, self._places]
        self._parts += [self._watchdog, self._beat, self._health]
        self._code: CodeWatch | None = None
        self._give_up_at = math.inf
        self._failure: Exception | None = None
        self._said: dict[Part, float] = {}

    def run(self) -> int:
        """Until a signal says stop. Raises SettingsError, BrokerRefused and BrokerUnsuitable when it cannot begin."""
        with self._signals:
            need_descriptors(self._options.children, len(self._children.inherited))
            self._run()
        return 0

    def _run(self) -> None:
        self._selector.register(self._signals, selectors.EVENT_READ, self)
        if self._options.reload:
            self._code = CodeWatch(self._selector, self._reload)
        while not self._is_over():
            self._step()
        self._keeper.leave()
        self._health.close()
        if self._code is not None:
            self._code.close()
        if self._failure is not None:
            raise self._failure

    def _step(self) -> None:
        wait_s = min(part.due_at for part in self._parts) - time.monotonic()
        for key, _ in self._selector.select(min(LONGEST_SELECT_S, max(0.0, wait_s))):
            self._call(key.data, key.data.on_readable, key.fd)
        for part in self._parts:
            now = time.monotonic()
            if part.due_at <= now:
                self._call(part, part.tend, now)

    def _call(self, part: Part, act: Callable[[Any], None], argument: Any) -> None:
        """The worker outlives a part that fails: leases go on, and it can be stopped."""
        try:
            act(argument)
        except Exception:
            now = time.monotonic()
            if now >= self._said.get(part, 0.0):
                log.exception("a part of the supervisor failed: %s", type(part).__name__)
                self._said[part] = now + SAY_S
            time.sleep(PAUSE_S)

    def _heard(self, child: Child, hello: dict[str, Any]) -> None:
        """A child has said hello."""
        was_known = self._keeper.settings is not None
        self._places.welcome(child, hello)
        if not was_known and self._keeper.settings is not None:
            self._watchdog.begin(self._keeper.settings.watchdog_s)
            self._health.soon()

    def _reload(self, names: list[str]) -> None:
        """Files of code have changed."""
        if self._stopping or self._keeper.settings is None:
            return
        log.info("%s changed: loading the code anew", ", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))
        self._places.renew_code()
        self._beat.replace()

    def _obey(self, wish: Wish) -> None:
        """Do what `rsq control` asks for."""
        if self._stopping:
            return
        if wish.stop:
            log.info("told to stop by rsq control")
            self._signals.wish()
        elif wish.children is not None and wish.children != len(self._children.places):
            self._places.resize(wish.children)

    # -- the end

    @property
    def _stopping(self) -> bool:
        return self._places.closed

    def _is_over(self) -> bool:
        """Nobody lives, and what was held is handed on, or cannot be: then its leases run out by themselves."""
        if self._children or self._beat or self._places:
            return False
        return not self._retirements or not self._keeper.lanes or time.monotonic() >= self._give_up_at

    def on_readable(self, fd: int) -> None:
        """Signals have come: of people, or of a child's death."""
        self._signals.read()
        if self._signals.why and not self._stopping:
            self._stop(self._signals.why)
        if self._signals.second:
            self._kill("second signal")
        self._places.reap()
        self._beat.reap()
        self._health.soon()
        if self._stopping and not self._children and not self._retirements.urgent:
            self._give_up_soon()

    def tend(self, now: float) -> None:
        """The time for the end is up."""
        self._kill("shutdown timeout reached")

    def _stop(self, why: str) -> None:
        grace_s = self._keeper.settings.shutdown_timeout_s if self._keeper.settings else 0.0
        log.info("%s: stopping; running tasks have %.0f s to end", why, grace_s)
        self.due_at = self._signals.since + grace_s
        self._close()
        self._beat.stop()
        for child in self._children:
            child.dismiss(for_good=True)

    def _kill(self, why: str) -> None:
        """Cold: what still runs is cut off and handed back, with no attempt counted. Once."""
        self.due_at = math.inf
        if self._give_up_at < math.inf:
            return
        self._give_up_soon()
        if self._children:
            log.warning("%s: handing back what still runs", why)
        self._end_all()

    def _give_up_soon(self) -> None:
        """What is left to do is handing back; it gets a few tries and no more."""
        self._give_up_at = min(self._give_up_at, time.monotonic() + LINK_TIMEOUT_S * max(1, len(self._keeper.lanes)))

    def _fail(self, error: Exception) -> None:
        """It cannot begin: end the children, then raise."""
        self._failure = self._failure or error
        self._close()
        self._end_all()

    def _close(self) -> None:
        """Nobody is started or let go any more."""
        self._places.closed = True
        self._keeper.stop()
        self._health.soon()

    def _end_all(self) -> None:
        self._beat.stop(signal.SIGKILL)
        for child in self._children:
            child.cut()


def need_descriptors(children: int, open_now: int) -> None:
    """Raises SettingsError: this process may not open as many as so many children need."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = open_now + DESCRIPTORS + children * DESCRIPTORS_A_CHILD
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        raise SettingsError(
            f"{children} children need {needed} open files, and this process may have {allowed}: "
            f"raise it with ulimit -n {needed}, or ask for fewer with -c"
        )
