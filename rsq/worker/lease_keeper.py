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
from rsq.broker.connection import Endpoint
from rsq.broker.queue import QueueMoved
from rsq.broker.worker_wishes import Wish
from rsq.errors import BrokerError, BrokerUnavailable, RsqError
from rsq.settings import Settings
from rsq.worker.children import Children, WorkerOptions
from rsq.worker.duty import Duty
from rsq.worker.leases import Leases
from rsq.worker.part import Part
from rsq.worker.portrait import Portrait, queues_line
from rsq.worker.rounds import AGAIN_S, again_at

log = logging.getLogger("rsq.worker")

SAY_S = 10.0
"""While the server is away, it is said again after this long."""


class LeaseKeeper(Part):
    """Does nothing until the first `welcome`, which tells the settings.

    announce  is told what runs here, once the server has been looked at
    begun     is called then
    obey      is told what is wished of this worker after each renewal
    fail      is told why this worker cannot begin

    renewed   when a server last confirmed leases (monotonic)
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
        self.stopping = False
        self._options = options
        self._worker_id = worker_id
        self._children = children
        self._selector = selector
        self._announce = announce
        self._begun = begun
        self._obey = obey
        self._fail = fail
        self._duty: Duty | None = None
        self._renew_at = math.inf
        self._say_at = 0.0

    @property
    def lanes(self) -> list[Leases]:
        """The leases in each partition; none until the server has been looked at."""
        return [] if self._duty is None else self._duty.rounds.lanes

    def welcome(self, hello: dict[str, Any]) -> None:
        """A child is ready: it is let go with the next renewal, now. The first one tells the settings."""
        if self.settings is None:
            self.hello, self.settings = hello, Settings(**hello["settings"])
        elif self._duty is not None and hello["tasks"] != self.hello["tasks"]:
            self.hello["tasks"] = hello["tasks"]
            self._duty.control.change(tasks=codec.encode(hello["tasks"]))
        self.soon()

    def soon(self) -> None:
        """Something has changed that is to be told."""
        if self.settings is not None and (self._duty is not None or not self.stopping):
            self._renew_at = 0.0

    def stop(self) -> None:
        """The worker stops, and says so; one that has not begun begins no more."""
        self.stopping, self._renew_at = True, math.inf
        self.soon()

    def leave(self) -> None:
        """The worker ends: it is listed no more. A server that is away is not waited for once more."""
        if self._duty is not None:
            self._duty.control.leave()

    @property
    def due_at(self) -> float:
        """When the next renewal is due, or something that is told takes too long."""
        return self._renew_at if self._duty is None else min(self._renew_at, self._duty.due_at)

    @due_at.setter
    def due_at(self, renew_at: float) -> None:
        self._renew_at = renew_at

    def tend(self, now: float) -> None:
        """Renew, then let go who is ready. A server that is away at the start is waited for like one that goes away."""
        assert self.settings is not None, "it has begun"
        if self._duty is not None:
            self._duty.tend(now)
        if now < self._renew_at:
            return
        try:
            duty = self._duty = self._duty or self._begin(self.settings)
            errors = [*self._renew(duty), *self._let_go(duty)]
            if errors:
                raise errors[0]
            self._say_at = 0.0
        except RsqError as error:
            if self._duty is None and not isinstance(error, BrokerUnavailable):
                self._fail(error)
                return
            moved = isinstance(error, QueueMoved) and not any(child.registered for child in self._children)
            if moved and self._duty is not None:
                self._duty.end()
                self._duty = None  # where its queues lie is asked anew
            if time.monotonic() >= self._say_at:
                log.warning("%s; trying again every %.1f s", error, AGAIN_S)
                self._say_at = time.monotonic() + SAY_S
            self._renew_at = again_at(now)

    def _begin(self, settings: Settings) -> Duty:
        """Look at the server, and say what runs here."""
        options, hello = self._options, self.hello
        names, tasks = hello["queues"], hello["tasks"]
        portrait = Portrait(
            hello["app"], names, tasks, options.pool, options.slots, options.most_children, settings.lease_ms
        )
        duty = Duty(
            Endpoint.of(settings), names, settings, self._worker_id, portrait, self._selector, self._rung, self._heard
        )
        queues = queues_line(names, hello["unread"])
        self._announce(what_runs(self._worker_id, hello["app"], tasks, queues, options, duty.server))
        self._begun()
        if not tasks:
            log.warning("app %s has no tasks: every message will be put off and then given up", hello["app"])
        return duty

    def _rung(self, connected: bool) -> None:
        """Something is wished, or the bell has been cut off."""
        self._renew_at = min(self._renew_at, time.monotonic() + (0.0 if connected else AGAIN_S))

    def _renew(self, duty: Duty) -> list[BrokerError]:
        """Renew all leases, and tell of it; gives what went wrong."""
        # Read before the names, which a child may change at any moment: then only the old one is lost.
        generations = {
            child: [lane.generation for lane in child.board.lanes] for child in self._children if child.registered
        }
        living = [(child, child.consumers) for child in generations]
        errors: list[BrokerError] = []
        for number, renewal in enumerate(
            duty.rounds.renew([[consumers[lane] for _, consumers in living] for lane in range(len(self.lanes))])
        ):
            if isinstance(renewal, BrokerError):
                errors.append(renewal)
                continue
            self.renewed = time.monotonic()
            for child, consumers in living:
                lane = child.board.lanes[number]
                if consumers[number] in renewal.lost:
                    lane.fence(generations[child][number])
                else:
                    lane.lease_until = renewal.until
        members = [(child.pid, child.registered, child.board) for child in self._children]
        self._renew_at = self.renewed + duty.rounds.every_s
        duty.control.tell(members, len(self._children.places), self.stopping, self._children.done)
        if not living and not self.stopping:
            duty.control.settle()  # no lease is held up by it, and who works is listed
        return errors

    def _heard(self) -> None:
        """It is known what is wished."""
        assert self._duty is not None, "it has told something"
        self._obey(self._duty.control.wish)
        if self._duty.control.news:
            self._renew_at = 0.0

    def _let_go(self, duty: Duty) -> list[BrokerError]:
        """Register the consumers of those that have said hello, and let them work; gives what went wrong.

        One without a lease in some partition works in the others, and begins there when it finds the server.
        """
        errors: list[BrokerError] = []
        for child in self._children:
            if child.hello is not None or child.registered or child.cut_off or self.stopping:
                continue
            child.board.divide(len(self.lanes))
            leases_until, faults = duty.rounds.register(child.consumers)
            errors += faults
            if any(leases_until):
                child.let_go(leases_until, duty.partitions)
                self.soon()
        return errors


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
