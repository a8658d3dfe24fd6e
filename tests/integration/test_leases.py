"""Leases of real workers: when the server was away, when a worker is dead, when one reads that has none."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rsq import App
from rsq.broker.dead_letters import dead_letters
from rsq.keys import GROUP
from tests.clusters import HOME, AnyServer, Cluster
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals
from tests.sentinels import Service
from tests.servers import Server, find_binary

LEASE_S = 4

not_on_62 = pytest.mark.skipif(
    os.environ.get("RSQ_TEST_SERVER") == "redis62", reason="clusters are started with a setting that Redis 6.2 lacks"
)


@dataclass(frozen=True)
class Place:
    """A server that goes away.

    client  gives one of the server that serves now
    lose    it is away for longer than any lease holds; returns when one serves again
    """

    url: str
    client: Callable[[], Any]
    lose: Callable[[], None]


Outage = Callable[[MakeServer], AbstractContextManager[Place]]


def freeze(server: Server) -> None:
    server.freeze()


def kill(server: Server) -> None:
    server.kill()


def gone(how: Callable[[Server], None]) -> Outage:
    """A server alone, and the same comes again."""

    @contextmanager
    def outage(make: MakeServer) -> Iterator[Place]:
        server = make(appendonly=True, config={"appendfsync": "always"})

        def lose() -> None:
            how(server)
            time.sleep(LEASE_S + 1)
            server.thaw() if server.running else server.start()

        yield Place(server.url, server.client, lose)

    return outage


def replaced(
    how: Callable[[Server], None], master: Server, replica: Server, await_other: Callable[[Server], Server]
) -> None:
    """Its replica takes over when no lease holds any more."""
    with master.client() as client:
        client.set(f"{{{HOME}}}:last", 1, ex=1)
        wait_until(lambda: client.wait(1, 1000), 30, "the replica to have all of it")
    replica.freeze()
    how(master)
    time.sleep(LEASE_S + 1)
    replica.thaw()
    await_other(master)
    if master.running:
        master.thaw()


def failed_over_by_sentinels(how: Callable[[Server], None]) -> Outage:
    @contextmanager
    def outage(_: MakeServer) -> Iterator[Place]:
        with Service(find_binary()) as service:
            yield Place(
                service.url,
                lambda: service.master().client(),
                lambda: replaced(how, service.master(), service.replica(), service.await_failover),
            )

    return outage


def failed_over_in_a_cluster(how: Callable[[Server], None]) -> Outage:
    @contextmanager
    def outage(_: MakeServer) -> Iterator[Place]:
        with Cluster(find_binary()) as cluster:

            def lose() -> None:
                master = cluster.master(HOME)
                await_other = cluster.await_other_master
                replaced(how, master, cluster.replica_of(master), lambda old: await_other(HOME, old))
                cluster.settle()

            yield Place(cluster.url, cluster.client, lose)

    return outage


def leases(redis: Any, app: App) -> dict[str, tuple[float, float]]:
    """Consumer -> (seconds that its lease still has, its graces)."""
    seconds, microseconds = redis.time()
    now_ms = seconds * 1000 + microseconds / 1000
    scores = redis.zrange(app.client.queue(None).keys.consumers, 0, -1, withscores=True)
    return {name.decode(): ((score - now_ms) / 1000, score % 1) for name, score in scores}


@pytest.mark.parametrize(
    "outage",
    [
        pytest.param(gone(freeze), id="frozen"),
        pytest.param(gone(kill), id="killed"),
        pytest.param(failed_over_by_sentinels(kill), id="sentinel"),
        pytest.param(failed_over_in_a_cluster(kill), id="cluster", marks=not_on_62),
        pytest.param(failed_over_in_a_cluster(freeze), id="frozen-in-a-cluster", marks=not_on_62),
    ],
)
def test_nothing_runs_twice_because_the_server_was_away(
    own_server: MakeServer, start_worker: StartWorker, journal: Journal, tmp_path: Path, outage: Outage
) -> None:
    with outage(own_server) as place, tasks.app.configured(url=place.url, broker_timeout_s=60):
        app = tasks.app
        workers = [start_worker(concurrency=2, lease=LEASE_S, worker_url=place.url) for _ in range(3)]
        handles = [tasks.gate.delay(str(tmp_path / "open")) for _ in range(6)]
        wait_until(lambda: journal.count("began gate") == 6, 30, "all of them to begin")
        place.lose()
        with place.client() as redis:

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


@pytest.fixture(params=["plain", pytest.param("cluster", marks=not_on_62)])
def whole(request: pytest.FixtureRequest) -> Iterator[AnyServer]:
    """A server that stays: that of the session, and a cluster."""
    if request.param == "plain":
        yield request.getfixturevalue("server")
    else:
        with Cluster(find_binary(), config={"cluster-node-timeout": "120000"}) as cluster:
            yield cluster


def test_a_dead_worker_beside_a_living_one_has_no_grace(
    whole: AnyServer, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    with tasks.app.configured(url=whole.url), whole.client() as redis:
        consumers = tasks.app.client.queue(None).keys.consumers
        dead = start_worker(concurrency=1, lease=LEASE_S, worker_url=whole.url)
        handle = tasks.gate.delay(str(tmp_path / "open"))
        wait_until(lambda: journal.count("began gate") == 1, 30, "it to begin")
        alive = start_worker(concurrency=1, lease=LEASE_S, worker_url=whole.url)
        (name,) = (name for name in leases(redis, tasks.app) if f"-{dead.pid}-" in name)
        dead.kill()
        ends = redis.zscore(consumers, name)
        seen = {ends}

        def is_taken_over() -> bool:
            score = redis.zscore(consumers, name)
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
