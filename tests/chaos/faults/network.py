"""Faults of the wires: of one worker's alone, or of the producers' and the beats' as well."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rsq.broker import scripts
from tests.chaos import tasks
from tests.chaos.faults.scene import Pause, Scene, Steps
from tests.chaos.fleet import Place
from tests.chaos.network import Wire

STRIKES_S = 10.0
"""Planned losses that have not struck by then are left to strike later."""

HOLD_S = 7.0
"""Longer than anybody waits for a reply."""

SILENT_S = 4.0
"""How long a worker is cut off after the reply to a commit was lost: another one goes on with the call meanwhile."""

EARLY_CALLS = 12

LOSSES = ("cut_request", "cut_reply", "truncate_reply")


def partition(scene: Scene, place: Place) -> Steps:
    with scene.fault("partition", [place.worker.pid]):
        yield from _cut_off(scene, place, scene.lease_s * scene.rng.uniform(0.5, 2.2))


def _cut_off(scene: Scene, place: Place, seconds: float) -> Steps:
    place.wire.isolate(silent=scene.rng.random() < 0.5)
    try:
        yield seconds
    finally:
        place.wire.heal()


def cut(scene: Scene, place: Place) -> Steps:
    with scene.fault("cut", [place.worker.pid]):
        for wire in _wires(scene, place):
            wire.cut()
        yield 0.0


def lost_reply(scene: Scene) -> Steps:
    """Some requests and replies of one worker, of the producers and of the beats."""
    place = scene.rng.choice(scene.fleet.places)
    with scene.fault("lost_reply", [place.worker.pid]):
        wires = _wires(scene, place)
        for wire in wires:
            wire.plan(*scene.rng.choices(LOSSES, k=scene.rng.randint(1, 4)))
        yield _struck(wires)


def lost_commit(scene: Scene, place: Place) -> Steps:
    """The reply to the commit of an attempt that is retried is lost, and its worker cut off: others do the next one.

    Calls that are acknowledged early are sent beside it; none of their attempts may run twice for that.
    """
    with scene.fault("lost_commit", [place.worker.pid]):
        place.wire.plan("cut_reply", at=place.wire.sha(scripts.RETRY))
        sent = scene.aside(lambda: scene.sender.send_many(tasks.once_again, [()] * EARLY_CALLS))
        yield _struck([place.wire])
        yield from _cut_off(scene, place, SILENT_S)
        yield sent


def late_request(scene: Scene) -> Steps:
    """A request of one worker, one of the producers and one of the beats reach the server late.

    That is: after they were given up and repeated.
    """
    place = scene.rng.choice(scene.fleet.places)
    with scene.fault("late_request", [place.worker.pid]):
        wires = _wires(scene, place)
        for wire in wires:
            wire.plan("hold_request")
        yield _struck(wires)
        yield HOLD_S
        yield lambda: not scene.server_away  # what is sent on waits for its answer
        for wire in wires:
            wire.release()


def _wires(scene: Scene, place: Place) -> tuple[Wire, ...]:
    return place.wire, scene.producers, scene.beats.wire


def _struck(wires: Sequence[Wire]) -> Pause:
    """Until all that was planned has struck, or the time for it is over."""
    deadline = time.monotonic() + STRIKES_S
    return lambda: all(wire.pending == 0 for wire in wires) or time.monotonic() > deadline
