"""Looking at live workers: `app.inspect()` and `rsq inspect`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rsq import App, SettingsError, keys
from rsq.worker.leases import RENEWALS
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, Worker, kill, settled
from tests.integration.test_control import POOLS, run

PATIENCE_S = 30.0
"""For one answer, on a machine that is busy. With `SLOW` an answer within it is one that was rung for."""

SLOW = 10 * PATIENCE_S * RENEWALS
"""A lease with which a worker reports by itself long after the test has ended."""

NAME = tasks.__name__
KNOWN = sorted(name for name in tasks.app.tasks if name.startswith(f"{NAME}."))
"""What a worker knows. Here other modules may have added theirs to the same app."""


def the_worker(app: App) -> str:
    (name,) = wait_until(app.control.workers, 20, "the worker to report")
    return name


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["gate", "agate"])
def test_what_runs(app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, pool: str, name: str) -> None:
    worker = start_worker("-P", pool, "-Q", "default,bulk", lease=SLOW)
    before = time.time()
    handle = app.get_task(f"{NAME}.{name}").apply_async((str(tmp_path / "open"),), queue="bulk")
    wait_until(lambda: journal.count(f"began {name}"), 20, "it to begin")
    ((found, (row,)),) = app.inspect(timeout=PATIENCE_S).active().items()
    assert found == the_worker(app)
    began = row.pop("time_start")
    assert before - 0.5 < began < time.time() + 0.5
    assert row.pop("worker_pid") in [worker.pid, *worker.children()]
    assert row == {"id": handle.id, "name": f"{NAME}.{name}", "queue": "bulk"}
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == name
    wait_until(lambda: app.inspect(timeout=PATIENCE_S).active() == {found: []}, 20, "nothing to run")


def test_a_worker_answers_while_its_children_hold_the_gil(
    app: App, journal: Journal, start_worker: StartWorker
) -> None:
    start_worker(concurrency=1, lease=SLOW)
    handle = tasks.hold_gil.delay(3)
    wait_until(lambda: journal.count("began hold_gil"), 20, "it to begin")
    look = app.inspect(timeout=PATIENCE_S)
    assert [row["id"] for rows in look.active().values() for row in rows] == [handle.id]
    assert look.ping() == {the_worker(app): {"ok": "pong"}}
    assert handle.get(timeout=30) == "held"


def test_what_is_fetched_and_has_not_begun(app: App, journal: Journal, start_worker: StartWorker) -> None:
    # Nobody waits in a queue that was paused before: at the end of the pause all comes with one fetch.
    app.pause("default")
    worker = start_worker("-Q", "default,bulk", concurrency=1, lease=SLOW)
    for number in range(30):
        assert tasks.brief.apply_async((number, 0), queue="bulk").get(timeout=20) == number
    frozen = tasks.freeze.delay()
    notes = [tasks.note.delay(number) for number in range(20)]
    app.resume("default")
    wait_until(lambda: journal.count("began freeze"), 20, "the child to freeze")
    name = the_worker(app)
    rows = app.inspect(timeout=PATIENCE_S).reserved()[name]
    assert rows
    ids = [row["id"] for row in rows]
    assert ids == [handle.id for handle in notes][: len(ids)]
    assert rows[0] == {"id": notes[0].id, "name": f"{NAME}.note", "queue": "default", "priority": 0}
    assert app.inspect([name], PATIENCE_S, limit=3).reserved()[name] == rows[:3]
    for pid in worker.children():
        kill(pid, signal.SIGCONT)
    assert frozen.get(timeout=20) == "thawed"
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert app.inspect(timeout=PATIENCE_S).reserved() == {name: []}


def test_what_is_delayed(app: App, start_worker: StartWorker) -> None:
    start_worker("-Q", "default", concurrency=1)
    now = time.time()
    later = tasks.add.apply_async((1, 1), countdown=600)
    sooner = tasks.note.apply_async((1,), countdown=300, priority=4)
    elsewhere = tasks.add.apply_async((1, 1), countdown=600, queue="bulk")
    found = app.inspect().scheduled()
    assert set(found) == {"default", "bulk"}
    assert [row["id"] for row in found["bulk"]] == [elsewhere.id]
    rows = {row["id"]: row for row in found["default"]}
    assert rows[sooner.id].pop("eta") == pytest.approx(now + 300, abs=20)
    assert rows[sooner.id] == {"id": sooner.id, "name": f"{NAME}.note", "priority": 4, "attempt": 1}
    assert list(rows) == [sooner.id, later.id]
    assert set(app.inspect(the_worker(app)).scheduled()) == {"default"}
    assert len(app.inspect(limit=1).scheduled()["default"]) == 1


def test_a_retry_that_waits_tells_its_attempt(app: App, start_worker: StartWorker, journal: Journal) -> None:
    start_worker(concurrency=1)
    handle = app.send_task(f"{NAME}.flaky", (9,), max_retries=None)

    def attempts() -> list[int]:
        return [row["attempt"] for row in app.inspect().scheduled()["default"] if row["id"] == handle.id]

    wait_until(lambda: max(attempts(), default=0) >= 2, 20, "a retry to wait")
    handle.revoke()


@pytest.mark.parametrize("pool", POOLS)
def test_figures(app: App, start_worker: StartWorker, pool: str) -> None:
    worker = start_worker("-P", pool, lease=SLOW)
    assert [tasks.add.delay(number, 0).get(timeout=20) for number in range(20)] == list(range(20))
    name = the_worker(app)
    # A child tells what it has done with its fetcher's next step.
    wait_until(lambda: app.inspect(timeout=PATIENCE_S).stats()[name]["done"] == 20, 20, "all to be counted")
    found = app.inspect(timeout=PATIENCE_S).stats()[name]
    processes = found["pool"].pop("processes")
    assert {each["pid"] for each in processes} == ({worker.pid} if pool == "solo" else {*worker.children()})
    assert sum(each["done"] for each in processes) == 20
    assert all(each["working"] and each["rss"] > 1_000_000 for each in processes)
    children, at_once = {"prefork": (2, 2), "solo": (1, 1)}.get(pool, (1, 2))
    assert found.pop("pool") == {
        "implementation": pool,
        "children": children,
        "wanted": children,
        "most": 1 if pool == "solo" else 16,
        "max-concurrency": at_once,
    }
    assert found.pop("rss") > 1_000_000
    assert 0 <= found.pop("uptime") < 600
    assert found.pop("app") == tasks.app.name
    assert found == {
        "host": os.uname().nodename,
        "pid": worker.pid,
        "queues": found["queues"],
        "lease": SLOW,
        "stopping": False,
        "done": 20,
    }
    assert "default" in found["queues"]


def test_what_past_children_have_done_counts(app: App, start_worker: StartWorker) -> None:
    start_worker("--max-tasks-per-child", "3", concurrency=1)
    for number in range(10):
        tasks.add.delay(number, 0).get(timeout=30)
    name = the_worker(app)
    wait_until(lambda: app.inspect(timeout=PATIENCE_S).stats()[name]["done"] == 10, 20, "all to be counted")


def test_known_tasks_are_told_again_where_the_server_lost_them(app: App, start_worker: StartWorker, redis: Any) -> None:
    start_worker(lease=SLOW)
    name = the_worker(app)
    found = app.inspect(timeout=PATIENCE_S).registered()
    assert found == {name: KNOWN}
    queues = app.inspect(timeout=PATIENCE_S).stats()[name]["queues"]
    redis.delete(keys.worker(app.settings.namespace, name))
    assert app.control.workers() == []
    # It cannot be asked for as long as it is not listed; somebody else may ring.
    redis.publish(keys.wish(app.settings.namespace, name), "look")
    assert wait_until(lambda: app.control.workers(), 20, "it to be listed") == [name]
    assert app.inspect(timeout=PATIENCE_S).registered() == found
    assert app.inspect(timeout=PATIENCE_S).stats()[name]["queues"] == queues


@pytest.mark.parametrize("pool", POOLS)
def test_ping_reaches_a_worker_at_once_and_again_after_its_bell_was_cut_off(
    app: App, start_worker: StartWorker, redis: Any, pool: str
) -> None:
    worker = start_worker("-P", pool, lease=SLOW)
    name = the_worker(app)
    assert app.inspect(timeout=PATIENCE_S).ping() == {name: {"ok": "pong"}}
    cut_bells(redis, worker)
    assert app.inspect(timeout=PATIENCE_S).ping() == {name: {"ok": "pong"}}


def cut_bells(redis: Any, worker: Worker) -> None:
    """End the subscriptions, as a failover does."""

    def bells() -> list[str]:
        return [each["id"] for each in redis.client_list(_type="pubsub")]

    before = wait_until(bells, 20, "it to subscribe")
    redis.client_kill_filter(_type="pubsub")
    wait_until(lambda: {*bells()} - {*before}, 20, "it to subscribe again")


def test_who_does_not_answer(app: App, url: str, start_worker: StartWorker, journal: Journal, tmp_path: Path) -> None:
    worker = start_worker(concurrency=1, lease=SLOW)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate"), 20, "it to begin")
    name = the_worker(app)
    assert app.inspect(timeout=PATIENCE_S).active()[name]
    worker.signal(signal.SIGSTOP)
    look = app.inspect(timeout=0.2)
    assert look.ping() == {}
    assert [row["id"] for row in look.active()[name]] == [handle.id]
    assert set(look.silent) == {name}
    output = run(url, "inspect", "ping", "--timeout", "0.2", code=1)
    assert f"{name}: no answer; its last report was" in output
    assert handle.id in run(url, "inspect", "active", "--timeout", "0.2", code=1)
    worker.signal(signal.SIGCONT)
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == "gate"
    assert app.inspect(timeout=PATIENCE_S).ping() == {name: {"ok": "pong"}}


def test_a_worker_that_does_not_live(app: App, url: str, start_worker: StartWorker) -> None:
    with pytest.raises(SettingsError, match="no live worker is called 'nobody'; there is none: start one"):
        app.inspect(["nobody"]).active()
    assert "no workers: start one" in run(url, "inspect", "ping", code=1)
    assert json.loads(run(url, "inspect", "scheduled", "--json")) == {"default": []}
    start_worker()
    name = the_worker(app)
    assert f"no live worker is called 'nobody'; there are: {name}" in run(
        url, "inspect", "stats", "--worker", "nobody", code=2
    )


def test_the_commands(app: App, url: str, start_worker: StartWorker, journal: Journal, tmp_path: Path) -> None:
    worker = start_worker("-P", "threads", "-Q", "default", lease=SLOW)
    name, patience = the_worker(app), ("--timeout", str(PATIENCE_S))
    assert run(url, "inspect", "ping", *patience) == f"{name}: pong\n"
    assert run(url, "inspect", "active", *patience) == "nothing runs\n"
    assert run(url, "inspect", "reserved", *patience) == "nothing is fetched ahead\n"
    assert run(url, "inspect", "scheduled") == "nothing is delayed\n"
    registered = run(url, "inspect", "registered", *patience, "--worker", name).splitlines()
    assert registered == [name, *(f"  {task}" for task in KNOWN)]
    delayed = [tasks.add.apply_async((1, 1), countdown=600 + number) for number in range(2)]
    scheduled = run(url, "inspect", "scheduled", "--limit", "1").splitlines()
    assert scheduled[0].split() == ["QUEUE", "TASK", "ID", "DUE", "ATTEMPT"]
    assert scheduled[1].split()[:3] == ["default", f"{NAME}.add", delayed[0].id]
    assert scheduled[2] == "of queue default only 1 call: there may be more (--limit)"
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate"), 20, "it to begin")
    titles, row = run(url, "inspect", "active", *patience).splitlines()
    assert titles.split() == ["WORKER", "PID", "TASK", "ID", "QUEUE", "STARTED"]
    (child,) = worker.children()
    assert row.split()[:5] == [name, str(child), f"{NAME}.gate", handle.id, "default"]
    (active,) = json.loads(run(url, "inspect", "active", *patience, "--json"))[name]
    assert active["id"] == handle.id
    stats = run(url, "inspect", "stats", *patience)
    assert f"{name}\n" in stats
    assert "  children  1 (threads, 2 tasks at once)\n" in stats
    assert f"    pid {child}: 0 tasks, " in stats
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == "gate"
