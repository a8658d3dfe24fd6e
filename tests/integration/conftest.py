"""Real workers: `rsq worker` as a process, on the server of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App
from rsq.broker.status import QueueCounts, counts
from rsq.keys import FlowKeys
from tests.helpers import patience, wait_until
from tests.integration import tasks

STOP_S = 30


class Journal:
    """What task bodies wrote, outside Redis."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def count(self, line: str) -> int:
        return self.lines().count(line)


class Worker:
    """One `rsq worker`, supervisor and children."""

    def __init__(self, *arguments: str, env: dict[str, str], log: Path) -> None:
        self.log_path = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rsq", *arguments], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def children(self) -> list[int]:
        return child_pids(self.pid)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As the system does it to a whole host: the supervisor and all its children, at once."""
        for pid in [self.pid, *self.children()]:
            kill(pid)
        self.process.wait(patience(STOP_S))

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(patience(STOP_S))

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()


def child_pids(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if not row[1].startswith("Z")]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    path = tmp_path / "journal"
    monkeypatch.setenv(tasks.JOURNAL, str(path))
    return Journal(path)


@pytest.fixture
def app(url: str) -> Iterator[App]:
    """The app of the worker processes, on this side."""
    tasks.app.configure(url=url)
    yield tasks.app
    tasks.app.close()


StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(url: str, journal: Journal, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts a worker; it consumes when the call returns. `wait=False` returns at once."""
    workers: list[Worker] = []

    def start(
        *arguments: str,
        concurrency: int = 2,
        lease: float = 10,
        wait: bool = True,
        name: str = "tests.integration.tasks",
        worker_url: str | None = None,
        **env: str,
    ) -> Worker:
        environment = {
            **os.environ,
            "RSQ_URL": worker_url or url,
            tasks.JOURNAL: str(journal.path),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            **env,
        }
        given = ("-A", name, "worker", "-c", str(concurrency), "--lease", str(lease), *arguments)
        worker = Worker(*given, env=environment, log=tmp_path / f"worker{len(workers)}.log")
        workers.append(worker)
        if wait:
            wait_until(lambda: _consumes(worker), 30, "the worker to begin")
        return worker

    yield start
    for worker in workers:
        worker.close()


MakeApp = Callable[..., str]


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeApp:
    """Writes a module with the app and tasks of `process_tasks` that does this, too; gives its name for -A."""

    def make(code: str, name: str = "mine") -> str:
        shared = "tests.integration.process_tasks"
        (tmp_path / f"{name}.py").write_text(f"from {shared} import *\nfrom {shared} import app\n{code}\n")
        return name

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(Path(__file__).parents[2]), *sys.path])
    return make


def _consumes(worker: Worker) -> bool:
    if worker.process.poll() is not None:
        pytest.fail(f"the worker ended with {worker.process.returncode}:\n{worker.log()}")
    return "  server " in worker.log()


def totals(app: App, queue: str | None = None) -> QueueCounts:
    with app.client.link() as link:
        return counts(link, app.client.queue(queue))


def ended(app: App) -> dict[str, int]:
    """How often calls ended, by the way in which they did."""
    return {how: number for how, number in totals(app).counters.items() if how != "wakes"}


def nobody_reads(redis: Any) -> bool:
    """Whether no worker is blocked in a read. Between two reads none is for a moment, too."""
    return all(redis.info("clients")["blocked_clients"] == 0 for _ in range(200))


def settled(app: App, queue: str | None = None) -> bool:
    """Nothing waits and nothing runs, and nothing is left of flows."""
    now = totals(app, queue)
    (unfinished,) = app.client.ask(("EXISTS", FlowKeys(app.client.queue(None).keys.prefix, "").unfinished))
    return not (now.ready or now.running or now.delayed or unfinished)
