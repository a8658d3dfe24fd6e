"""What a worker has of the server beside its crew: its leases in each partition, and its remote control."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterable, Sequence

from rsq import keys
from rsq.broker.connection import Endpoint, Link
from rsq.broker.partitions import partitions_of
from rsq.broker.server_check import check_server
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import BrokerUnavailable
from rsq.settings import Settings
from rsq.worker.portrait import Portrait
from rsq.worker.remote_control import RemoteControl
from rsq.worker.rounds import LINK_TIMEOUT_S, Rounds


class Duty:
    """Of one worker. Made once the server has been looked at. Raises BrokerError.

    names  of its queues, in order

    queues      those
    partitions  of each, by its name
    server      one line about it
    """

    def __init__(
        self,
        endpoint: Endpoint,
        names: Sequence[str],
        settings: Settings,
        worker_id: str,
        portrait: Portrait,
        selector: selectors.BaseSelector,
        rung: Callable[[bool], None],
        heard: Callable[[], None],
    ) -> None:
        link = Link(endpoint.at(settings.namespace), LINK_TIMEOUT_S)
        self.partitions = partitions_of(link, settings, names)
        link.close()
        self.queues = [WorkerQueue(name, settings, self.partitions[name]) for name in names]
        self.server = _look(endpoint, settings, dict.fromkeys(self.partitions.values()))
        self.rounds = Rounds(endpoint, self.queues, settings, selector)
        self.control = RemoteControl(endpoint, settings, worker_id, self.partitions, portrait, selector, rung, heard)

    @property
    def due_at(self) -> float:
        """When `tend` is to be called (monotonic)."""
        return min(self.rounds.due_at, self.control.due_at)

    def tend(self, now: float) -> None:
        """End what takes too long."""
        self.rounds.tend(now)
        self.control.tend(now)

    def end(self) -> None:
        """Renew, tell and hear nothing any more."""
        self.control.end()
        self.rounds.close()


def _look(endpoint: Endpoint, settings: Settings, partitions: Iterable[int]) -> str:
    """What the first server says that answers. Raises as `check_server`."""
    fault: BrokerUnavailable | None = None
    for partition in partitions:
        link = Link(endpoint.at(keys.tag(settings.namespace, partition)), LINK_TIMEOUT_S)
        try:
            return check_server(link, settings)
        except BrokerUnavailable as error:
            fault = fault or error
        finally:
            link.close()
    assert fault is not None, "a worker has queues"
    raise fault
