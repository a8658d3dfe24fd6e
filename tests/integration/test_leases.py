"""Leases of real workers: when the server was away, when a worker is dead, when one reads that has none."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rsq import App
from rsq.broker.dead_letters import dead_letters
from rsq.keys import GROUP
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals

LEASE_S = 4


def leases(redis: Any, app: App) -> dict[str, tuple[float, float]]:
    """Consumer -> (seconds that its lease still has, its graces)."""
    seconds, microseconds = redis.time()
    now_ms = seconds * 1000 + microseconds / 1000
    scores = redis.zrange(app.client.queue(None).keys.consumers, 0, -1, withscores=True)
    return {name.decode(): ((score - now_ms) / 1000, score % 1) for name, score in scores}


@pytest.mark.parametrize("away", ["frozen", "killed"])
def test_nothing_runs_twice_because_the_server_was_away(
    own_server: MakeServer, start_worker: StartWorker, app: App, journal: Journal, tmp_path: Path, away: str
) -> None:
    server = own_server(appendonly=True, config={"appendfsync": "always"})
    app.configure(url=server.url)
    workers = [start_worker(concurrency=2, lease=LEASE_S, worker_url=server.url) for _ in range(3)]
    handles = [tasks.gate.delay(str(tmp_path / "open")) for _ in range(6)]
    wait_until(lambda: journal.count("began gate") == 6, 30, "all of them to begin")
    # Longer than any lease holds.
    if away == "frozen":
        server.freeze()
        time.sleep(LEASE_S + 1)
        server.thaw()
    else:
        server.kill()
        time.sleep(LEASE_S + 1)
        server.restart()
    with server.client() as redis:

        def all_renewed() -> bool:
            found = leases(redis, app)
            return len(found) == 6 and all(left > LEASE_S / 2 and not graces for left, graces in found.values())

        wait_until(all_renewed, 30, "all six to have renewed their leases")
    (tmp_path / "open").touch()
    assert [handle.get(timeout=60) for handle in handles] == ["gate"] * 6
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert totals(app).counters["succeeded"] == 6
    assert journal.count("began gate") == 6
    assert not any("lost the lease" in worker.log() for worker in workers)
    app.close()


def test_a_dead_worker_beside_a_living_one_has_no_grace(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, redis: Any
) -> None:
    dead = start_worker(concurrency=1, lease=LEASE_S)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="it to begin")
    alive = start_worker(concurrency=1, lease=LEASE_S)
    (name,) = (name for name in leases(redis, app) if f"-{dead.pid}-" in name)
    dead.kill()
    ends = redis.zscore(app.client.queue(None).keys.consumers, name)
    seen = {ends}

    def is_taken_over() -> bool:
        score = redis.zscore(app.client.queue(None).keys.consumers, name)
        if score is not None:
            seen.add(score)
        return journal.count("began gate") == 2

    wait_until(is_taken_over, 30, "the other one to take over")
    assert seen == {ends}, "its lease ended when it was to end"
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == "gate"
    assert alive.stop() == 0


def test_calls_do_not_wait_behind_a_child_that_reads_without_a_lease(
    app: App, start_worker: StartWorker, redis: Any
) -> None:
    """Nobody would look for what it holds before half a minute has passed."""
    frozen, other = (start_worker(concurrency=1, lease=30) for _ in range(2))
    (name,) = (name for name in leases(redis, app) if f"-{frozen.pid}-" in name)
    queue = app.client.queue(None)
    os.kill(frozen.pid, signal.SIGSTOP)  # else it would tell its child
    redis.zrem(queue.keys.consumers, name)
    redis.xgroup_delconsumer(queue.keys.stream(), GROUP, name)
    handles = [tasks.note.delay(number) for number in range(20)]
    assert [handle.get(timeout=20) for handle in handles] == list(range(20))
    os.kill(frozen.pid, signal.SIGCONT)
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert totals(app).counters["succeeded"] == 20
    assert (frozen.stop(), other.stop()) == (0, 0)


def test_neighbours_of_crashes_are_no_suspects(app: App, start_worker: StartWorker) -> None:
    """What a dead child had merely fetched is delivered as if it had never been there, however many die."""
    start_worker(concurrency=1, RSQ_MAX_DELIVERIES="2")
    calls = [(tasks.add, (number, 0)) for number in range(100)] + [(tasks.die_until, (99,))] * 4
    random.Random(1).shuffle(calls)
    handles = [(task, task.delay(*arguments)) for task, arguments in calls]
    good = [handle for task, handle in handles if task is tasks.add]
    bad = {handle.id for task, handle in handles if task is not tasks.add}
    assert sorted(handle.get(timeout=60) for handle in good) == list(range(100))
    wait_until(lambda: totals(app).dead == len(bad), 60, "those that crash to be given up")
    with app.client.link() as link:
        assert {letter.id for letter in dead_letters(link, app.client.queue(None))} == bad
