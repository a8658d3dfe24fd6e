"""What a fault may strike, and how it tells the journal that it did."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

from tests.chaos.beats import Beats
from tests.chaos.fleet import Fleet, Place
from tests.chaos.journal import Journal
from tests.chaos.network import Wire
from tests.chaos.senders.crowd import tell_problem
from tests.chaos.senders.sender import Sender
from tests.clusters import AnyServer, Cluster
from tests.servers import Server

Pause: TypeAlias = "float | Callable[[], bool]"
"""How long to wait (seconds), or what to wait for."""

Steps: TypeAlias = Generator[Pause, None, None]


@dataclass
class Scene:
    """A run's parts.

    producers    the wire of all who send
    outages      how often the server, or a node of the cluster, went away or came back: odd while it is away
    """

    server: AnyServer
    fleet: Fleet
    producers: Wire
    beats: Beats
    sender: Sender
    journal: Journal
    rng: random.Random
    lease_s: float
    outages: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: count(1), init=False)

    @property
    def server_away(self) -> bool:
        return self.outages % 2 == 1

    def pick(self) -> Place | None:
        """A place that nothing strikes and whose worker has begun; None where there is none."""
        free = [place for place in self.fleet.places if not place.struck and place.ready]
        return self.rng.choice(free) if free else None

    @property
    def cluster(self) -> Cluster:
        assert isinstance(self.server, Cluster), "what strikes nodes is not dealt elsewhere"
        return self.server

    @property
    def alone(self) -> Server:
        """The one server."""
        assert isinstance(self.server, Server), "what strikes a server alone is not dealt on a cluster"
        return self.server

    def aside(self, act: Callable[[], None]) -> Callable[[], bool]:
        """Do what may take long beside the faults that are under way; what is given back tells whether it is done."""

        def tell() -> None:
            try:
                act()
            except Exception as error:
                tell_problem(self.journal, "saboteur", error)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        return lambda: not thread.is_alive()

    @contextmanager
    def fault(self, kind: str, workers: Iterable[int] = (), pids: Iterable[int] = (), **more: Any) -> Iterator[None]:
        """It strikes, and is over at the end of the block."""
        number = next(self._numbers)
        self.journal.write("fault", number=number, kind=kind, workers=[*workers], pids=[*pids], **more)
        try:
            yield
        finally:
            self.journal.write("over", number=number)

    def told(self, kind: str, workers: Iterable[int], at: float) -> None:
        """It struck at `at`, and has just ended."""
        with self.fault(kind, workers, at=at):
            pass
