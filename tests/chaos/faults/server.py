"""The server goes away and comes back, for less and for more than a lease; one outage at a time."""

from __future__ import annotations

from tests.chaos.faults.scene import Scene, Steps
from tests.chaos.fleet import Place
from tests.chaos.history import EVERYBODY

OUTAGES_S = ((0.05, 0.5), (0.05, 1.0), (1.0, 4.0), (4.0, 8.0))
"""Ranges of the time for which the server is away; some outlast all leases, and every send."""

SOON_S = 0.3
"""From the beginning of an outage to a stop in it: by then whoever speaks to the server has noticed."""


def restart_server(scene: Scene) -> Steps:
    yield from _away(scene, "restart_server", scene.rng.uniform(*scene.rng.choice(OUTAGES_S)))


def freeze_server(scene: Scene) -> Steps:
    yield from _away(scene, "freeze_server", scene.rng.uniform(*scene.rng.choice(OUTAGES_S)))


def stop_away(scene: Scene, place: Place) -> Steps:
    """A worker is told to stop while the server is away; another begins when it is back."""
    old = place.worker
    scene.fleet.family(place)
    outage = _away(scene, scene.rng.choice(("restart_server", "freeze_server")), scene.rng.uniform(1.0, 8.0))
    away_s = next(outage)
    yield SOON_S
    with scene.fault("stop_away", [old.pid]):
        scene.fleet.leave(old)
        yield away_s
        yield from outage
        scene.fleet.replace(place)
        yield lambda: scene.fleet.has_left(old)


def _away(scene: Scene, kind: str, seconds: float) -> Steps:
    with scene.fault(kind, [EVERYBODY]):
        scene.outages += 1
        server = scene.alone
        strike, mend = (server.kill, server.start) if kind == "restart_server" else (server.freeze, server.thaw)
        strike()
        try:
            yield seconds
        finally:
            mend()
            scene.outages += 1
