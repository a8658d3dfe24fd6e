"""Probes: live and ready are two questions, and a server that is away makes nobody dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rsq import App, keys
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, kill


@pytest.fixture(autouse=True)
def _health_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_HEALTH_DIR", str(tmp_path / "health"))


def rsq_health(*arguments: str, of: Sequence[str] = ()) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rsq", *of, "health", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_worker_is_alive_and_ready(start_worker: StartWorker) -> None:
    assert rsq_health() == (1, "no worker of this user on this host\n")
    worker = start_worker(concurrency=2)
    wait_until(lambda: rsq_health("--ready")[0] == 0, what="readiness")
    assert rsq_health()[1].endswith(": alive\n")
    code, text = rsq_health("--json", "--pid", str(worker.pid))
    assert code == 0
    told = json.loads(text)
    assert told["ok"]
    assert sorted(child["pid"] for child in told["workers"][0]["children"]) == sorted(worker.children())
    assert worker.stop() == 0
    assert rsq_health()[0] == 1


def test_without_its_server_a_worker_is_unready_but_alive(own_server: MakeServer, start_worker: StartWorker) -> None:
    server = own_server(appendonly=True)
    start_worker(concurrency=1, worker_url=server.url, lease=1)
    wait_until(lambda: rsq_health("--ready")[0] == 0, what="readiness")
    server.kill()
    wait_until(lambda: "has not answered" in rsq_health("--ready")[1], 20, "it to be unready")
    assert rsq_health()[0] == 0
    server.restart()
    wait_until(lambda: rsq_health("--ready")[0] == 0, 20, "readiness to come back")


@pytest.mark.parametrize("executor", [[], ["-P", "solo"]])
def test_a_worker_may_be_started_before_its_server(
    own_server: MakeServer, start_worker: StartWorker, executor: list[str]
) -> None:
    server = own_server(appendonly=True)
    app = App("tests", url=server.url)
    handle = app.send_task("tests.integration.tasks.add", (1, 2))
    server.kill()
    worker = start_worker(*executor, concurrency=1, worker_url=server.url, wait=False)
    wait_until(lambda: "cannot be reached" in worker.log(), 30, "it to say what it waits for")
    server.restart()
    assert handle.get(timeout=30) == 3
    assert worker.stop() == 0


def test_before_its_server_is_there_a_worker_is_unready_but_alive(
    own_server: MakeServer, start_worker: StartWorker
) -> None:
    server = own_server()
    server.kill()
    worker = start_worker(concurrency=1, worker_url=server.url, wait=False, lease=1)
    wait_until(lambda: rsq_health()[0] == 0, what="it to tell of itself")
    assert rsq_health("--ready")[0] == 1
    assert worker.stop() == 0
    assert rsq_health() == (1, "no worker of this user on this host\n")


def test_a_stopping_worker_is_unready(start_worker: StartWorker, app: App, journal: Journal, tmp_path: Path) -> None:
    worker = start_worker(concurrency=1)
    tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "it is stopping" in rsq_health("--ready")[1], what="it to be unready")
    assert rsq_health()[0] == 0
    (tmp_path / "open").touch()
    assert worker.process.wait(20) == 0


def test_a_killed_worker_is_not_there_and_its_neighbour_is_well(start_worker: StartWorker) -> None:
    worker, neighbour = start_worker(concurrency=1), start_worker(concurrency=1)
    wait_until(lambda: len(json.loads(rsq_health("--json")[1])["workers"]) == 2, what="both to tell of themselves")
    worker.kill()
    assert rsq_health("--pid", str(worker.pid)) == (1, "no worker of this user on this host\n")
    assert rsq_health() == (0, rsq_health()[1])
    os.kill(neighbour.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: "is silent" in rsq_health()[1], 30, "the neighbour's silence to be noticed")
    finally:
        os.kill(neighbour.pid, signal.SIGCONT)


def test_a_stuck_child_is_replaced_and_what_it_held_goes_on(app: App, start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=1, lease=1, RSQ_WATCHDOG_S="1")
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    (stuck,) = worker.children()
    os.kill(stuck, signal.SIGSTOP)
    handle = tasks.add.delay(1, 2)
    try:
        assert handle.get(timeout=20) == 3
    finally:
        kill(stuck)
    assert "took no step" in worker.log()
    assert worker.stop() == 0


def test_it_speaks_of_the_app_and_the_namespace_that_are_asked_for(start_worker: StartWorker, url: str) -> None:
    """A broken worker of another app on the same host makes nobody else unwell."""
    start_worker(concurrency=1)
    other = start_worker(concurrency=1, name="tests.integration.process_tasks:app", RSQ_NAMESPACE="elsewhere")
    wait_until(lambda: len(json.loads(rsq_health("--json")[1])["workers"]) == 2, what="both to tell of themselves")
    wait_until(lambda: rsq_health("--ready")[0] == 0, 30, "both to be ready")
    os.kill(other.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: "is silent" in rsq_health()[1], 60, "the silence to be noticed")
        assert rsq_health(of=["-A", "tests.integration.tasks"])[0] == 0
        assert rsq_health("--ready", of=["--namespace", "rsq"])[0] == 0
        assert rsq_health(of=["-A", "tests.integration.process_tasks"])[0] == 1
        assert rsq_health(of=["--namespace", "elsewhere"])[0] == 1
        assert rsq_health(of=["-A", "shop"]) == (1, "no worker of shop of this user on this host\n")
    finally:
        os.kill(other.pid, signal.SIGCONT)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/sys"])
def test_where_nothing_can_be_written_a_worker_works_all_the_same(
    start_worker: StartWorker, app: App, folder: str
) -> None:
    """In a container whose root is read-only."""
    worker = start_worker(concurrency=1, lease=1, RSQ_HEALTH_DIR=folder)
    ((_, before),) = wait_until(lambda: app_seen(app), 60, "it to be listed")
    wait_until(lambda: app_seen(app)[0][1] > before + 3000, 60, "some renewals")
    assert tasks.add.delay(1, 1).get(timeout=30) == 2
    assert worker.log().count("health file:") == 1
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


def app_seen(app: App) -> list[tuple[bytes, float]]:
    with app.client.link() as link:
        found = link.call("ZRANGE", keys.workers("rsq"), 0, 0, "WITHSCORES")
    return [(name, float(score)) for name, score in zip(found[::2], found[1::2], strict=True)]
