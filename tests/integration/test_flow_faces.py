"""Flows that grow and hand on while they run, with worker processes of each kind, and some that are killed."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest

from rsq import App, group
from tests.helpers import wait_until
from tests.integration import flow_tasks, tasks
from tests.integration.conftest import Journal, StartWorker, kill, settled, totals

POOLS = ["prefork", "threads", "asyncio", "solo"]


@pytest.mark.parametrize("pool", POOLS)
def test_calls_replace_themselves(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start_worker("-P", pool, name=flow_tasks.__name__)
    for task in (flow_tasks.doubles, flow_tasks.adoubles):
        handle = (group(task.s(number) for number in range(100)) | tasks.total.s()).delay()
        assert handle.get(timeout=60) == 9900
    nested = flow_tasks.becomes.s(group(flow_tasks.doubles.s(1), flow_tasks.adoubles.s(2)))
    assert nested.delay().get(timeout=60) == [2, 4]
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


def test_who_is_killed_replaces_nothing_twice(app: App, start_worker: StartWorker) -> None:
    worker = start_worker(name=flow_tasks.__name__, lease=1)
    number = 400
    handle = (group(flow_tasks.doubles.s(each) for each in range(number)) | tasks.total.s()).delay()
    for kills in range(4):
        wait_until(partial(lambda least: totals(app).counters.get("replaced", 0) > least, kills * 100), 60, "progress")
        kill(random.choice(wait_until(worker.children, what="a child")))
    assert handle.get(timeout=60) == number * (number - 1)
    wait_until(lambda: settled(app), 20, "all to be settled")
    counters = totals(app).counters
    assert (counters["replaced"], counters["succeeded"]) == (number, number + 1)
    assert worker.stop() == 0


def test_a_batch_outlives_those_who_are_killed(app: App, start_worker: StartWorker, journal: Journal) -> None:
    """Each member and each callback has ended once by commit, though members add members and children die."""
    worker = start_worker(name=flow_tasks.__name__, lease=1)
    with app.batch(on_success=tasks.note.s("success"), on_complete=tasks.note.s("complete")) as batch:
        batch.add(*(flow_tasks.grows.s(2, 5) for _ in range(20)))
    number = 20 * (1 + 5 + 25)
    for kills in range(4):
        wait_until(partial(lambda least: batch.progress.done > least, 50 + kills * 100), 60, "progress")
        kill(random.choice(wait_until(worker.children, what="a child")))
    progress = batch.wait(timeout=60)
    assert (progress.state, progress.total, progress.done) == ("succeeded", number, number)
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert totals(app).counters["succeeded"] == number + 2
    assert {"ran success", "ran complete"} <= {*journal.lines()}
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_members_add_members(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start_worker("-P", pool, name=flow_tasks.__name__)
    with app.batch(on_success=tasks.note.s("success")) as batch:
        batch.add(flow_tasks.grows.s(3, 4), flow_tasks.agrows.s(3, 4))
    progress = batch.wait(timeout=60)
    assert (progress.state, progress.done) == ("succeeded", 2 * (1 + 4 + 16 + 64))
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_all_of_it_at_once_while_workers_die(app: App, start_worker: StartWorker, redis: Any, pool: str) -> None:
    """Batches that grow, calls that are replaced, graphs and batches as steps: the sum of what has ended is exact."""
    rng = random.Random(pool)
    start = partial(start_worker, "-P", pool, name=flow_tasks.__name__, lease=1)
    workers = [start(), start()]
    batches, flows, steps, expected = [], [], [], 0
    for number in range(8):
        told: dict[str, Any] = {
            "on_success": tasks.note.s(f"good {number}"),
            "on_complete": tasks.note.s(f"over {number}"),
        }
        with app.batch(**told) as batch:
            for _ in range(10):
                batch.add(flow_tasks.grows.s(2, 3), flow_tasks.agrows.s(1, 2), flow_tasks.doubles.s(1))
                batch.add(flow_tasks.becomes.s(group(flow_tasks.doubles.s(1), tasks.add.s(1, 2)) | tasks.total.s()))
        expected += 10 * (13 + 3 + 1 + 3) + 2
        batches.append(batch)
        flow = app.flow()
        both = [flow.add(tasks.add.s(1, 2)), flow.add(flow_tasks.doubles.s(5))]
        row = group(tasks.add.s(1), flow_tasks.doubles.s())
        flow.add(row, after=flow.add(tasks.total.s(), after=both), policy="continue", name="row")
        flows.append(flow.start())
        steps.append((tasks.add.s(1, 1) | app.batch().s(flow_tasks.grows.si(1, 2), tasks.add.si(1, 1))).delay())
        expected += 5 + 1 + 4 + 1
        wait_until(lambda: batches[-1].progress.done > 0, 60, "progress")
        if number % 4 < 3:
            kill(rng.choice(wait_until(workers[0].children, what="a child")))
        else:
            workers.pop(0).kill()
            workers.append(start())
    assert [(each.state, each.done) for each in (batch.wait(60) for batch in batches)] == [("succeeded", 180)] * 8
    assert [run.get(timeout=60) for run in flows] == [{"row": [14, 26]}] * 8
    assert [(value["total"], value["done"]) for value in (step.get(timeout=60) for step in steps)] == [(4, 4)] * 8
    wait_until(lambda: settled(app), 30, "all to be settled")
    assert totals(app).counters["succeeded"] == expected
    assert not redis.exists("{rsq:0}::todo", "{rsq:0}::flows")
