"""Flows that grow and hand on while they run, with worker processes of each kind, and some that are killed."""

from __future__ import annotations

import random
from functools import partial

import pytest

from rsq import App, group
from tests.helpers import wait_until
from tests.integration import flow_tasks, tasks
from tests.integration.conftest import StartWorker, kill, settled, totals

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
