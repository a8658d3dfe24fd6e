"""What happens to the nodes of a cluster, one thing at a time: masters that are lost or hang, slots that move.

Each strikes one tag, of a partition or of the fleet, and is over when the cluster is whole and settled again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rsq import keys
from tests.chaos import tasks
from tests.chaos.faults.scene import Scene, Steps
from tests.chaos.fleet import Place
from tests.chaos.history import EVERYBODY
from tests.cluster_client import slot_of
from tests.clusters import Cluster

SOON_S = (0.0, 0.5)
"""A master that is back so soon is still one."""

OUTAGES_S = ((0.05, 1.0), (1.0, 4.0), (4.0, 8.0))
"""Ranges of the time for which a master hangs: shorter and longer than its replica waits, and than a lease."""

HALF_WAY_S = (0.1, 4.0)


def restart_master(scene: Scene) -> Steps:
    """Killed, and back before anybody else takes its place."""

    def act(cluster: Cluster, tag: str) -> None:
        old = cluster.master(tag)
        old.kill()
        time.sleep(scene.rng.uniform(*SOON_S))
        old.start()

    yield from _at_nodes(scene, "restart_master", act)


def kill_master(scene: Scene) -> Steps:
    """Its replica takes its place."""

    def act(cluster: Cluster, tag: str) -> None:
        old = cluster.master(tag)
        old.kill()
        try:
            cluster.await_other_master(tag, old)
        finally:
            old.start()

    yield from _at_nodes(scene, "kill_master", act)


def freeze_master(scene: Scene) -> Steps:
    """At times for so long that another takes its place; when it goes on it believes to be the master, for a moment."""

    def act(cluster: Cluster, tag: str) -> None:
        old = cluster.master(tag)
        old.freeze()
        try:
            time.sleep(scene.rng.uniform(*scene.rng.choice(OUTAGES_S)))
        finally:
            old.thaw()

    yield from _at_nodes(scene, "freeze_master", act)


def fail_over(scene: Scene) -> Steps:
    """In good order, as for an update."""

    def act(cluster: Cluster, tag: str) -> None:
        cluster.fail_over(tag)

    yield from _at_nodes(scene, "fail_over", act)


def move_slot(scene: Scene) -> Steps:
    """Key by key, as ``redis-cli --cluster reshard`` does it; at times it stands still half-way."""

    def act(cluster: Cluster, tag: str) -> None:
        target = cluster.other_master(cluster.master(tag))
        with cluster.moving(tag, target) as source:
            if scene.rng.random() < 0.5:
                cluster.move_keys(source, target, slot_of(tag), part=scene.rng.random())
                time.sleep(scene.rng.uniform(*HALF_WAY_S))

    yield from _at_nodes(scene, "move_slot", act)


def move_slot_whole(scene: Scene) -> Steps:
    """By CLUSTER MIGRATESLOTS, which Valkey has."""

    def act(cluster: Cluster, tag: str) -> None:
        cluster.move_whole(tag, cluster.other_master(cluster.master(tag)))

    yield from _at_nodes(scene, "move_slot_whole", act)


def cut_shard(scene: Scene, place: Place) -> Steps:
    """One worker cannot reach one master; all others can, and it reaches all others."""
    node = scene.cluster.master(_tag(scene))
    with scene.fault("cut_shard", [place.worker.pid]):
        place.wire.isolate(silent=scene.rng.random() < 0.5, port=node.port)
        try:
            yield scene.lease_s * scene.rng.uniform(0.5, 2.2)
        finally:
            place.wire.heal()


def tag_of_queue(queue: str) -> str:
    """The hash tag of its partition."""
    return keys.tag(tasks.app.settings.namespace, tasks.partition_of(queue))


def _tag(scene: Scene) -> str:
    """Of a queue, of the fleet, or of the events."""
    return scene.rng.choice([*map(tag_of_queue, tasks.QUEUES), tasks.app.settings.namespace, "chaos"])


def _at_nodes(scene: Scene, kind: str, act: Callable[[Cluster, str], None]) -> Steps:
    cluster, tag = scene.cluster, _tag(scene)

    def all_of_it() -> None:
        act(cluster, tag)
        cluster.settle()

    struck = cluster.master(tag)
    with scene.fault(kind, [EVERYBODY], queues=[q for q in tasks.QUEUES if cluster.master(tag_of_queue(q)) is struck]):
        scene.outages += 1
        try:
            yield scene.aside(all_of_it)
        finally:
            scene.outages += 1


OF_CLUSTERS: Mapping[str, Callable[[Scene], Steps]] = {
    "restart_master": restart_master,
    "kill_master": kill_master,
    "freeze_master": freeze_master,
    "fail_over": fail_over,
    "move_slot": move_slot,
    "move_slot_whole": move_slot_whole,
}
