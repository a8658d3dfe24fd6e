"""Deals the faults of a chaos run: from a deck that a seeded generator shuffles, one by one or some at once.

The seed fixes what is drawn; the moments are the machine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.faults import beats, network, poison, server, shards, workers
from tests.chaos.faults.scene import Pause, Scene, Steps
from tests.chaos.fleet import Place

OF_A_PLACE: Mapping[str, Callable[[Scene, Place], Steps]] = {
    "kill_child": workers.kill_child,
    "kill_worker": workers.kill_worker,
    "kill_supervisor": workers.kill_supervisor,
    "freeze_worker": workers.freeze_worker,
    "freeze_supervisor": workers.freeze_supervisor,
    "partition": network.partition,
    "cut": network.cut,
    "lost_commit": network.lost_commit,
    "terminate": workers.terminate,
    "stop_away": server.stop_away,
    "cut_shard": shards.cut_shard,
}
"""Each strikes the worker of one place, and nothing else strikes there meanwhile."""

OF_ALL: Mapping[str, Callable[[Scene], Steps]] = {
    "restart_server": server.restart_server,
    "freeze_server": server.freeze_server,
    "lost_reply": network.lost_reply,
    "late_request": network.late_request,
    "kill_beat": beats.kill_beat,
    "freeze_beat": beats.freeze_beat,
    "poison": poison.poison,
    **shards.OF_CLUSTERS,
}

FAULTS = (*OF_A_PLACE, *OF_ALL)

OF_ONE_SERVER = frozenset({"restart_server", "freeze_server", "stop_away"})
"""Dealt where there is one server alone."""

OF_A_CLUSTER = frozenset({*shards.OF_CLUSTERS, "cut_shard"})

OUTAGES = OF_ONE_SERVER | OF_A_CLUSTER
"""These do not begin while the server, or a node, is away."""

QUIET_S = (1.2, 2.5)
"""Between the end of one fault and the next, so that recovery from one at a time is measured."""

HASTE_S = (0.2, 1.5)
"""Between one fault and the next that does not wait for its end."""


@dataclass
class _Active:
    steps: Steps
    wake: Pause = 0.0

    def is_due(self) -> bool:
        return self.wake() if callable(self.wake) else time.monotonic() >= self.wake


class Saboteur:
    """Call `step` often; `finish` at the end puts everything right.

    kinds  of faults that are dealt
    haste  share of the faults that do not wait for those before them to end
    """

    def __init__(self, scene: Scene, kinds: Sequence[str], haste: float) -> None:
        self._scene = scene
        self._kinds = kinds
        self._haste = haste
        self._deck: list[str] = []
        self._active: list[_Active] = []
        self._next_at = time.monotonic()
        self._waits = True

    def step(self) -> None:
        """Carry on with what is under way, and strike where it is time."""
        rng = self._scene.rng
        self._carry_on()
        if self._active and self._waits:
            self._next_at = time.monotonic() + rng.uniform(*QUIET_S)
        elif self._kinds and time.monotonic() >= self._next_at:
            self._strike()
            self._waits = rng.random() >= self._haste
            self._next_at = time.monotonic() + rng.uniform(*(QUIET_S if self._waits else HASTE_S))

    def finish(self) -> None:
        """Let what is under way come to its end; nothing new strikes."""
        while self._active:
            self._carry_on()
            self._scene.fleet.tend()
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
            return
        active.wake = pause if callable(pause) else time.monotonic() + pause

    def _strike(self) -> None:
        if not self._deck:
            self._deck = self._scene.rng.sample(self._kinds, len(self._kinds))
        kind = self._deck.pop()
        if kind in OUTAGES and self._scene.server_away:
            return  # the last outage is not over
        if kind in OF_ALL:
            steps = OF_ALL[kind](self._scene)
        elif (place := self._scene.pick()) is not None:
            steps = _at(place, OF_A_PLACE[kind](self._scene, place))
        else:
            return  # every place is struck, or its worker has not begun yet
        active = _Active(steps)
        self._active.append(active)
        self._advance(active)


def _at(place: Place, steps: Steps) -> Steps:
    place.struck = True
    try:
        yield from steps
    finally:
        place.struck = False
