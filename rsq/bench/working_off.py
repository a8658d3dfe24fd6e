"""How long a backlog takes: by workers of rsq, and by the floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rsq.bench import floor
from rsq.bench.rig import Rig
from rsq.bench.tasks import add_quietly, mark

WARM_UP = 2000
"""Tasks that are run before the clock starts: until then a child does not know how short they are."""


@dataclass(frozen=True)
class Drained:
    """What working off some tasks took: tasks a second, and seconds of processor and requests to the server, a task."""

    per_s: float
    cpu_s: float
    server_cpu_s: float
    commands: float
    reads: float


def work_off(rig: Rig, children: int, tasks: int, enqueue: Callable[[], object], *arguments: str) -> Drained:
    """Have a worker run what `enqueue` sends, which comes to `tasks` successes; the clock starts after a warm-up.

    arguments  more of them for `rsq worker`
    """
    warm_up = rig.size(WARM_UP)
    add_quietly.map_async([(1, 2)] * warm_up)
    first = mark.delay()
    enqueue()
    server_began = rig.readings()
    with rig.worker(children, *arguments):
        rig.wait_until_succeeded(warm_up + 1 + tasks)
        ended, server = time.monotonic(), rig.readings() - server_began
        _, began, cpu_began = first.get(timeout=60)
        _, _, cpu_ended = mark.delay().get(timeout=60)
    every = warm_up + tasks
    return Drained(
        tasks / (ended - began),
        (cpu_ended - cpu_began) / tasks,
        server.cpu_s / every,
        server.commands / every,
        server.reads / every,
    )


def work_off_bare(rig: Rig, processes: int, tasks: int, keep: bool) -> Drained:
    """The same by the floor."""
    warm_up = rig.size(WARM_UP)
    floor.enqueue_bulk(rig.url, warm_up + tasks)
    server_began = rig.readings()
    runs = [rig.beside(floor.drain, rig.url, warm_up // processes, keep) for _ in range(processes)]
    costs = [run.result() for run in runs]
    server = rig.readings() - server_began
    every = warm_up + tasks
    return Drained(
        sum(cost.tasks / cost.seconds for cost in costs),
        sum(cost.cpu_s for cost in costs) / sum(cost.tasks for cost in costs),
        server.cpu_s / every,
        server.commands / every,
        server.reads / every,
    )
