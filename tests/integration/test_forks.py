"""What a fork means: of the supervisor's, and of what tasks fork and start."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App
from tests.helpers import wait_until
from tests.integration import process_tasks as does
from tests.integration.conftest import (
    Journal,
    MakeApp,
    StartWorker,
    Worker,
    ended,
    is_alive,
    kill,
    settled,
    totals,
)

NAME = "tests.integration.process_tasks"


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_a_task_forks_can_be_terminated(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start_worker("-P", pool, concurrency=1, name=NAME)
    children = worker.children()
    for _ in range(2):
        assert does.terminate_process.delay().get(timeout=60) == -signal.SIGTERM
    assert does.use_pool.delay().get(timeout=60) == "done"
    assert set(children) <= set(worker.children()), "the process that ran them goes on"
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize(("how", "code"), [("return", 70), ("raise", 70), ("exit", 7)])
def test_a_copy_of_a_body_that_leaves_it_commits_nothing(
    app: App, start_worker: StartWorker, pool: str, how: str, code: int
) -> None:
    worker = start_worker("-P", pool, concurrency=1, name=NAME)
    assert does.fork_and_leave.delay(how).get(timeout=60)[0] == code
    assert does.add.delay(1, 2).get(timeout=60) == 3
    wait_until(lambda: settled(app), what="both to be settled")
    assert ended(app) == {"succeeded": 2}
    assert ("forked by a task" in worker.log()) == (how != "exit")
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_nor_does_a_copy_of_a_coroutine(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start_worker("-P", pool, concurrency=2, name=NAME)
    assert does.fork_and_leave_async.delay().get(timeout=60)[0] == 70
    wait_until(lambda: settled(app), what="it to be settled")
    assert ended(app) == {"succeeded": 1}
    assert worker.stop() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_a_task_forks_has_no_pipe_and_no_connection_of_rsq(app: App, start_worker: StartWorker, pool: str) -> None:
    start_worker("-P", pool, *(["-B"] if pool == "prefork" else []), concurrency=3, name=NAME)
    assert does.add.delay(1, 2).get(timeout=60) == 3  # all connections are made by now
    found = does.own_descriptors.delay().get(timeout=60)
    kinds = ("pipe:", "socket:", "anon_inode:") if pool == "prefork" else ("pipe:", "socket:")
    assert [each for each in found if each.startswith(kinds)] == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_fork_that_lives_on_keeps_no_connection_of_its_worker(
    app: App, start_worker: StartWorker, redis: Any, pool: str
) -> None:
    """Else what its blocked read is given would go to nobody."""
    before = {client["id"] for client in redis.client_list()}
    worker = start_worker("-P", pool, concurrency=1, name=NAME)
    helper = does.leave_helper.delay().get(timeout=60)
    try:
        app.close()
        for pid in {worker.pid, *worker.children()} - {helper}:
            kill(pid)
        wait_until(lambda: {client["id"] for client in redis.client_list()} <= before, 30, "the connections to end")
        assert is_alive(helper)
    finally:
        kill(helper)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_stop_waits_for_no_fork_that_lives_on(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start_worker("-P", pool, "--shutdown-timeout", "500", concurrency=1, name=NAME)
    helper = does.leave_helper.delay().get(timeout=60)
    try:
        assert worker.stop() == 0
        assert is_alive(helper)
    finally:
        kill(helper)


def test_a_child_has_nothing_of_its_supervisors(start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=3)
    mine = descriptors(worker.pid)
    theirs = [descriptors(pid) for pid in worker.children()]
    for shared in [one & mine for one in theirs]:
        assert {each.partition(":")[0] for each in shared} == {"pipe"}
        assert len(shared) == 1, "the one by which it is told"
    assert set.intersection(*theirs) == set()


def descriptors(pid: int) -> set[str]:
    """Pipes, sockets and files that it has open; those that have a number of their own."""
    links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2}
    return {link for link in links if not link.startswith(("anon_inode:", "/dev/"))}


def test_a_daemon_of_multiprocessing_ends_with_its_parent(app: App, start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=1, name=NAME)
    pid = does.leave_daemon.delay().get(timeout=60)
    assert is_alive(pid)
    assert worker.stop() == 0
    wait_until(lambda: not is_alive(pid), 30, "the daemon to end")


def test_programs_that_a_task_starts_hear_ctrl_c(app: App, start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=1, name=NAME)
    assert does.interrupt_program.delay().get(timeout=60) == -signal.SIGINT
    assert worker.stop() == 0


def test_a_body_that_takes_stdout_away_stops_no_child_from_ending(app: App, start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=1, name=NAME)
    does.lose_stdout.delay().get(timeout=60)
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


def test_a_worker_without_stdout(url: str, app: App, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f"exec {sys.executable} -m rsq -A {NAME} worker -c 1 >&- 2>{log}"
    with subprocess.Popen(["sh", "-c", command], env={**os.environ, "RSQ_URL": url}) as worker:
        assert does.add.delay(1, 2).get(timeout=60) == 3
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    assert "Traceback" not in log.read_text()


# -- what an app forks while it is imported


HELPER = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n    os._exit(0)\n"


@pytest.fixture
def no_helper_stays(tmp_path: Path) -> Iterator[None]:
    yield
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            mine = str(tmp_path) in Path(f"/proc/{pid}/environ").read_text(errors="replace")
        except OSError:
            continue
        if mine and pid != os.getpid():
            kill(pid)


@pytest.mark.usefixtures("no_helper_stays")
def test_an_app_may_fork_a_helper_that_stays(app: App, start_worker: StartWorker, make_app: MakeApp) -> None:
    worker = start_worker(concurrency=2, name=make_app(HELPER))
    assert does.add.delay(1, 2).get(timeout=60) == 3
    kill(worker.children()[0])
    wait_until(lambda: "died: signal SIGKILL" in worker.log(), 30, "the death to be noticed")
    assert does.add.delay(1, 2).get(timeout=60) == 3
    assert worker.stop() == 0


@pytest.mark.usefixtures("no_helper_stays")
def test_nobody_waits_for_the_hello_of_one_that_forked_and_died(
    app: App, start_worker: StartWorker, make_app: MakeApp, journal: Journal, tmp_path: Path
) -> None:
    worker = start_worker(concurrency=2, lease=2, name=make_app(""))
    idle = keep_one_busy(worker, journal, tmp_path / "open")
    make_app(HELPER + "os.kill(os.getpid(), 9)")
    kill(idle)
    wait_until(lambda: worker.log().count("died: signal SIGKILL") >= 3, 60, "two successors to be gone as well")
    assert "lost the lease" not in worker.log()
    (tmp_path / "open").touch()
    wait_until(lambda: journal.count("has stayed") == 1, what="the body to end")
    assert worker.stop() == 0
    assert len(journal.lines()) == 2


def keep_one_busy(worker: Worker, journal: Journal, path: Path) -> int:
    """Until this file is there; gives the pid of the other child."""
    does.stay.delay(str(path))
    wait_until(lambda: len(journal.lines()) == 1, 30, "the body to begin")
    (idle,) = set(worker.children()) - {int(journal.lines()[0].split()[1])}
    return idle


# -- when the system has no room


def test_children_need_files(url: str, tmp_path: Path) -> None:
    command = f"ulimit -n 40; exec {sys.executable} -m rsq -A {NAME} worker -c 20"
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "RSQ_URL": url}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rsq: 20 children need ")
    assert "ulimit -n" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_child_that_cannot_be_started_is_tried_again(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    worker = start_worker(concurrency=2, lease=60, name=NAME)
    idle = keep_one_busy(worker, journal, tmp_path / "open")
    before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    kill(idle)
    wait_until(lambda: "cannot be started, again in" in worker.log(), 30, "the failure to be told")
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
    wait_until(lambda: len(worker.children()) == 2, 60, "the successor")
    assert does.add.delay(1, 2).get(timeout=60) == 3
    (tmp_path / "open").touch()
    wait_until(lambda: settled(app), 30, "all to be settled")
    assert worker.stop() == 0
    assert len(journal.lines()) == 2
    assert "Traceback" not in worker.log()


# -- how children end


def test_who_ends_its_process_by_exit_0_is_a_suspect(app: App, start_worker: StartWorker, journal: Journal) -> None:
    worker = start_worker(concurrency=1, name=NAME)
    does.leave_at_once.delay(0)
    wait_until(lambda: totals(app).dead == 1, 60, "the dead letter")
    assert journal.count("leaves 0") == 3
    assert worker.log().count("died: exit 0, while it ran") == 3
    assert worker.stop() == 0


@pytest.mark.parametrize("command", [["worker", "-c", "1"], ["worker", "-P", "solo"], ["beat"], ["call", "x"]])
def test_an_app_that_calls_sys_exit(url: str, make_app: MakeApp, command: list[str], tmp_path: Path) -> None:
    name = make_app("import sys\nsys.exit(0)")
    env = {**os.environ, "RSQ_URL": url, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-m", "rsq", "-A", name, *command], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "it calls sys.exit(0)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_child_that_hears_nothing_more_ends(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    """A body has closed whatever was open: the child could not be stopped, nor see its supervisor die."""
    worker = start_worker(concurrency=1, name=NAME)
    does.close_all.delay(str(tmp_path / "open"))
    wait_until(lambda: "hears its supervisor no more" in worker.log(), 60, "it to be found out")
    wait_until(lambda: totals(app).dead == 1, 60, "the call to be given up")
    assert does.add.delay(1, 2).get(timeout=60) == 3
    assert worker.stop() == 0


def test_more_descriptors_than_select_can_take(app: App, start_worker: StartWorker, journal: Journal) -> None:
    """Inherited ones, as from a server that starts its worker itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("no more than 4096 files may be open here")
    held = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        held += [os.dup(held[0]) for _ in range(1100)]
        for fd in held:
            os.set_inheritable(fd, True)
        with subprocess.Popen(
            [sys.executable, "-m", "rsq", "-A", NAME, "worker", "-c", "1", "-B"],
            env={**os.environ, "RSQ_URL": app.settings.url},
            close_fds=False,
            stderr=subprocess.PIPE,
            text=True,
        ) as worker:
            for fd in held:
                os.close(fd)
            held.clear()
            assert does.add.delay(1, 2).get(timeout=60) == 3
            worker.send_signal(signal.SIGTERM)
            _, log = worker.communicate(timeout=60)
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert worker.returncode == 0
    assert "Traceback" not in log
    assert "shutdown timeout" not in log


def test_the_directory_of_a_worker_may_go(
    app: App, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[2]), *(part for part in sys.path if part)])
    monkeypatch.chdir(place)
    worker = start_worker(concurrency=1, name=NAME, PYTHONPATH=path)
    monkeypatch.undo()
    place.rmdir()
    kill(worker.children()[0])
    assert does.add.delay(1, 2).get(timeout=60) == 3
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0


def test_real_threads_are_needed(url: str, make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "gevent").mkdir()
    (tmp_path / "gevent" / "__init__.py").touch()
    (tmp_path / "gevent" / "monkey.py").write_text("def is_module_patched(name):\n    return name == 'threading'\n")
    name = make_app("import gevent.monkey")
    env = {**os.environ, "RSQ_URL": url, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-m", "rsq", "-A", name, "worker"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "needs real threads" in done.stderr
