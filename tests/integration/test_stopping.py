"""SIGTERM, the shutdown timeout and the second signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rsq import App, keys
from rsq.worker import process
from rsq.worker.stop import StopSignals
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import process_tasks, tasks
from tests.integration.conftest import Journal, MakeApp, StartWorker, Worker, ended, kill, settled, totals


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
    wait_until(lambda: ended_by_another(worker, signal.SIGINT), 30, "it to end")
    assert worker.process.wait() == 0
    assert totals(app).ready == 1
    assert totals(app).counters.get("crashed", 0) == 0


def ended_by_another(worker: Worker, number: int) -> bool:
    """Signals until it has ended: what comes within half a second of the first signal is the same one."""
    if worker.process.poll() is None:
        worker.signal(number)
    return worker.process.poll() is not None


def test_a_worker_stops_while_it_is_idle_or_still_starting(start_worker: StartWorker) -> None:
    assert start_worker(concurrency=2).stop() == 0
    starting = start_worker(concurrency=2, wait=False)
    assert starting.stop() in (0, -signal.SIGTERM)  # the latter before rsq is even imported


def test_solo_worker_stops_too(start_worker: StartWorker, app: App) -> None:
    worker = start_worker("-P", "solo")
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    assert worker.stop() == 0
    assert settled(app)


# -- what else may have been done to signals


def test_a_warm_stop_reaches_a_child_whose_task_took_sigterm_over(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    worker = start_worker(concurrency=1, name="tests.integration.process_tasks")
    process_tasks.handle_sigterm_by_asyncio.delay().get(timeout=60)
    handle = process_tasks.stay.delay(str(tmp_path / "open"))
    wait_until(lambda: len(journal.lines()) == 1, 30, "the body to begin")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in worker.log(), 30, "the stop to begin")
    (tmp_path / "open").touch()
    assert worker.process.wait(60) == 0
    assert handle.get(timeout=10) is None
    assert ended(app) == {"succeeded": 2}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_warm_stop_of_an_app_that_took_sigterm_over(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, make_app: MakeApp, pool: str
) -> None:
    code = "import signal, sys\nfor number in (signal.SIGTERM, signal.SIGINT):\n"
    worker = start_worker(
        "-P", pool, concurrency=1, name=make_app(code + "    signal.signal(number, lambda *_: sys.exit(0))")
    )
    handle = process_tasks.stay.delay(str(tmp_path / "open"))
    wait_until(lambda: len(journal.lines()) == 1, 30, "the body to begin")
    os.kill(worker.pid, signal.SIGTERM)
    for pid in worker.children():
        os.kill(pid, signal.SIGINT)  # as Ctrl-C does it
    wait_until(lambda: "stopping" in worker.log(), 30, "the stop to begin")
    (tmp_path / "open").touch()
    assert worker.process.wait(60) == 0
    assert handle.get(timeout=10) is None
    assert ended(app) == {"succeeded": 1}


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_twins_are_one_signal(app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str) -> None:
    """`timeout`, shells and terminals signal a process and its group."""
    worker = start_worker("-P", pool, concurrency=1, name="tests.integration.process_tasks")
    process_tasks.stay.delay(str(tmp_path / "open"))
    wait_until(lambda: len(journal.lines()) == 1, 30, "the body to begin")
    os.kill(worker.pid, signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        worker.signal(number)
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: "stopping" in worker.log(), 30, "the stop to begin")
    (tmp_path / "open").touch()
    assert worker.process.wait(60) == 0
    assert "handing back" not in worker.log()
    assert ended(app) == {"succeeded": 1}


def test_signals_are_blocked_while_a_child_is_forked() -> None:
    """What the fork gets before it has set its signals back would be told to its parent by the parent's pipe."""
    signals = StopSignals(signal.SIGUSR2)
    signals.hold()
    read, write = os.pipe()

    def child() -> int:
        os.kill(os.getpid(), signal.SIGUSR2)  # SIG_DFL by now: it ends by it
        return 0

    pid = process.fork(child, keep=(write,))
    os.close(write)
    os.close(read)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGUSR2
    assert not signals.wait(0.0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)


@pytest.mark.parametrize("command", [["worker", "-c", "1"], ["worker", "-P", "solo"], ["beat"]])
def test_what_is_ignored_at_the_start_stays_so(url: str, app: App, tmp_path: Path, command: list[str]) -> None:
    """As `nohup` does it."""
    log = tmp_path / "log"
    rsq = f"{sys.executable} -m rsq -A tests.integration.tasks {' '.join(command)}"
    with subprocess.Popen(
        ["sh", "-c", f"trap '' HUP; exec {rsq} 2>{log}"], env={**os.environ, "RSQ_URL": url}
    ) as started:
        wait_until(lambda: log.exists() and "server " in log.read_text(), 60, "it to begin")
        started.send_signal(signal.SIGHUP)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
    assert "SIGTERM: stopping" in log.read_text()
    assert "SIGHUP" not in log.read_text()


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_wish_is_no_signal(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, url: str, pool: str
) -> None:
    """`rsq control shutdown`, then the orchestrator's SIGTERM: what runs has its time."""
    worker = start_worker("-P", pool, concurrency=1, name="tests.integration.process_tasks")
    process_tasks.stay.delay(str(tmp_path / "open"))
    wait_until(lambda: len(journal.lines()) == 1, 30, "the body to begin")
    told = ["-A", "tests.integration.tasks", "--url", url, "control", "shutdown", "--yes"]
    subprocess.run([sys.executable, "-m", "rsq", *told], check=True, timeout=60)
    wait_until(lambda: "rsq control shutdown: stopping" in worker.log(), 30, "the stop to begin")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: signal.SIGTERM not in pending(worker.pid), 30, "the signal to be heard")
    (tmp_path / "open").touch()
    assert worker.process.wait(60) == 0
    assert ended(app) == {"succeeded": 1}


def pending(pid: int) -> set[int]:
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    bits = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
    return {number for number in range(1, 65) if bits & 1 << number - 1}


@pytest.mark.parametrize("command", [["worker", "-P", "solo"], ["beat"], ["worker", "-c", "1", "-B"]])
def test_a_stop_while_the_app_is_imported(url: str, make_app: MakeApp, tmp_path: Path, command: list[str]) -> None:
    name = make_app(f"open({str(tmp_path / 'imports')!r}, 'a').close()\nimport time\ntime.sleep(600)")
    path = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen(
        [sys.executable, "-m", "rsq", "-A", name, *command], env={**os.environ, "RSQ_URL": url, "PYTHONPATH": path}
    ) as started:
        wait_until((tmp_path / "imports").exists, 60, "the import to begin")
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0


def test_a_beat_that_imports_its_app_is_not_waited_for(
    url: str, app: App, start_worker: StartWorker, make_app: MakeApp, tmp_path: Path
) -> None:
    """Of a worker with -B: the first import is the child's, the second one the beat's."""
    code = f"""
import os, time
with open({str(tmp_path / "imports")!r}, "a+") as file:
    file.seek(0)
    is_beat = bool(file.read())
    file.write("x")
if is_beat:
    time.sleep(600)
"""
    worker = start_worker("-B", "--shutdown-timeout", "500", concurrency=1, name=make_app(code))
    wait_until(lambda: (tmp_path / "imports").read_text() == "xx", 60, "the beat to import it")
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0


def test_a_beat_that_cannot_begin_is_tried_ever_more_seldom(
    start_worker: StartWorker, make_app: MakeApp, tmp_path: Path
) -> None:
    code = f"""
with open({str(tmp_path / "imports")!r}, "a+") as file:
    file.seek(0)
    is_beat = bool(file.read())
    file.write("x")
if is_beat:
    raise RuntimeError("no schedules")
"""
    worker = start_worker("-B", concurrency=1, name=make_app(code))
    wait_until(lambda: "another one in 2 s" in worker.log(), 60, "the second try")
    assert "died: exit 65; another one in 1 s" in worker.log()
    assert worker.stop() == 0


# -- when there is nobody to hand back to


@pytest.mark.parametrize("again", [False, True])
def test_what_cannot_be_handed_on_holds_up_no_stop(
    own_server: MakeServer, start_worker: StartWorker, journal: Journal, tmp_path: Path, again: bool
) -> None:
    server = own_server()
    grace_s = "500" if again else "0.5"
    worker = start_worker("--shutdown-timeout", grace_s, concurrency=2, worker_url=server.url, lease=60)
    with tasks.app.configured(url=server.url):
        tasks.gate.delay(str(tmp_path / "never there"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    server.kill()
    worker.signal(signal.SIGTERM)
    if again:
        wait_until(lambda: "stopping" in worker.log(), 30, "the stop to begin")
        wait_until(lambda: ended_by_another(worker, signal.SIGTERM), 60, "it to end")
    assert worker.process.wait(60) == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_who_holds_nothing_waits_for_no_server_at_its_end(
    own_server: MakeServer, start_worker: StartWorker, pool: str, how: str
) -> None:
    server = own_server()
    worker = start_worker("-P", pool, "--shutdown-timeout", "500", concurrency=2, worker_url=server.url)
    getattr(server, how)()
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(120) == 0


def test_a_queue_that_refuses_costs_itself_alone(
    app: App, start_worker: StartWorker, redis: Any, journal: Journal
) -> None:
    """Here what a dead child held cannot be handed on there."""
    worker = start_worker("-Q", "default,other", concurrency=1, lease=1)
    refuses = keys.QueueKeys("rsq", "other").orphans
    redis.set(refuses, "no set")
    kill(worker.children()[0])
    assert tasks.add.delay(1, 2).get(timeout=60) == 3
    ((_, before),) = redis.zrange(keys.workers("rsq"), 0, -1, withscores=True)
    wait_until(lambda: redis.zrange(keys.workers("rsq"), 0, -1, withscores=True)[0][1] > before + 3000, 60, "renewals")
    assert "goes to others when its lease has ended" in worker.log()
    assert worker.stop() == 0
    redis.delete(refuses)
