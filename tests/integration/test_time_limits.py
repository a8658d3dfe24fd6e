"""Hard and soft time limits of real workers, on each executor and for each way of not ending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rsq import App, SoftTimeLimitExceeded, State, TimeLimitExceeded
from rsq.broker.dead_letters import dead_letters
from tests.helpers import wait_until
from tests.integration import limit_tasks, tasks
from tests.integration.conftest import Journal, StartWorker, Worker, settled, totals

RAISES = ["threads", "asyncio", "solo"]
POOLS = ["prefork", *RAISES]


def start(start_worker: StartWorker, pool: str, concurrency: int = 1, **given: Any) -> Worker:
    return start_worker("-P", pool, name=limit_tasks.__name__, concurrency=concurrency, **given)


def reasons(app: App) -> list[str]:
    with app.client.link() as link:
        return [letter.reason for letter in dead_letters(link, app.client.queue(None))]


def check_two_attempts(app: App, journal: Journal, handle: Any) -> dict[str, int]:
    """Each attempt was ended by the limit, counted, and settled by the task's policy. Gives what was counted."""
    with pytest.raises(TimeLimitExceeded, match=r"ran longer than its time_limit of 0\.5 s"):
        handle.get(timeout=60)
    assert journal.lines() == ["began 1", "began 2"]
    record = handle.result_record()
    assert (record.state, record.attempt) == (State.FAILURE, 2)
    assert record.runtime_s >= 0.5
    wait_until(lambda: settled(app), what="all to be settled")
    assert reasons(app) == ["time-limit"]
    counters = totals(app).counters
    assert (counters["retried"], counters["dead"], counters.get("crashed", 0)) == (1, 1, 0)
    return counters


# -- hard: a process of its own


@pytest.mark.parametrize(
    ("task", "how"),
    [
        (limit_tasks.lingers, "loop"),
        (limit_tasks.lingers, "sleep"),
        (limit_tasks.lingers, "hold the GIL"),
        (limit_tasks.alingers, "await"),
        (limit_tasks.alingers, "sleep"),
    ],
)
def test_a_body_alone_in_its_process_is_killed(
    app: App, start_worker: StartWorker, journal: Journal, task: Any, how: str
) -> None:
    worker = start(start_worker, "prefork")
    before = worker.children()
    handle = task.apply_async((how,), time_limit=0.5)
    counters = check_two_attempts(app, journal, handle)
    assert counters["overdue"] == 2
    assert f"{handle.id} ran longer than its time_limit of 0.5 s: killing child" in worker.log()
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    assert not set(before) & set(worker.children())
    assert worker.stop() == 0


def test_what_waited_behind_it_is_handed_on_without_a_mark(
    app: App, start_worker: StartWorker, journal: Journal
) -> None:
    start(start_worker, "prefork")
    warm = tasks.marked.map_async([(number,) for number in range(100)])  # so that much is held ahead
    assert [handle.get(timeout=30) for handle in warm] == [0] * 100
    handle = limit_tasks.lingers.apply_async(("loop",), time_limit=0.5, max_retries=0)
    waiting = tasks.marked.map_async([(number,) for number in range(50)])
    with pytest.raises(TimeLimitExceeded):
        handle.get(timeout=30)
    assert [each.get(timeout=30) for each in waiting] == [0] * 50
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).counters.get("crashed", 0) == 0


def test_the_caller_of_what_was_acknowledged_early_hears_of_it(
    app: App, start_worker: StartWorker, journal: Journal
) -> None:
    start(start_worker, "prefork")
    with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
        limit_tasks.lingers_once.apply_async(time_limit=0.5).get(timeout=30)
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    assert journal.lines() == ["began"]
    assert settled(app)


def test_the_policy_of_the_task_decides(app: App, start_worker: StartWorker, journal: Journal) -> None:
    start(start_worker, "prefork")
    with pytest.raises(TimeLimitExceeded):
        limit_tasks.lingers_unforgiven.delay().get(timeout=30)
    assert journal.lines() == ["began"]
    assert reasons(app) == ["time-limit"]


def test_who_ends_in_time_is_left_alone(app: App, start_worker: StartWorker, journal: Journal) -> None:
    worker = start(start_worker, "prefork")
    before = worker.children()
    for _ in range(3):
        # Each ends before its limit, all together after it.
        tasks.word.apply_async(("in time", 0.4), ignore_result=False, time_limit=1).get(timeout=20)
    assert worker.children() == before


def test_handlers_hear_of_it(app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path) -> None:
    start_worker(name="tests.integration.signal_tasks", concurrency=1)
    handle = tasks.gate.apply_async((str(tmp_path / "never"),), time_limit=0.5, max_retries=1)
    with pytest.raises(TimeLimitExceeded):
        handle.get(timeout=30)
    assert [line for line in journal.lines() if line.split()[0] in ("retry", "failure")] == [
        "retry 1 TimeLimitExceeded('ran longer than its time_limit of 0.5 s')",
        "failure gate TimeLimitExceeded False",
    ]


# -- hard: a process with others in it, or with nobody who could kill it


@pytest.mark.parametrize("pool", RAISES)
@pytest.mark.parametrize(("task", "how"), [(limit_tasks.lingers, "loop"), (limit_tasks.alingers, "await")])
def test_elsewhere_it_is_raised_in_the_body(
    app: App, start_worker: StartWorker, journal: Journal, pool: str, task: Any, how: str
) -> None:
    worker = start(start_worker, pool)
    before = worker.children()
    handle = task.apply_async((how,), time_limit=0.5)
    counters = check_two_attempts(app, journal, handle)
    assert "overdue" not in counters
    assert worker.children() == before
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_who_catches_it_gets_it_again_and_has_failed(
    app: App, start_worker: StartWorker, journal: Journal, pool: str
) -> None:
    start(start_worker, pool)
    with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
        limit_tasks.does_not_listen.apply_async((2,), time_limit=0.5).get(timeout=30)
    assert journal.lines() == ["caught", "caught"]
    assert reasons(app) == ["time-limit"]


def test_solo_ends_a_sleep(app: App, start_worker: StartWorker, journal: Journal) -> None:
    start(start_worker, "solo")
    check_two_attempts(app, journal, limit_tasks.lingers.apply_async(("sleep",), time_limit=0.5))


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
@pytest.mark.parametrize("how", ["sleep", "hold the GIL"])
def test_who_cannot_be_reached_is_killed_after_a_grace_and_neighbours_are_not_marked(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str, how: str
) -> None:
    worker = start(start_worker, pool, concurrency=3)
    bystander = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the bystander to begin")
    handle = limit_tasks.lingers.apply_async((how,), time_limit=0.5, max_retries=0)
    with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
        handle.get(timeout=60)
    assert "killing child" in worker.log()
    wait_until(lambda: journal.count("began gate") == 2, what="the bystander to begin again")
    (tmp_path / "open").touch()
    assert bystander.get(timeout=20) == "gate"
    wait_until(lambda: settled(app), what="all to be settled")
    assert reasons(app) == ["time-limit"]
    counters = totals(app).counters
    assert (counters["overdue"], counters.get("crashed", 0), counters.get("retried", 0)) == (1, 0, 0)


# -- soft


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("task", "how"),
    [
        (limit_tasks.cleans_up, "loop"),
        (limit_tasks.acleans_up, "one await"),
        (limit_tasks.acleans_up, "two awaits"),
    ],
)
def test_a_soft_limit_can_be_caught(
    app: App, start_worker: StartWorker, journal: Journal, pool: str, task: Any, how: str
) -> None:
    start(start_worker, pool)
    assert task.apply_async((how,), soft_time_limit=0.3, time_limit=60).get(timeout=30) == "partial"
    assert journal.lines() == ["began", "cleaned up"]
    assert totals(app).dead == 0


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_soft_limit_ends_a_sleep_in_the_main_thread(
    app: App, start_worker: StartWorker, journal: Journal, pool: str
) -> None:
    start(start_worker, pool)
    assert limit_tasks.cleans_up.apply_async(("sleep",), soft_time_limit=0.3).get(timeout=30) == "partial"


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("task", "how"), [(limit_tasks.lingers, "loop"), (limit_tasks.alingers, "await")])
def test_a_soft_limit_that_nobody_catches_is_an_error_of_the_attempt(
    app: App, start_worker: StartWorker, journal: Journal, pool: str, task: Any, how: str
) -> None:
    start(start_worker, pool)
    handle = task.apply_async((how,), soft_time_limit=0.3)
    with pytest.raises(SoftTimeLimitExceeded, match=r"soft_time_limit of 0\.3 s"):
        handle.get(timeout=30)
    assert journal.lines() == ["began 1", "began 2"]
    assert reasons(app) == ["retries-exhausted"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("task", [limit_tasks.ignores_soft, limit_tasks.aignores_soft], ids=["plain", "coroutine"])
def test_a_hard_limit_follows_a_soft_one_that_was_caught(
    app: App, start_worker: StartWorker, journal: Journal, pool: str, task: Any
) -> None:
    start(start_worker, pool)
    handle = task.apply_async(soft_time_limit=0.3, time_limit=0.8)
    with pytest.raises(TimeLimitExceeded, match=r"0\.8 s"):
        handle.get(timeout=30)
    assert journal.lines() == ["soft"]


@pytest.mark.parametrize("pool", POOLS)
def test_what_runs_next_is_left_alone(app: App, start_worker: StartWorker, journal: Journal, pool: str) -> None:
    start(start_worker, pool)
    assert limit_tasks.cleans_up.apply_async(("loop",), soft_time_limit=0.3).get(timeout=30) == "partial"
    assert tasks.word.apply_async(("fine", 0.5), ignore_result=False).get(timeout=30) is None
    assert tasks.aadd.apply_async((1, 2), soft_time_limit=5).get(timeout=30) == 3


def test_a_body_knows_its_limits(app: App, start_worker: StartWorker) -> None:
    start(start_worker, "prefork")
    assert limit_tasks.tells_limits.delay().get(timeout=20) == (50, 40)
    assert limit_tasks.tells_limits.apply_async(soft_time_limit=30).get(timeout=20) == (50, 30)
