"""All who send and wait in a run, started and ended together."""

from __future__ import annotations

from collections.abc import Collection

from tests.chaos.senders.coroutines import Coroutines
from tests.chaos.senders.crowd import Crowd
from tests.chaos.senders.events import Events
from tests.chaos.senders.flows import Flows
from tests.chaos.senders.late import LateRepeats
from tests.chaos.senders.producers import Producer
from tests.chaos.senders.sender import Sender
from tests.chaos.senders.waiters import Waiter
from tests.chaos.senders.watchers import Watcher
from tests.clusters import AnyServer, Cluster

PRODUCERS, WAITERS, LATE, FLOWS, WATCHERS = 4, 8, 3, 2, 3
PAUSE_S, WAITERS_PAUSE_S, FLOWS_PAUSE_S, EVENTS_PAUSE_S = 0.04, 0.3, 0.3, 0.2

SEND_S = 60.0
"""What a producer is at ends within this time, all its tries to send included."""

WAIT_S = 30.0
"""Once all calls have ended every wait ends within this time."""

SENDERS = ("early", "big", "waiters", "coroutines", "late_repeats", "flows", "events", "watchers")
"""Those that can be left out; the producers' other ways to send cannot."""


class Callers:
    """Producers, waiters in threads and in coroutines, and producers of late repeats."""

    def __init__(self, sender: Sender, server: AnyServer, seed: int, actors: Collection[str]) -> None:
        producer, waiter = Producer(sender, set(SENDERS) - set(actors)), Waiter(sender)
        self._late = [LateRepeats(sender, server) for _ in range(LATE if "late_repeats" in actors else 0)]
        waiters = [waiter.act] * WAITERS if "waiters" in actors else []
        self._producers = [
            Crowd("producers", [producer.act] * PRODUCERS, sender.journal, seed, PAUSE_S),
            Crowd("late repeats", [each.act for each in self._late], sender.journal, seed, PAUSE_S),
        ]
        self._flows = Flows(sender, server)
        if "flows" in actors:
            self._producers += [
                Crowd("starters of flows", [self._flows.act] * FLOWS, sender.journal, seed, FLOWS_PAUSE_S),
                Crowd("those who redrive", [self._flows.redrive], sender.journal, seed, FLOWS_PAUSE_S),
            ]
        self._events = Events(sender, server, "events" in actors)
        if "events" in actors:
            for name, act, pause_s in (
                ("those who publish", self._events.publish, PAUSE_S),
                ("auditors", self._events.audit, EVENTS_PAUSE_S),
                ("those who meddle", self._events.meddle, EVENTS_PAUSE_S),
            ):
                self._producers.append(Crowd(name, [act], sender.journal, seed, pause_s))
        self._waiters: list[Crowd | Coroutines] = [
            Crowd("waiters", waiters, sender.journal, seed, WAITERS_PAUSE_S),
        ]
        if "watchers" in actors:
            watcher = Watcher(sender, may_lack=isinstance(server, Cluster))
            crowd = Crowd("watchers", [watcher.act] * WATCHERS, sender.journal, seed, WAITERS_PAUSE_S)
            self._waiters.append(crowd)
        if "coroutines" in actors:
            self._waiters.append(Coroutines(sender, seed))

    def start(self) -> None:
        for each in (*self._producers, *self._waiters):
            each.start()

    def stop(self) -> None:
        """Nobody begins anything new."""
        for each in (*self._producers, *self._waiters):
            each.stop()
        for late in self._late:
            late.stop()

    def join_producers(self) -> None:
        """Until all is sent, and what died of flows sent again."""
        for each in self._producers:
            each.join(SEND_S)
        self._flows.finish(SEND_S)
        self._events.finish(SEND_S)

    def join(self) -> None:
        """Until nobody waits any more; call it once all calls have ended."""
        for each in self._waiters:
            each.join(WAIT_S)

    def close(self) -> None:
        for late in self._late:
            late.close()
