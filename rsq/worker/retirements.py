"""Hands on what dead children held: each queue by itself, so that one that refuses costs no other."""

from __future__ import annotations

import logging
import math

from rsq.errors import BrokerUnavailable
from rsq.worker.lease_keeper import LeaseKeeper
from rsq.worker.leases import Retirement
from rsq.worker.part import Part
from rsq.worker.rounds import AGAIN_S

log = logging.getLogger("rsq.worker")


class Retirements(Part):
    """What is still to be handed on, with the queues on which it is; none of them = all."""

    def __init__(self, keeper: LeaseKeeper) -> None:
        self._keeper = keeper
        self._left: list[tuple[Retirement, set[str]]] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._left)

    @property
    def urgent(self) -> bool:
        """Whether others wait for it: of one that left in good order nothing but its name is left."""
        return any(each.how or each.running or each.overdue for each, _ in self._left)

    def add(self, retirement: Retirement) -> None:
        """A child is dead, or has left."""
        self._left.append((retirement, set()))
        self.due_at = 0.0

    def tend(self, now: float) -> None:
        """Hand on one: the leases of the living come before the next. What is refused is left to the lease's end."""
        lanes = self._keeper.lanes
        answering = [each for each in self._left if lanes and lanes[each[0].lane].answers]
        if not answering:
            self.due_at = now + AGAIN_S
            return
        retirement, queues = answering[0]
        self._left.remove(answering[0])
        failed = lanes[retirement.lane].retire(retirement, queues)
        away = {name for name, error in failed.items() if isinstance(error, BrokerUnavailable)}
        for name in failed.keys() - away:
            log.error("what %s held goes to others when its lease has ended: %s", retirement.consumer, failed[name])
        if away:
            self._left.append((retirement, away))
            self._keeper.soon()  # which finds out when the server is back
        self.due_at = 0.0 if self._left else math.inf
