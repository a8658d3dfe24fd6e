"""Faults of one worker's processes. Nothing else strikes its place meanwhile."""

from __future__ import annotations

import signal

import redis

from rsq.keys import GROUP
from tests.chaos import tasks
from tests.chaos.faults.scene import Scene, Steps
from tests.chaos.fleet import Place
from tests.integration.conftest import Worker, kill


def kill_child(scene: Scene, place: Place) -> Steps:
    children = place.worker.children()
    victims = [scene.rng.choice(children)] if children else []
    with scene.fault("kill_child", [place.worker.pid] if victims else [], victims):
        for victim in victims:
            kill(victim)
        yield 0.3


def kill_worker(scene: Scene, place: Place) -> Steps:
    """The whole host, at once: stopped first, so that nobody sees the others go and hands anything over."""
    family = scene.fleet.family(place)
    with scene.fault("kill_worker", [place.worker.pid]):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in family:
                kill(pid, number)
        place.worker.process.wait()
        scene.fleet.replace(place)
        yield scene.lease_s + 1.0


def kill_supervisor(scene: Scene, place: Place) -> Steps:
    scene.fleet.family(place)
    with scene.fault("kill_supervisor", [place.worker.pid]):
        kill(place.worker.pid)
        place.worker.process.wait()
        scene.fleet.replace(place)
        yield 1.0


def freeze_worker(scene: Scene, place: Place) -> Steps:
    family = scene.fleet.family(place)
    with scene.fault("freeze_worker", [place.worker.pid]):
        yield from frozen(scene, family)


def freeze_supervisor(scene: Scene, place: Place) -> Steps:
    """Its children work on, with leases that nobody renews; at times for several leases."""
    with scene.fault("freeze_supervisor", [place.worker.pid]):
        yield from frozen(scene, [place.worker.pid], 4.0)


def frozen(scene: Scene, pids: list[int], leases: float = 2.2) -> Steps:
    """For longer than a lease, and for so many at most."""
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    try:
        yield scene.lease_s * scene.rng.uniform(1.2, leases)
    finally:
        for pid in scene.rng.sample(pids, len(pids)):
            kill(pid, signal.SIGCONT)


def terminate(scene: Scene, place: Place) -> Steps:
    """One step of a rolling restart."""
    old: Worker = place.worker
    scene.fleet.family(place)
    with scene.fault("terminate", [old.pid], held=_held_by(scene, old)):
        scene.fleet.leave(old)
        scene.fleet.replace(place)
        yield lambda: scene.fleet.has_left(old)


def _held_by(scene: Scene, worker: Worker) -> list[str]:
    """Entries that its consumers have fetched."""
    found: list[str] = []
    try:
        with scene.server.client(decode_responses=True, socket_timeout=1.0) as client:
            for queue in tasks.QUEUES:
                stream = tasks.keys_of(queue).stream()
                for row in client.xinfo_consumers(stream, GROUP):
                    if row["pending"] and f"-{worker.pid}-" in row["name"]:
                        pending = client.xpending_range(stream, GROUP, "-", "+", 1000, row["name"])
                        found += [tasks.entry_name(queue, 0, entry["message_id"]) for entry in pending]
    except (redis.RedisError, LookupError):
        pass  # the server is away; then this fault has no figures
    return found
