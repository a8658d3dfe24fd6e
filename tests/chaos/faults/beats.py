"""Faults of the beats."""

from __future__ import annotations

from tests.chaos.faults.scene import Scene, Steps
from tests.chaos.faults.workers import frozen
from tests.integration.conftest import kill


def kill_beat(scene: Scene) -> Steps:
    """One of them, or both."""
    beats = scene.rng.sample(scene.beats.now, scene.rng.randint(1, len(scene.beats.now)))
    with scene.fault("kill_beat", pids=[beat.pid for beat in beats]):
        for beat in beats:
            kill(beat.pid)
        begun = [scene.beats.replace(beat) for beat in beats]
        yield lambda: all(each() for each in begun)


def freeze_beat(scene: Scene) -> Steps:
    """Both stand still; when they go on they are late for the same slots."""
    pids = [beat.pid for beat in scene.beats.now]
    with scene.fault("freeze_beat", pids=pids):
        yield from frozen(scene, pids)
