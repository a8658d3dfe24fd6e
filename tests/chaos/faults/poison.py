"""Calls that kill the process that runs them, among many good ones."""

from __future__ import annotations

import time

from rsq.errors import BrokerError
from tests.chaos import tasks
from tests.chaos.faults.scene import Scene, Steps
from tests.chaos.senders.sender import Handle

GOOD = 60
SWALLOWED_S = 20.0
"""By then all of them are dead letters, or it is left to the drain."""

LOOK_S = 0.1


def poison(scene: Scene) -> Steps:
    """Sent one by one where the good ones stand in line, so that each takes neighbours along."""
    with scene.fault("poison"):
        doses = scene.rng.randint(1, 4)
        goods = [(scene.rng.choice((0.0, 0.01)),) for _ in range(GOOD)]
        yield scene.aside(lambda: _administer(scene, doses, goods))


def _administer(scene: Scene, doses: int, goods: list[tuple[float]]) -> None:
    handles: list[Handle] = []
    for _ in range(doses):
        scene.sender.send_many(tasks.plain, goods)
        handle = scene.sender.send(tasks.poison)
        if handle is not None:
            handles.append(handle)
    deadline = time.monotonic() + SWALLOWED_S
    while time.monotonic() < deadline and not all(map(_has_ended, handles)):
        time.sleep(LOOK_S)


def _has_ended(handle: Handle) -> bool:
    try:
        return handle.ready()
    except BrokerError:
        return False
