"""The same promises on every executor, and what only some of them can do."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rsq import App
from tests.helpers import wait_until
from tests.integration import pool_tasks, tasks
from tests.integration.conftest import Journal, StartWorker, Worker, kill, settled, totals

POOLS = ["prefork", "threads", "asyncio", "solo"]
SUPERVISED = ["prefork", "threads", "asyncio"]
SHARED = ["threads", "asyncio"]


def start(start_worker: StartWorker, pool: str, *arguments: str, concurrency: int = 4, **given: Any) -> Worker:
    name = pool_tasks.__name__
    return start_worker("-P", pool, *arguments, name=name, concurrency=concurrency, **given)


@pytest.mark.parametrize("pool", POOLS)
def test_functions_and_coroutines_run_side_by_side(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start(start_worker, pool)
    plain = tasks.add.map_async([(number, 1) for number in range(500)])
    coroutines = tasks.aadd.map_async([(number, 2) for number in range(500)])
    assert [handle.get(timeout=60) for handle in plain] == [number + 1 for number in range(500)]
    assert [handle.get(timeout=60) for handle in coroutines] == [number + 2 for number in range(500)]
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).counters["succeeded"] == 1000
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize("pool", POOLS)
def test_retries(app: App, start_worker: StartWorker, pool: str) -> None:
    start(start_worker, pool)
    assert tasks.flaky.delay(2).get(timeout=30) == 3
    assert tasks.asks_for_retry.delay().get(timeout=30) == (3, 2)
    assert pool_tasks.aflaky.delay(2).get(timeout=30) == 3
    assert pool_tasks.aasks_for_retry.delay().get(timeout=30) == 3
    with pytest.raises(ValueError, match="attempt 3"):
        pool_tasks.aflaky.delay(99).get(timeout=30)
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).dead == 1


@pytest.mark.parametrize("pool", SUPERVISED)
@pytest.mark.parametrize("task", [pool_tasks.meet, pool_tasks.ameet], ids=["plain", "coroutine"])
def test_each_body_has_a_context_of_its_own(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str, task: Any
) -> None:
    start(start_worker, pool)
    handles = [task.delay(str(tmp_path / "open"), f"w{number}") for number in range(4)]
    wait_until(lambda: len(journal.lines()) == 4, 30, "all four to run at once")
    (tmp_path / "open").touch()
    assert [handle.get(timeout=20) for handle in handles] == [("unset", f"w{n}", f"w{n}", True) for n in range(4)]
    later = [task.delay(str(tmp_path / "open"), "later") for _ in range(8)]
    assert {handle.get(timeout=20) for handle in later} == {("unset", "later", "later", True)}


@pytest.mark.parametrize("pool", SUPERVISED)
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_crash_marks_those_that_ran_and_nobody_else(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str, how: str
) -> None:
    start(start_worker, pool, concurrency=3, lease=60)
    bystander = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the bystander to begin")
    pill = tasks.die_until.delay(1, how)
    assert pill.get(timeout=30) == 1
    (tmp_path / "open").touch()
    waiting = tasks.marked.map_async([(number,) for number in range(20)])
    assert [handle.get(timeout=30) for handle in waiting] == [0] * 20
    assert bystander.get(timeout=30) == "gate"
    wait_until(lambda: settled(app), what="all to be settled")
    # In a process of its own it is not touched by its neighbour.
    assert totals(app).counters["crashed"] == (1 if pool == "prefork" else 2)
    assert journal.count("began gate") == (1 if pool == "prefork" else 2)


@pytest.mark.parametrize("pool", SUPERVISED)
def test_acks_early_runs_at_most_once(app: App, start_worker: StartWorker, journal: Journal, pool: str) -> None:
    start(start_worker, pool)
    assert tasks.at_most_once.delay("fine").get(timeout=20) == "fine"
    with pytest.raises(Exception, match="process died"):
        tasks.at_most_once.delay("die").get(timeout=30)
    wait_until(lambda: settled(app), what="it to be settled")
    assert journal.lines() == ["ran fine", "ran die"]


@pytest.mark.parametrize("pool", SUPERVISED)
def test_children_are_replaced_after_so_many_tasks(app: App, start_worker: StartWorker, pool: str) -> None:
    start(start_worker, pool, "--max-tasks-per-child", "5", concurrency=1 if pool == "prefork" else 3)
    pids = [handle.get(timeout=60) for handle in tasks.where.map_async([()] * 20)]
    assert len(set(pids)) == 4
    assert all(pids.count(pid) == 5 for pid in set(pids))
    assert totals(app).counters.get("crashed", 0) == 0


@pytest.mark.parametrize("pool", SUPERVISED)
def test_children_are_replaced_when_they_have_grown(app: App, start_worker: StartWorker, pool: str) -> None:
    start(start_worker, pool, "--max-memory-per-child", "300", concurrency=1)
    small = {tasks.where.delay().get(timeout=30) for _ in range(5)}
    assert len(small) == 1
    assert {pool_tasks.grow.delay(400).get(timeout=60)} == small
    assert tasks.where.delay().get(timeout=60) not in small
    assert totals(app).counters.get("crashed", 0) == 0


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("task", "told"), [(tasks.gate, "interrupted gate"), (tasks.agate, "interrupted agate")])
def test_a_frozen_worker_is_fenced_and_its_body_told(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str, task: Any, told: str
) -> None:
    frozen = start(start_worker, pool, concurrency=1, lease=1)
    handle = task.delay(str(tmp_path / "open"))
    began = "began agate" if task is tasks.agate else "began gate"
    wait_until(lambda: journal.count(began) == 1, what="the body to begin")
    pids = [frozen.pid, *frozen.children()]
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    start(start_worker, pool, concurrency=1, lease=1)
    wait_until(lambda: journal.count(began) == 2, 20, "another worker to take over")
    for pid in reversed(pids):
        kill(pid, signal.SIGCONT)
    wait_until(lambda: journal.count(told) == 1, 20, "the frozen body to hear of it")
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == told.split()[1]
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).counters["succeeded"] == 1
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    assert frozen.stop() == 0


@pytest.mark.parametrize("pool", SUPERVISED)
def test_a_warm_stop_hands_back_what_has_not_begun(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str
) -> None:
    first = start(start_worker, pool, concurrency=2)
    running = [tasks.gate.delay(str(tmp_path / "open")), tasks.agate.delay(str(tmp_path / "open"))]
    wait_until(lambda: len(journal.lines()) == 2, what="both bodies to begin")
    waiting = tasks.note.map_async([(number,) for number in range(20)])
    first.signal(signal.SIGTERM)
    start(start_worker, pool, concurrency=1)
    assert [handle.get(timeout=20) for handle in waiting] == list(range(20))
    assert first.process.poll() is None
    (tmp_path / "open").touch()
    assert [handle.get(timeout=20) for handle in running] == ["gate", "agate"]
    assert first.process.wait(20) == 0
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).counters["succeeded"] == 22


@pytest.mark.parametrize("pool", SHARED)
def test_a_cold_stop_hands_back_all_that_runs(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str
) -> None:
    worker = start(start_worker, pool, "--shutdown-timeout", "0.5", lease=60)
    for _ in range(2):
        tasks.gate.delay(str(tmp_path / "open"))
        tasks.agate.delay(str(tmp_path / "open"))
    wait_until(lambda: len(journal.lines()) == 4, what="all bodies to begin")
    assert worker.stop() == 0
    assert totals(app).ready == 4
    assert totals(app).counters.get("crashed", 0) == 0


def test_a_thousand_coroutines_at_once(app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path) -> None:
    worker = start(start_worker, "asyncio", concurrency=1000)
    handles = pool_tasks.atogether.map_async([(number, str(tmp_path / "open")) for number in range(1000)])
    wait_until(lambda: len(journal.lines()) == 1000, 60, "all to run at once")
    assert len(worker.children()) == 1
    (tmp_path / "open").touch()
    assert [handle.get(timeout=60) for handle in handles] == list(range(1000))
    wait_until(lambda: settled(app), what="all to be settled")


@pytest.mark.parametrize("pool", SHARED)
def test_fifty_blocking_functions_at_once(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str
) -> None:
    worker = start(start_worker, pool, concurrency=50)
    handles = [tasks.gate.delay(str(tmp_path / "open"), str(number)) for number in range(50)]
    wait_until(lambda: len(journal.lines()) == 50, 60, "all to run at once")
    assert len(worker.children()) == 1
    (tmp_path / "open").touch()
    assert [handle.get(timeout=60) for handle in handles] == [str(number) for number in range(50)]


@pytest.mark.parametrize("pool", SHARED)
def test_a_long_body_keeps_nobody_waiting(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str
) -> None:
    start(start_worker, pool, concurrency=2)
    blocked = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="it to begin")
    assert pool_tasks.ping.delay().get(timeout=20) == "pong"
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    (tmp_path / "open").touch()
    assert blocked.get(timeout=20) == "gate"


def test_functions_beside_coroutines_run_in_threads(app: App, start_worker: StartWorker) -> None:
    start(start_worker, "asyncio")
    assert pool_tasks.thread_name.delay().get(timeout=20).startswith("rsq-task")
    assert os.getpid() != tasks.where.delay().get(timeout=20)
