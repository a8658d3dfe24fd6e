"""Renews a worker's leases in all its partitions, side by side: one that is away delays no other."""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence

from rsq import keys
from rsq.broker.connection import Endpoint, Link
from rsq.broker.deadline import Deadline
from rsq.broker.stepped import SteppedLink
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


def try_s(lease_s: float) -> float:
    """How long one try of a renewal may take."""
    return min(LINK_TIMEOUT_S, lease_s / TRIES)


def again_at(began: float) -> float:
    """When a renewal is tried again of which a try failed that began then (monotonic seconds)."""
    return max(began + AGAIN_S, time.monotonic() + PAUSE_S)


def lanes_of(endpoint: Endpoint, queues: Sequence[WorkerQueue], settings: Settings) -> list[Leases]:
    """A worker's `Leases` by partition, in the order of the queues."""
    places = {queue.name: place for place, queue in enumerate(queues)}
    return [
        Leases(
            Link(_at(endpoint, settings, some), try_s(settings.lease_s)), some, [places[queue.name] for queue in some]
        )
        for some in by_partition(queues)
    ]


def _at(endpoint: Endpoint, settings: Settings, queues: Sequence[WorkerQueue]) -> Endpoint:
    """Where queues of one partition lie."""
    return endpoint.at(keys.tag(settings.namespace, queues[0].partition))


class Rounds:
    """The leases of one worker.

    selector  calls what stands in it when that is ready

    lanes  its `Leases` by partition, in the order of the queues
    """

    def __init__(
        self,
        endpoint: Endpoint,
        queues: Sequence[WorkerQueue],
        settings: Settings,
        selector: selectors.BaseSelector,
    ) -> None:
        self._settings = settings
        self.lanes = lanes_of(endpoint, queues, settings)
        self._links = [SteppedLink(_at(endpoint, settings, some), selector) for some in by_partition(queues)]
        self._results: dict[int, Renewal | BrokerError] = {}

    @property
    def every_s(self) -> float:
        """The time between two rounds."""
        return self._settings.lease_s / RENEWALS

    @property
    def due_at(self) -> float:
        """When `tend` is to be called (monotonic)."""
        return min(link.due_at for link in self._links)

    def tend(self, now: float) -> None:
        """End what takes too long."""
        for link in self._links:
            link.tend(now)

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
        """Prolong the leases of these consumers, in all partitions at once; gives for each lane what came of it.

        One that did not answer when it was last asked is not waited for: its error stands until another round finds
        that it has answered.
        """
        for number, link in enumerate(self._links):
            if not link.busy:
                self._begin(number, consumers[number])
        for lane, link in zip(self.lanes, self._links, strict=True):
            if lane.answers:
                link.wait()
        return [self._results[number] for number in range(len(self.lanes))]

    def _begin(self, number: int, consumers: Sequence[str]) -> None:
        lane, deadline = self.lanes[number], Deadline(try_s(self._settings.lease_s))

        def ended(result: Renewal | BrokerError) -> None:
            self._results[number] = result
            lane.answers = not isinstance(result, BrokerError)

        self._links[number].follow(lane.renewing(consumers, deadline), deadline, ended)

    def close(self) -> None:
        """Drop the connections."""
        for lane, link in zip(self.lanes, self._links, strict=True):
            lane.close()
            link.close()
