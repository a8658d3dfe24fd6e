"""Keeps the leases of all children: looks at the server, registers who is ready, renews, and hears what is wished.

The server is asked for nothing else by the supervisor but to hand on what the dead held.
"""

from __future__ import annotations

import logging
import math
import selectors
import time
from collections.abc import Callable
from typing import Any

from rsq import codec
from rsq.broker.connection import Endpoint, Link
from rsq.broker.server_check import check_server
from rsq.broker.worker_queue import WorkerQueue
from rsq.broker.worker_wishes import Wish
from rsq.errors import BrokerError, BrokerUnavailable, RsqError
from rsq.settings import Settings
from rsq.worker.children import Children, WorkerOptions
from rsq.worker.leases import Leases
from rsq.worker.part import Part
from rsq.worker.portrait import Portrait, queues_line
from rsq.worker.remote_control import RemoteControl

log = logging.getLogger("rsq.worker")

AGAIN_S = 0.5
"""Wait before the server is asked again after a fault."""

SAY_S = 10.0
"""While the server is away, it is said again after this long."""

LINK_TIMEOUT_S = 2.0
"""One answer may take this long, so that several tries fit into a lease."""


class LeaseKeeper(Part):
    """Does nothing until the first `welcome`, which tells the settings.

    announce  is told what runs here, once the server has been looked at
    begun     is called then
    obey      is told what is wished of this worker after each renewal
    fail      is told why this worker cannot begin

    renewed   when the server last confirmed the leases (monotonic)
    answers   it did when it was last asked
    stopping  the worker ends: nobody is let go any more
    """

    def __init__(
        self,
        options: WorkerOptions,
        worker_id: str,
        children: Children,
        selector: selectors.BaseSelector,
        announce: Callable[[str], None],
        begun: Callable[[], None],
        obey: Callable[[Wish], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.settings: Settings | None = None
        self.hello: dict[str, Any] = {}
        self.renewed = time.monotonic()
        self.answers = False
        self.stopping = False
        self._options = options
        self._worker_id = worker_id
        self._children = children
        self._selector = selector
        self._announce = announce
        self._begun = begun
        self._obey = obey
        self._fail = fail
        self._control: RemoteControl | None = None
        self._say_at = 0.0

    @property
    def leases(self) -> Leases | None:
        """Once the server has been looked at."""
        return None if self._control is None else self._control.leases

    def welcome(self, hello: dict[str, Any]) -> None:
        """A child is ready: it is let go with the next renewal, now. The first one tells the settings."""
        if self.settings is None:
            self.hello, self.settings = hello, Settings(**hello["settings"])
        elif self._control is not None and hello["tasks"] != self.hello["tasks"]:
            self.hello["tasks"] = hello["tasks"]
            self._control.leases.change(tasks=codec.encode(hello["tasks"]))
        self.soon()

    def soon(self) -> None:
        """Something has changed that is to be told."""
        if self.settings is not None and (self._control is not None or not self.stopping):
            self.due_at = 0.0

    def stop(self) -> None:
        """The worker stops, and says so; one that has not begun begins no more."""
        self.stopping, self.due_at = True, math.inf
        self.soon()

    def leave(self) -> None:
        """The worker ends: it is listed no more. A server that is away is not waited for once more."""
        if self._control is not None and not self.answers:
            log.warning("could not sign off, for the server did not answer when it was last asked")
        elif self._control is not None:
            try:
                self._control.leases.leave()
            except BrokerError as error:
                log.warning("could not sign off: %s", error)

    def tend(self, now: float) -> None:
        """Renew, then let go who is ready. A server that is away at the start is waited for like one that goes away."""
        assert self.settings is not None, "it has begun"
        try:
            control = self._control = self._control or self._begin(self.settings)
            self._renew(control)
            self._let_go(control.leases)
            self.answers, self._say_at = True, 0.0
        except RsqError as error:
            self.answers = False
            if self._control is None and not isinstance(error, BrokerUnavailable):
                self._fail(error)
                return
            now = time.monotonic()
            if now >= self._say_at:
                log.warning("%s; trying again every %.1f s", error, AGAIN_S)
                self._say_at = now + SAY_S
            self.due_at = now + AGAIN_S

    def _begin(self, settings: Settings) -> RemoteControl:
        """Look at the server, and say what runs here."""
        options, hello = self._options, self.hello
        names, tasks = hello["queues"], hello["tasks"]
        link = Link(Endpoint.of(settings), LINK_TIMEOUT_S)
        queues = queues_line(names, hello["unread"])
        self._announce(what_runs(self._worker_id, hello["app"], tasks, queues, options, check_server(link, settings)))
        self._begun()
        if not tasks:
            log.warning("app %s has no tasks: every message will be put off and then given up", hello["app"])
        portrait = Portrait(
            hello["app"], names, tasks, options.pool, options.slots, options.most_children, settings.lease_ms
        )
        return RemoteControl(
            link, [WorkerQueue(name, settings) for name in names], self._worker_id, portrait, self._selector, self._rung
        )

    def _rung(self, connected: bool) -> None:
        """Something is wished, or the bell has been cut off."""
        self.due_at = min(self.due_at, time.monotonic() + (0.0 if connected else AGAIN_S))

    def _renew(self, control: RemoteControl) -> None:
        # Read before the names, which a child may change at any moment: then only the old one is lost.
        generations = {child: child.board.generation for child in self._children if child.registered}
        living = {child.consumer: child for child in generations}
        members = [(child.pid, child.registered, child.board) for child in self._children]
        places, done = len(self._children.places), self._children.done
        until, lost = control.renew(list(living), members, places, self.stopping, done)
        for name, child in living.items():
            if name in lost:
                child.board.fence(generations[child])
            else:
                child.board.lease_until = until
        self.renewed = time.monotonic()
        self.due_at = self.renewed + control.leases.renew_every_s
        self._obey(control.wish)
        if control.news:
            self.due_at = 0.0

    def _let_go(self, leases: Leases) -> None:
        """Register the consumers of those that have said hello, and let them work."""
        for child in self._children:
            if child.hello is None and not child.registered and not child.cut_off and not self.stopping:
                child.let_go(leases.register(child.consumer))
                self.soon()


def what_runs(worker_id: str, app: str, tasks: list[str], queues: str, children: object, server: str) -> str:
    """As a worker says it when it begins."""
    some = ", ".join(tasks[:8]) + (", ..." if len(tasks) > 8 else "")
    return (
        f"rsq worker {worker_id}\n"
        f"  app       {app}, {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}: {some}\n"
        f"  queues    {queues}\n"
        f"  children  {children}\n"
        f"  server    {server}"
    )
