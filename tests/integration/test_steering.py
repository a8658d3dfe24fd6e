"""Telling live workers what to do: `app.control` and `rsq control`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rsq import App, SettingsError, keys
from rsq.cli.main import main
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, is_alive, kill, settled
from tests.integration.test_control import POOLS, run
from tests.integration.test_inspect import PATIENCE_S, SLOW, cut_bells, the_worker

SUPERVISED = [pool for pool in POOLS if pool != "solo"]


def pool_of(app: App) -> dict[str, Any]:
    pool: dict[str, Any] = app.inspect(timeout=PATIENCE_S).stats()[the_worker(app)]["pool"]
    return pool


# -- more and fewer children


@pytest.mark.parametrize("pool", SUPERVISED)
def test_a_worker_grows_and_shrinks(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, pool: str
) -> None:
    worker = start_worker("-P", pool, concurrency=1, lease=SLOW)
    first = tasks.gate.delay(str(tmp_path / "open"), "first")
    wait_until(lambda: journal.count("began first"), 20, "it to begin")
    waiting = [tasks.gate.delay(str(tmp_path / "open"), word) for word in ("second", "third")]
    name = the_worker(app)
    told = app.control.pool_grow(2, timeout=PATIENCE_S)
    assert {name: (each.heard, each.done, each.says) for name, each in told.items()} == {
        name: (True, True, "3 children")
    }
    assert len(worker.children()) == 3
    wait_until(lambda: len(journal.lines()) == 3, 20, "all three to run at once")
    # All are busy: two are to end, and do when their tasks have.
    told = app.control.pool_shrink(2, [name], timeout=0.5)
    assert not told[name].done
    wait_until(lambda: pool_of(app)["wanted"] == 1, 20, "it to hear")
    assert len(worker.children()) == 3
    (tmp_path / "open").touch()
    assert [handle.get(timeout=20) for handle in (first, *waiting)] == ["first", "second", "third"]
    wait_until(lambda: len(worker.children()) == 1, 20, "two to end")
    wait_until(lambda: pool_of(app)["children"] == 1, 20, "it to be told")
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert ended(app) == {"succeeded": 4}
    assert "died" not in worker.log()


def test_idle_children_go_first_and_hand_back_what_they_have(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(concurrency=3, lease=SLOW)
    gates = {handle.id: handle for handle in (tasks.gate.delay(str(tmp_path / word), word) for word in "abc")}
    wait_until(lambda: len(journal.lines()) == 3, 20, "all to begin")
    name = the_worker(app)
    # The youngest child would be the first to go, if it were idle.
    *idle, busy = sorted(app.inspect(timeout=PATIENCE_S).active()[name], key=lambda row: int(row["worker_pid"]))
    for row in idle:
        word = next(word for word, handle in zip("abc", gates.values(), strict=True) if handle.id == row["id"])
        (tmp_path / word).touch()
        assert gates[row["id"]].get(timeout=20) == word
    wait_until(lambda: len(app.inspect(timeout=PATIENCE_S).active()[name]) == 1, 20, "two to be idle")
    assert app.control.pool_shrink(timeout=PATIENCE_S)[name].says == "2 children"
    assert busy["worker_pid"] in worker.children()
    # What the next one has fetched when it is dismissed goes to the one that is left.
    notes = [tasks.note.delay(number) for number in range(500)]
    app.control.pool_shrink(timeout=0)
    for word in "abc":
        (tmp_path / word).touch()
    assert [handle.get(timeout=30) for handle in notes] == list(range(500))
    wait_until(lambda: len(worker.children()) == 1, 20, "one to be left")
    assert ended(app) == {"succeeded": 503}


def test_who_was_dismissed_and_dies_is_not_replaced(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(concurrency=2, lease=SLOW)
    handles = [tasks.gate.delay(str(tmp_path / "open"), word) for word in ("a", "b")]
    wait_until(lambda: len(journal.lines()) == 2, 20, "both to begin")
    first, second = worker.children()
    app.control.pool_shrink(timeout=0)
    wait_until(lambda: pool_of(app)["wanted"] == 1, 20, "it to hear")
    kill(second)  # the first place is always kept
    wait_until(lambda: not is_alive(second), 20, "it to die")
    (tmp_path / "open").touch()
    assert sorted(handle.get(timeout=30) for handle in handles) == ["a", "b"]
    assert worker.children() == [first]
    assert pool_of(app)["children"] == 1


def test_what_cannot_be(app: App, url: str, start_worker: StartWorker) -> None:
    start_worker(concurrency=5)
    name = the_worker(app)
    assert pool_of(app)["most"] == 20
    assert f"{name} has room for 20 children, and 5 already" in run(url, "control", "pool-grow", "16", code=2)
    assert f"{name} has 5 children, and keeps one at least" in run(url, "control", "pool-shrink", "5", code=2)
    with pytest.raises(SettingsError, match="must be a whole number from 1, not 0"):
        app.control.pool_shrink(0)
    with pytest.raises(SettingsError, match="no live worker is called 'nobody'"):
        app.control.pool_grow(1, "nobody")
    assert pool_of(app)["wanted"] == 5


def test_a_solo_worker_has_no_children(app: App, url: str, start_worker: StartWorker) -> None:
    start_worker("-P", "solo")
    assert "runs with -P solo, which has no children: start another worker" in run(url, "control", "pool-grow", code=2)


def test_what_is_told_stands_on_the_server(
    app: App, start_worker: StartWorker, redis: Any, journal: Journal, tmp_path: Path
) -> None:
    """Nobody rings: the worker sees it with its next renewal. What does not make sense is no harm."""
    worker = start_worker(concurrency=1, lease=1)
    key = keys.wish(app.settings.namespace, the_worker(app))
    redis.hset(key, mapping={"children": 3, "serial": "many", "stop": "9" * 5000, b"\xff": b"\xff"})
    redis.pexpire(key, 60_000)
    wait_until(lambda: len(worker.children()) == 3, 20, "it to see")
    redis.hset(key, "children", 10**6)
    wait_until(lambda: len(worker.children()) == 16, 60, "it to grow as far as it can")
    redis.hset(key, "children", 0)
    wait_until(lambda: len(worker.children()) == 1, 60, "it to shrink as far as it can")
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    assert 0 < redis.pttl(key) <= 1500


# -- shutdown


@pytest.mark.parametrize("pool", POOLS)
def test_shutdown_lets_what_runs_end(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, pool: str, redis: Any
) -> None:
    worker = start_worker("-P", pool, concurrency=1, lease=SLOW)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate"), 20, "it to begin")
    name = the_worker(app)
    told = app.control.shutdown(timeout=PATIENCE_S)[name]
    assert (told.heard, told.done, told.says) == (True, True, "stops; 1 task that runs has time to end")
    again = app.control.shutdown(timeout=PATIENCE_S)[name]
    assert again.done
    assert worker.process.poll() is None
    assert app.inspect(timeout=PATIENCE_S).stats()[name]["stopping"]
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == "gate"
    assert worker.process.wait(30) == 0
    assert ended(app) == {"succeeded": 1}
    assert not redis.exists(keys.wish(app.settings.namespace, name))
    assert "cold" not in worker.log()


def test_only_the_one_that_is_named_stops(app: App, url: str, start_worker: StartWorker) -> None:
    first, second = start_worker(concurrency=1), start_worker(concurrency=1)
    wait_until(lambda: len(app.control.workers()) == 2, 20, "both to report")
    (name,) = [name for name in app.control.workers() if f"-{first.pid}-" in name]
    assert f"{name}: " in run(url, "control", "shutdown", "--worker", name, "--timeout", str(PATIENCE_S))
    assert first.process.wait(30) == 0
    assert second.process.poll() is None
    assert f"-{second.pid}-" in the_worker(app)


def test_a_frozen_worker_hears_of_it_when_it_is_back(app: App, url: str, start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=1, lease=SLOW)
    name = the_worker(app)
    worker.signal(signal.SIGSTOP)
    output = run(url, "control", "shutdown", "--worker", name, "--timeout", "0.2", code=1)
    assert f"{name}: no answer within 0.2 s" in output
    assert f"kill process {worker.pid} on " in output
    worker.signal(signal.SIGCONT)
    assert worker.process.wait(30) == 0


def test_without_a_name_shutdown_asks(app: App, url: str, start_worker: StartWorker, redis: Any) -> None:
    assert "no workers: start one" in run(url, "control", "shutdown", code=1)
    worker = start_worker(concurrency=1, lease=SLOW)
    name = the_worker(app)
    asked = CliRunner().invoke(main, ["--url", url, "control", "shutdown"], input="n\n")
    assert asked.exit_code == 1
    assert f"Stop 1 worker ({name})? [y/N]" in asked.output
    assert worker.process.poll() is None
    cut_bells(redis, worker)
    told = json.loads(run(url, "control", "shutdown", "--yes", "--json", "--timeout", str(PATIENCE_S)))
    assert told[name]["done"]
    assert worker.process.wait(30) == 0
