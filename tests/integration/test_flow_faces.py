"""Flows that grow and hand on while they run, with worker processes of each kind, and some that are killed."""

from __future__ import annotations

import random
from functools import partial

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
