"""Producers in odd places: forked, threaded, in signal handlers, at exit, and after the server was away."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App, BrokerUnavailable
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, settled, totals

THREADS = 16


def held(app: App) -> int:
    now = totals(app)
    return now.ready + now.running + now.delayed


def exit_code_of_fork(body: Callable[[], bool]) -> int:
    """0 when `body` gave True in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if body() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_process_sends_and_waits_on_connections_of_its_own(
    app: App, start_worker: StartWorker, redis: Any
) -> None:
    start_worker(concurrency=2)
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    mine = {client["id"] for client in redis.client_list()}

    def body() -> bool:
        handles = tasks.add.map_async([(number, 1) for number in range(100)])
        right = [handle.get(timeout=20) for handle in handles] == list(range(1, 101))
        return right and tasks.add.apply_async((2, 2), dedupe_key="forked").get(timeout=20) == 4

    pids = []
    for _ in range(3):
        assert exit_code_of_fork(body) == 0
        # The parent's connections, one of them subscribed, have been left alone.
        assert mine <= {client["id"] for client in redis.client_list()}
        pids.append(tasks.add.delay(3, 3).get(timeout=20))
    assert pids == [6, 6, 6]
    wait_until(lambda: settled(app), what="all to be settled")
    assert ended(app) == {"succeeded": 1 + 3 * 100 + 1 + 3}


def test_parent_and_children_send_at_the_same_time(app: App, tmp_path: Path) -> None:
    tasks.add.delay(0, 0)
    go = tmp_path / "go"
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                wait_until(go.exists, 20)
                ids = [tasks.add.delay(number, 0).id for number in range(200)]
                code = 0 if len({*ids}) == 200 else 2
            finally:
                os._exit(code)
        pids.append(pid)
    go.touch()
    for number in range(200):
        tasks.add.delay(number, 0)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert held(app) == 1 + 5 * 200


def test_many_threads_send_and_wait_at_once(app: App, start_worker: StartWorker) -> None:
    start_worker(concurrency=2)
    together = threading.Barrier(THREADS)
    wrong: list[object] = []

    def produce(place: int) -> None:
        try:
            together.wait(20)
            for number in range(0, 100, 5):
                sent = place * 100 + number
                handles = [tasks.add.delay(sent, 0), tasks.add.apply_async((sent, 1), dedupe_key=f"k-{sent}")]
                handles += tasks.add.map_async([(sent, 2), (sent, 3), (sent, 4)])
                if (got := [handle.get(timeout=60) for handle in handles]) != list(range(sent, sent + 5)):
                    wrong.append((sent, got))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=produce, args=(place,), daemon=True) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    wait_until(lambda: settled(app), what="all to be settled")
    assert ended(app) == {"succeeded": THREADS * 100}


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Sets what is done when an alarm strikes; `strike_soon` sets one."""
    before = signal.getsignal(signal.SIGALRM)

    def on_alarm(handler: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: handler())

    yield on_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def strike_soon(turn: int) -> None:
    """One alarm, a little later with each turn, so that in the end each step of a send has been struck."""
    signal.setitimer(signal.ITIMER_REAL, 0.00002 + turn % 100 * 0.000005)


def test_a_signal_handler_sends_amid_another_send(app: App, alarm: Callable[[Callable[[], object]], None]) -> None:
    struck: list[Any] = []
    alarm(lambda: struck.append(tasks.add.apply_async((1, 1), dedupe_key="{a}-{b}")))
    plain: list[Any] = []
    named: list[Any] = []
    while len(struck) < 500:
        strike_soon(len(plain))
        plain.append(tasks.add.delay(len(plain), 0))
        strike_soon(len(named))
        named.append(tasks.add.apply_async((len(named), 0), task_id=f"own-{len(named)}"))
    signal.setitimer(signal.ITIMER_REAL, 0)
    # Every send got its own answer: those of the handler the id of their first, the others their own.
    first, *others = struck
    assert not first.duplicate
    assert {(handle.id, handle.duplicate) for handle in others} == {(first.id, True)}
    assert [handle.id for handle in named] == [f"own-{number}" for number in range(len(named))]
    assert not any(handle.duplicate for handle in [*plain, *named])
    assert held(app) == len(plain) + len(named) + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket that nobody could close
def test_a_signal_handler_that_raises_leaves_no_reply_behind(
    app: App, alarm: Callable[[Callable[[], object]], None]
) -> None:
    class Struck(BaseException):
        pass

    def strike() -> None:
        raise Struck

    alarm(strike)
    answers: dict[str, str] = {}
    struck = turn = 0
    while struck < 200:
        try:
            while True:
                turn += 1
                strike_soon(turn)
                answers[f"own-{turn}"] = tasks.add.apply_async((turn, 0), task_id=f"own-{turn}").id
        except Struck:
            struck += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    assert all(asked == answered for asked, answered in answers.items())
    assert len(answers) <= held(app) <= turn


AT_EXIT = """
import atexit, threading
from tests.integration import tasks
atexit.register(lambda: tasks.note.delay("at exit"))
atexit.register(lambda: tasks.note.apply_async(("at exit, once",), dedupe_key="k"))
atexit.register(lambda: print(tasks.add.delay(2, 3).get(timeout=20)))
if {used}:
    tasks.note.delay("before")
threading.Thread(target=lambda: tasks.note.delay("in a thread")).start()
"""


@pytest.mark.parametrize("used", [True, False], ids=["used before", "first used then"])
def test_an_exit_handler_sends(app: App, url: str, start_worker: StartWorker, journal: Journal, used: bool) -> None:
    start_worker(concurrency=1)
    environment = {**os.environ, "RSQ_URL": url, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    script = [sys.executable, "-c", AT_EXIT.format(used=used)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
    wait_until(lambda: settled(app), 20, "all to be settled")
    words = ["at exit", "at exit, once", "in a thread", *(["before"] if used else [])]
    assert sorted(journal.lines()) == sorted(f"ran {word}" for word in words)


SENDS: dict[str, Callable[[], Any]] = {
    "plain": lambda: tasks.add.delay(1, 1),
    "by script": lambda: tasks.add.apply_async((1, 1), dedupe_key="k"),
    "expiring": lambda: tasks.add.apply_async((1, 1), expires=60),
    "bulk": lambda: tasks.add.map_async([(1, 1)])[0],
}


@pytest.fixture
def standing(own_server: MakeServer, app: App) -> Any:
    """A server of its own, and the app with connections to it that have been used."""
    server = own_server(appendonly=True)
    app.configure(url=server.url)
    tasks.add.map_async([(0, 0)] * 3, queue="warm-up")
    yield server
    app.configure(broker_timeout_s=5.0)


@pytest.mark.parametrize("how", ["gone", "silent"])
@pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)
def test_without_a_server_a_send_ends_at_its_deadline(
    standing: Any, app: App, how: str, send: Callable[[], Any]
) -> None:
    app.configure(broker_timeout_s=2.0)
    tasks.add.delay(0, 0)
    standing.freeze() if how == "silent" else standing.kill()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        send()
    took_s = time.monotonic() - began
    assert 1.5 < took_s < 10
    standing.thaw() if how == "silent" else standing.start()
    # The server's clock could not even be asked: the call has not been sent, and has no id.
    task_id = caught.value.task_id or "own"
    assert (caught.value.task_id is None) == (send is SENDS["expiring"])
    # Repeated under its id it is one call, whether the first one arrived or not.
    again = [tasks.add.apply_async((1, 1), task_id=task_id) for _ in range(3)]
    assert {handle.id for handle in again} == {task_id}
    assert held(app) == 2


@pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)
def test_after_a_restart_the_first_send_arrives(standing: Any, app: App, send: Callable[[], Any]) -> None:
    standing.kill()
    standing.start()
    send()
    assert held(app) == 1


def test_after_a_restart_the_first_question_is_answered(standing: Any, app: App, start_worker: StartWorker) -> None:
    start_worker(concurrency=1, worker_url=standing.url)
    handle = tasks.add.delay(1, 1)
    assert handle.get(timeout=20) == 2
    for ask in (
        lambda: app.AsyncResult(handle.id).ready(),
        lambda: app.AsyncResult(handle.id).state,
        lambda: app.AsyncResult(handle.id).result == 2,
        lambda: app.AsyncResult(handle.id).get(timeout=20) == 2,
    ):
        standing.kill()
        standing.start()
        assert ask()


def test_a_repeat_with_the_same_id_is_one_call(app: App, start_worker: StartWorker, journal: Journal) -> None:
    worker = start_worker(concurrency=1)
    handles = [tasks.note.apply_async(("once",), task_id="mine") for _ in range(3)]
    assert [handle.get(timeout=20) for handle in handles] == ["once"] * 3
    # Also after it has ended, from any process.
    assert exit_code_of_fork(lambda: tasks.note.apply_async(("once",), task_id="mine").duplicate) == 0
    assert [handle.duplicate for handle in handles] == [False, True, True]
    wait_until(lambda: settled(app), what="all to be settled")
    assert worker.stop() == 0
    assert journal.lines() == ["ran once"]
