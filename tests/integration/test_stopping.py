"""SIGTERM, the shutdown timeout and the second signal."""

from __future__ import annotations

import signal
from pathlib import Path

from rsq import App
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals


def test_sigterm_ends_running_tasks_in_their_own_time_and_hands_back_the_rest(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    first = start_worker(concurrency=1)
    running = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    waiting = tasks.note.map_async([(number,) for number in range(20)])
    first.signal(signal.SIGTERM)
    start_worker(concurrency=1)
    # While the first one still runs its body, everything else is done by the second.
    assert [handle.get(timeout=20) for handle in waiting] == list(range(20))
    assert first.process.poll() is None
    (tmp_path / "open").touch()
    assert running.get(timeout=10) == "gate"
    assert first.process.wait(20) == 0
    assert journal.count("began gate") == 1
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).counters["succeeded"] == 21


def test_after_the_shutdown_timeout_running_tasks_are_handed_back_without_an_attempt(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    first = start_worker("--shutdown-timeout", "0.5", concurrency=1, lease=60)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    assert first.stop() == 0
    start_worker(concurrency=1, lease=60)
    wait_until(lambda: journal.count("began gate") == 2, 20, "the next worker to begin it")
    (tmp_path / "open").touch()
    handle.get(timeout=10)
    record = handle.result_record()
    assert record is not None
    assert record.attempt == 1
    wait_until(lambda: settled(app), what="it to be settled")
    assert totals(app).counters.get("crashed", 0) == 0


def test_a_second_signal_hands_running_tasks_back_at_once(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    worker = start_worker("--shutdown-timeout", "600", concurrency=2, lease=60)
    tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    worker.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in worker.log(), what="the warm stop to begin")
    worker.signal(signal.SIGINT)
    assert worker.process.wait(20) == 0
    assert totals(app).ready == 1
    assert totals(app).counters.get("crashed", 0) == 0


def test_a_worker_stops_while_it_is_idle_or_still_starting(start_worker: StartWorker) -> None:
    assert start_worker(concurrency=2).stop() == 0
    starting = start_worker(concurrency=2, wait=False)
    assert starting.stop() in (0, -signal.SIGTERM)  # the latter before rsq is even imported


def test_solo_worker_stops_too(start_worker: StartWorker, app: App) -> None:
    worker = start_worker("-P", "solo")
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    assert worker.stop() == 0
    assert settled(app)
