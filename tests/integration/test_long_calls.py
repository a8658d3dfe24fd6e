"""Calls into C that never let the GIL go, for much longer than the lease: the lease is kept all the same."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from rsq import App
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, settled

LEASE_S = 1.5
"""Long enough that a busy machine alone does not end it."""


@pytest.mark.parametrize(
    ("task", "arguments", "answer"),
    [
        (tasks.hold_gil, (6,), "held"),
        (tasks.backtrack, (6,), "no match"),
    ],
    ids=["foreign call", "regular expression"],
)
def test_a_call_that_holds_the_gil_for_many_leases_runs_once(
    app: App, start_worker: StartWorker, journal: Journal, task: Any, arguments: tuple[int], answer: str
) -> None:
    workers = [start_worker(concurrency=1, lease=LEASE_S) for _ in range(2)]
    handle = task.delay(*arguments)
    wait_until(lambda: journal.count(f"began {task.__name__}") == 1, what="the body to begin")
    # Meanwhile the neighbour does all the rest, also what the busy one had fetched.
    assert [other.get(timeout=30) for other in tasks.add.map_async([(n, 0) for n in range(50)])] == list(range(50))
    assert not handle.ready()
    assert handle.get(timeout=60) == answer
    assert journal.count(f"began {task.__name__}") == 1
    record = handle.result_record()
    assert record is not None
    assert record.attempt == 1
    wait_until(lambda: settled(app), what="all to be settled")
    assert ended(app) == {"succeeded": 51}
    for worker in workers:
        assert "lost the lease" not in worker.log()
        assert worker.stop() == 0


def test_a_call_that_holds_the_gil_through_a_stop_is_waited_for(
    app: App, start_worker: StartWorker, journal: Journal
) -> None:
    worker = start_worker(concurrency=1, lease=LEASE_S)
    start_worker(concurrency=1, lease=LEASE_S)
    handle = tasks.backtrack.delay(3)
    wait_until(lambda: journal.count("began backtrack") == 1, what="the body to begin")
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert handle.get(timeout=30) == "no match"
    assert journal.count("began backtrack") == 1
    assert ended(app) == {"succeeded": 1}
