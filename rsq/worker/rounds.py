"""Renews a worker's leases in all its partitions, in turn: one that is away delays the others little."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rsq import keys
from rsq.broker.connection import Endpoint, Link
from rsq.broker.deadline import Deadline
from rsq.broker.worker_queue import WorkerQueue, by_partition
from rsq.errors import BrokerError
from rsq.settings import Settings
from rsq.worker.leases import RENEWALS, Leases, Renewal

LINK_TIMEOUT_S = 2.0
"""One answer may take this long."""

TRIES = 5
"""One try of a renewal takes this part of a lease at most, connecting included: a third one still fits into a lease."""

AGAIN_S = 0.4
"""From the begin of a try that fails to the next one."""

PAUSE_S = 0.05
"""And from its end, at least: there is more to do than to wait for a server that hangs."""

BRIEF_S = 0.2
"""What is left to a partition, at least, when others have used up the time."""


def try_s(lease_s: float) -> float:
    """How long one try of a renewal may take."""
    return min(LINK_TIMEOUT_S, lease_s / TRIES)


def again_at(began: float) -> float:
    """When a renewal is tried again of which a try failed that began then (monotonic seconds)."""
    return max(began + AGAIN_S, time.monotonic() + PAUSE_S)


class Rounds:
    """The leases of one worker.

    lanes  its `Leases` by partition, in the order of the queues
    """

    def __init__(self, endpoint: Endpoint, queues: Sequence[WorkerQueue], settings: Settings) -> None:
        places = {queue.name: place for place, queue in enumerate(queues)}
        lanes = by_partition(queues)
        self._settings = settings
        self._timeout_s = try_s(settings.lease_s)
        self.lanes = [
            Leases(
                Link(endpoint.at(keys.tag(settings.namespace, some[0].partition)), self._timeout_s),
                some,
                [places[queue.name] for queue in some],
            )
            for some in lanes
        ]

    @property
    def every_s(self) -> float:
        """The time between two rounds."""
        return self._settings.lease_s / RENEWALS

    def register(self, consumers: Sequence[str]) -> tuple[list[float], list[BrokerError]]:
        """A child's consumers begin, one a lane. Gives until when the lease of each holds, 0.0 where it has none, and
        what went wrong.

        Partitions that did not answer when they were last asked are left out: the child registers there when they do.
        """
        leases_until: list[float] = []
        errors: list[BrokerError] = []
        for lane, consumer in zip(self.lanes, consumers, strict=True):
            try:
                leases_until.append(lane.register(consumer) if lane.answers else 0.0)
            except BrokerError as error:
                errors.append(error)
                leases_until.append(0.0)
        return leases_until, errors

    def renew(self, consumers: Sequence[Sequence[str]]) -> list[Renewal | BrokerError]:
        """Prolong the leases of these consumers; gives for each lane what came of it. Those that answer come first."""
        deadline = Deadline(self._timeout_s)
        results: dict[int, Renewal | BrokerError] = {}
        for number, lane in sorted(enumerate(self.lanes), key=lambda each: not each[1].answers):
            try:
                results[number] = lane.renew(consumers[number], Deadline(max(BRIEF_S, deadline.left_s())))
            except BrokerError as error:
                results[number] = error
        return [result for _, result in sorted(results.items())]

    def close(self) -> None:
        """Drop the connections."""
        for lane in self.lanes:
            lane.close()
