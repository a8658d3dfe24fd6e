"""What goes wrong in a chaos run: faults from a deck that a seeded generator shuffles, one by one or some at once.

Each fault is a generator function: it strikes, yields how long to wait (seconds) or what to wait for (a condition), and
puts right what it must. The seed fixes what is drawn; the moments are the machine's.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import redis

from rsq.keys import GROUP, QueueKeys
from tests.chaos import tasks
from tests.chaos.beats import Beats
from tests.chaos.fleet import Fleet, Place
from tests.chaos.history import EVERYBODY
from tests.chaos.journal import Journal
from tests.chaos.network import Wire
from tests.integration.conftest import Worker, kill
from tests.servers import Server

Pause: TypeAlias = "float | Callable[[], bool]"
Steps: TypeAlias = Generator[Pause, None, None]

FAULTS = (
    "kill_child",
    "kill_worker",
    "kill_supervisor",
    "freeze_worker",
    "freeze_supervisor",
    "partition",
    "restart_server",
    "cut",
    "lost_reply",
    "late_request",
    "terminate",
    "kill_beat",
    "freeze_beat",
)

QUIET_S = (1.2, 2.5)
"""Between the end of one fault and the next, so that recovery from one at a time is measured."""

HASTE_S = (0.2, 1.5)
"""Between one fault and the next that does not wait for its end."""

STRIKES_S = 10.0
"""Planned losses that have not struck by then are left to strike later."""

OUTAGES_S = ((0.05, 0.5), (0.05, 1.0), (1.0, 4.0))
"""Ranges of the time for which the server is away; some outlast all leases."""

HOLD_S = 7.0
"""Longer than anybody waits for a reply."""

LOSSES = ("cut_request", "cut_reply", "truncate_reply")


@dataclass
class _Active:
    number: int
    steps: Steps
    wake: Pause

    def is_due(self) -> bool:
        return self.wake() if callable(self.wake) else time.monotonic() >= self.wake


class Saboteur:
    """Call `step` often; `finish` at the end puts everything right.

    haste  share of the faults that do not wait for those before them to end
    """

    def __init__(
        self,
        server: Server,
        fleet: Fleet,
        producers: Wire,
        beats: Beats,
        journal: Journal,
        rng: random.Random,
        lease_s: float,
        haste: float,
    ) -> None:
        self._server = server
        self._fleet = fleet
        self._producers = producers
        self._beats = beats
        self._journal = journal
        self._rng = rng
        self._lease_s = lease_s
        self._haste = haste
        self._deck: list[str] = []
        self._active: list[_Active] = []
        self._number = 0
        self._next_at = time.monotonic()
        self._waits = True

    def step(self) -> None:
        """Carry on with what is under way, and strike where it is time."""
        self._carry_on()
        if self._active and self._waits:
            self._next_at = time.monotonic() + self._rng.uniform(*QUIET_S)
        elif time.monotonic() >= self._next_at:
            self._strike()
            self._waits = self._rng.random() >= self._haste
            self._next_at = time.monotonic() + self._rng.uniform(*(QUIET_S if self._waits else HASTE_S))

    def finish(self) -> None:
        """Let what is under way come to its end; nothing new strikes."""
        while self._active:
            self._carry_on()
            self._fleet.tend()
            time.sleep(0.01)

    def _carry_on(self) -> None:
        for active in list(self._active):
            if active.is_due():
                self._advance(active)

    def _advance(self, active: _Active) -> None:
        try:
            pause = next(active.steps)
        except StopIteration:
            self._active.remove(active)
            self._journal.write("over", number=active.number)
            return
        active.wake = pause if callable(pause) else time.monotonic() + pause

    def _strike(self) -> None:
        if not self._deck:
            self._deck = self._rng.sample(FAULTS, len(FAULTS))
        kind = self._deck.pop()
        steps: Steps | None
        if kind == "restart_server":
            if not self._server.running:
                return  # the last restart is not over
            steps = self._restart_server()
        elif kind == "lost_reply":
            steps = self._lost_reply()
        elif kind == "late_request":
            steps = self._late_request()
        elif kind == "kill_beat":
            steps = self._kill_beat()
        elif kind == "freeze_beat":
            steps = self._freeze_beat()
        elif (place := self._pick()) is not None:
            steps = self._at(place, getattr(self, f"_{kind}")(place))
        else:
            return  # every place is struck, or its worker has not begun yet
        self._number += 1
        active = _Active(self._number, steps, 0.0)
        self._active.append(active)
        self._advance(active)

    def _pick(self) -> Place | None:
        free = [place for place in self._fleet.places if not place.struck and place.ready]
        return self._rng.choice(free) if free else None

    def _at(self, place: Place, steps: Steps) -> Steps:
        """Nothing else strikes a place meanwhile."""
        place.struck = True
        try:
            yield from steps
        finally:
            place.struck = False

    def _tell(self, kind: str, workers: Iterable[int] = (), pids: Iterable[int] = (), **more: Any) -> None:
        self._journal.write("fault", number=self._number, kind=kind, workers=[*workers], pids=[*pids], **more)

    # -- processes

    def _kill_child(self, place: Place) -> Steps:
        children = place.worker.children()
        if children:
            victim = self._rng.choice(children)
            self._tell("kill_child", [place.worker.pid], [victim])
            kill(victim)
            yield 0.3
        else:
            self._tell("kill_child")

    def _kill_worker(self, place: Place) -> Steps:
        """The whole host, at once: stopped first, so that nobody sees the others go and hands anything over."""
        family = self._fleet.family(place)
        self._tell("kill_worker", [place.worker.pid])
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in family:
                kill(pid, number)
        place.worker.process.wait()
        self._fleet.replace(place)
        yield self._lease_s + 1.0

    def _kill_supervisor(self, place: Place) -> Steps:
        self._fleet.family(place)
        self._tell("kill_supervisor", [place.worker.pid])
        kill(place.worker.pid)
        place.worker.process.wait()
        self._fleet.replace(place)
        yield 1.0

    def _freeze_worker(self, place: Place) -> Steps:
        family = self._fleet.family(place)
        self._tell("freeze_worker", [place.worker.pid])
        yield from self._frozen(family)

    def _freeze_supervisor(self, place: Place) -> Steps:
        """Its children work on, with leases that nobody renews."""
        self._tell("freeze_supervisor", [place.worker.pid])
        yield from self._frozen([place.worker.pid])

    def _frozen(self, pids: list[int]) -> Steps:
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        try:
            yield self._lease_s * self._rng.uniform(1.2, 2.2)
        finally:
            for pid in self._rng.sample(pids, len(pids)):
                kill(pid, signal.SIGCONT)

    def _terminate(self, place: Place) -> Steps:
        """One step of a rolling restart."""
        old: Worker = place.worker
        self._fleet.family(place)
        held = self._held_by(old)
        self._tell("terminate", [old.pid], held=held)
        self._fleet.leave(old)
        self._fleet.replace(place)
        yield lambda: self._fleet.has_left(old)

    def _held_by(self, worker: Worker) -> list[str]:
        """Entries that its consumers have fetched."""
        found: list[str] = []
        try:
            with self._server.client(decode_responses=True, socket_timeout=1.0) as client:
                for queue in tasks.app.queues():
                    stream = QueueKeys(tasks.app.settings.namespace, queue).stream()
                    for row in client.xinfo_consumers(stream, GROUP):
                        if row["pending"] and f"-{worker.pid}-" in row["name"]:
                            pending = client.xpending_range(stream, GROUP, "-", "+", 1000, row["name"])
                            found += [tasks.entry_name(queue, 0, entry["message_id"]) for entry in pending]
        except redis.RedisError:
            pass  # the server is away; then this fault has no figures
        return found

    # -- beats

    def _kill_beat(self) -> Steps:
        """One of them, or both."""
        beats = self._rng.sample(self._beats.now, self._rng.randint(1, len(self._beats.now)))
        self._tell("kill_beat", pids=[beat.pid for beat in beats])
        for beat in beats:
            kill(beat.pid)
        begun = [self._beats.replace(beat) for beat in beats]
        yield lambda: all(each() for each in begun)

    def _freeze_beat(self) -> Steps:
        """Both stand still; when they go on they are late for the same slots."""
        pids = [beat.pid for beat in self._beats.now]
        self._tell("freeze_beat", pids=pids)
        yield from self._frozen(pids)

    # -- server and network

    def _restart_server(self) -> Steps:
        self._tell("restart_server", [EVERYBODY])
        self._server.kill()
        yield self._rng.uniform(*self._rng.choice(OUTAGES_S))
        self._server.start()

    def _partition(self, place: Place) -> Steps:
        self._tell("partition", [place.worker.pid])
        place.wire.isolate(silent=self._rng.random() < 0.5)
        try:
            yield self._lease_s * self._rng.uniform(0.5, 2.2)
        finally:
            place.wire.heal()

    def _cut(self, place: Place) -> Steps:
        self._tell("cut", [place.worker.pid])
        for wire in (place.wire, self._producers, self._beats.wire):
            wire.cut()
        yield 0.0

    def _lost_reply(self) -> Steps:
        """Some requests and replies of one worker, of the producers and of the beats."""
        place = self._rng.choice(self._fleet.places)
        self._tell("lost_reply", [place.worker.pid])
        wires = (place.wire, self._producers, self._beats.wire)
        for wire in wires:
            wire.plan(*self._rng.choices(LOSSES, k=self._rng.randint(1, 4)))
        deadline = time.monotonic() + STRIKES_S
        yield lambda: all(wire.pending == 0 for wire in wires) or time.monotonic() > deadline

    def _late_request(self) -> Steps:
        """A request of one worker, one of the producers and one of the beats reach the server late.

        That is: after they were given up and repeated.
        """
        place = self._rng.choice(self._fleet.places)
        self._tell("late_request", [place.worker.pid])
        wires = (place.wire, self._producers, self._beats.wire)
        for wire in wires:
            wire.plan("hold_request")
        deadline = time.monotonic() + STRIKES_S
        yield lambda: all(wire.pending == 0 for wire in wires) or time.monotonic() > deadline
        yield HOLD_S
        for wire in wires:
            wire.release()
