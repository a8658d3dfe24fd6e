"""What a server does to its clients in a bad hour: full, loading, read-only, flushed, frozen, killed, out of places."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from rsq import App, BrokerRefused, BrokerUnavailable
from rsq.broker.connection import Endpoint, Link
from rsq.keys import GROUP
from tests.conftest import MakeServer
from tests.helpers import free_port, wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, Worker, settled, totals
from tests.servers import Server, not_on_cluster

MANY = 2000
PAYLOAD = "x" * 50_000


@pytest.fixture
def patient(app: App) -> Iterator[App]:
    """The app with a deadline that outlasts every outage of these tests."""
    app.configure(broker_timeout_s=60.0)
    yield app
    app.configure(broker_timeout_s=5.0)


def fill(server: Server) -> int:
    """Send until the server refuses for want of memory; gives the number of calls that it took."""
    with server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 8 * 1024 * 1024)
    accepted = 0
    with pytest.raises(BrokerRefused, match=r"out of memory \(maxmemory reached\)"):
        while True:
            tasks.measure.delay(PAYLOAD)
            accepted += 1
    with server.client() as client:
        # Well beyond the brim: not even the smallest write fits.
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 2 * 1024 * 1024)
    return accepted


def wait_until_all_consume(server: Server, app: App, children: int = 2) -> None:
    """A child that has not begun knows no server: it cannot notice that it is away."""
    with server.client() as client:
        key = app.client.queue(None).keys.consumers
        wait_until(lambda: client.zcard(key) == children, 60, f"{children} children to begin")


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Runs calls in threads; when the test ends, whichever way, they have ended."""
    with ThreadPoolExecutor() as executor:
        yield executor


def has_warned(worker: Worker, *pids: int) -> bool:
    """Each of these processes of a worker has said in the log that something is wrong."""
    return all(f"WARNING {pid} " in worker.log() for pid in pids)


def succeeded(app: App) -> int:
    return totals(app).counters.get("succeeded", 0)


def assert_done(app: App, number: int) -> None:
    """So many calls came to an end, each once, and none in a bad one."""
    wait_until(lambda: succeeded(app) >= number and settled(app), 60, f"{number} calls to be settled")
    now = totals(app)
    assert (now.counters["succeeded"], now.dead) == (number, 0)


@pytest.mark.parametrize("started", ["before", "after"])
def test_a_full_server_refuses_calls_and_is_worked_empty(
    own_server: MakeServer, app: App, start_worker: StartWorker, started: str
) -> None:
    server = own_server()
    app.configure(url=server.url)
    if started == "before":
        # It stands still, so that the server becomes full under it.
        worker = start_worker(concurrency=1, worker_url=server.url, lease=1)
        with server.client() as client:
            client.set(app.client.queue(None).keys.paused, "1")
    accepted = fill(server)
    with pytest.raises(BrokerRefused, match="out of memory"):
        tasks.measure.apply_async((PAYLOAD,), countdown=1)
    with pytest.raises(BrokerRefused, match="out of memory"):
        tasks.measure.map_async([(PAYLOAD,)] * 3)
    if started == "before":
        # Full for longer than the lease: it is kept all the same.
        leases = app.client.queue(None).keys.consumers
        with server.client() as client:
            ends = {score for _, score in client.zrange(leases, 0, -1, withscores=True)}
            for _ in range(4):
                wait_until(
                    lambda: ends != {score for _, score in client.zrange(leases, 0, -1, withscores=True)},  # noqa: B023
                    30,
                    "a renewal",
                )
                ends = {score for _, score in client.zrange(leases, 0, -1, withscores=True)}
            client.delete(app.client.queue(None).keys.paused)
        assert worker.log().count("cannot be listed") == 1, "it is said once"
    else:
        worker = start_worker(concurrency=1, worker_url=server.url, lease=1)
    assert_done(app, accepted)
    if started == "before":
        wait_until(lambda: "listed again" in worker.log(), 30, "it to say so")
    assert "lost the lease" not in worker.log()
    assert tasks.measure.delay(PAYLOAD).get(timeout=20) == len(PAYLOAD)
    assert worker.stop() == 0


def test_a_loading_server_is_waited_for(own_server: MakeServer, patient: App, start_worker: StartWorker) -> None:
    # It loads slowly, and answers after each 2 MB.
    server = own_server(config={"key-load-delay": "1000", "rdbcompression": "no"})
    patient.configure(url=server.url)
    worker = start_worker(concurrency=1, worker_url=server.url, lease=1)
    handles = tasks.add.map_async([(number, 0) for number in range(100)])
    assert [handle.get(timeout=30) for handle in handles] == list(range(100))
    waiting = tasks.add.apply_async((1, 2), countdown=0.5)
    with server.client() as client:
        client.mset({f"{{ballast}}:{number}": PAYLOAD[:6000] for number in range(3000)})
        client.save()
    server.kill()
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        sent = wait_until(lambda: tasks.add.delay(1, 1), what="the call to be accepted")
        assert sent.get(timeout=30) == 2
        assert waiting.get(timeout=30) == 3
    finally:
        starting.join()
    assert "is loading the dataset" in worker.log()
    assert worker.stop() == 0


async def test_scripts_that_the_server_forgot_are_loaded_again(
    own_server: MakeServer, app: App, start_worker: StartWorker
) -> None:
    server = own_server()
    app.configure(url=server.url)
    worker = start_worker(concurrency=1, worker_url=server.url)
    with server.client() as client:
        for turn in range(5):
            client.script_flush()
            sent = tasks.add.apply_async((turn, 1), dedupe_key=f"sync-{turn}")
            client.script_flush()
            awaited = await tasks.add.aapply_async((turn, 2), dedupe_key=f"async-{turn}")
            client.script_flush()
            bulk = tasks.add.map_async([(number, turn) for number in range(50)], dedupe_key="bulk-{a}-{b}")
            assert (sent.get(timeout=20), awaited.get(timeout=20)) == (turn + 1, turn + 2)
            assert [handle.get(timeout=20) for handle in bulk] == [number + turn for number in range(50)]
            assert not any(handle.duplicate for handle in (sent, awaited, *bulk))
    assert_done(app, 5 * 52)
    assert "NOSCRIPT" not in worker.log()
    assert "WARNING" not in worker.log()
    await app.aclose()


def test_scripts_may_vanish_under_load(own_server: MakeServer, app: App, start_worker: StartWorker) -> None:
    server = own_server()
    app.configure(url=server.url)
    start_worker(concurrency=2, worker_url=server.url, lease=1)
    tasks.add.map_async([(number, 0) for number in range(MANY)])
    with server.client() as client:
        while not settled(app):
            client.script_flush()
    assert_done(app, MANY)


def test_a_flush_under_load_is_told_and_survived(
    own_server: MakeServer, app: App, start_worker: StartWorker, journal: Journal, tmp_path: Any
) -> None:
    server = own_server()
    app.configure(url=server.url)
    worker = start_worker(concurrency=2, worker_url=server.url, lease=1)
    tasks.add.map_async([(number, 0) for number in range(MANY)])
    lost = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, 30, "the body to begin")
    queue = app.client.queue(None).keys
    with server.client() as client:
        before = client.zrange(queue.consumers, 0, -1)
        client.flushall()
        wait_until(lambda: client.zcard(queue.consumers) == 2, 20, "both children to register again")
        after = client.zrange(queue.consumers, 0, -1)
        assert not {*before} & {*after}
        assert [handle.get(timeout=30) for handle in tasks.add.map_async([(n, 0) for n in range(500)])] == [*range(500)]
        wait_until(lambda: {row["name"] for row in client.xinfo_consumers(queue.stream(), GROUP)} <= {*after})
    for name in before:
        assert f"lost the lease of {name.decode()}" in worker.log()
    (tmp_path / "open").touch()
    wait_until(lambda: journal.count("interrupted gate") == 1, 20, "the body to hear of it")
    # What the flush took is gone, and the run under the old name leaves no outcome behind.
    assert_done(app, 500)
    assert not lost.ready()
    assert worker.stop() == 0


@not_on_cluster("a node becomes a replica by a failover, for which test_cluster.py has tests")
def test_a_server_that_became_a_replica_is_waited_for(
    own_server: MakeServer, patient: App, start_worker: StartWorker, beside: ThreadPoolExecutor
) -> None:
    server = own_server()
    patient.configure(url=server.url)
    worker = start_worker(concurrency=2, worker_url=server.url, lease=2)
    wait_until_all_consume(server, patient)
    tasks.add.map_async([(number, 0) for number in range(MANY)])
    wait_until(lambda: succeeded(patient) > 0, 60, "progress")
    with server.client() as client:
        client.replicaof("127.0.0.1", free_port())
        patient.configure(broker_timeout_s=0.5)
        with pytest.raises(BrokerUnavailable, match="read only"):
            tasks.add.delay(1, 1)
        wait_until(lambda: has_warned(worker, worker.pid, *worker.children()), 60, "all processes to notice")
        patient.configure(broker_timeout_s=60.0)
        sends = [
            beside.submit(tasks.add.delay, 1, 1),
            beside.submit(tasks.add.apply_async, (1, 1), dedupe_key="k"),
        ]
        client.replicaof("NO", "ONE")
    assert [send.result().get(timeout=30) for send in sends] == [2, 2]
    assert_done(patient, MANY + 2)
    assert worker.stop() == 0


def test_a_server_without_a_free_place_is_waited_for(
    own_server: MakeServer, patient: App, start_worker: StartWorker, beside: ThreadPoolExecutor
) -> None:
    server = own_server()
    patient.configure(url=server.url)
    worker = start_worker(concurrency=2, worker_url=server.url, lease=1)
    wait_until_all_consume(server, patient)
    tasks.add.map_async([(number, 0) for number in range(MANY)])
    with server.client() as client:
        before = client.config_get("maxclients")["maxclients"]
        client.config_set("maxclients", 1)
        client.client_kill_filter(_type="normal", skipme=True)
        send = beside.submit(tasks.add.delay, 1, 1)
        wait_until(lambda: has_warned(worker, worker.pid, *worker.children()), 60, "all processes to notice")
        client.config_set("maxclients", before)
    assert send.result().get(timeout=30) == 2
    assert_done(patient, MANY + 1)
    assert worker.stop() == 0


@pytest.mark.parametrize("lease", [1, 60], ids=["longer than the lease", "shorter than the lease"])
def test_a_frozen_server_is_waited_for(
    own_server: MakeServer, patient: App, start_worker: StartWorker, beside: ThreadPoolExecutor, lease: int
) -> None:
    server = own_server()
    patient.configure(url=server.url)
    worker = start_worker(concurrency=2, worker_url=server.url, lease=lease)
    wait_until_all_consume(server, patient)
    tasks.add.map_async([(number, 0) for number in range(MANY)])
    wait_until(lambda: succeeded(patient) > 0, 60, "progress")
    server.freeze()
    send = beside.submit(tasks.add.delay, 1, 1)
    # Each child gives up a read or a commit after a few seconds of silence.
    wait_until(lambda: has_warned(worker, *worker.children()), 60, "the children to notice")
    server.thaw()
    assert send.result().get(timeout=60) == 2
    assert_done(patient, MANY + 1)
    assert lease == 1 or "lost the lease" not in worker.log()
    assert worker.stop() == 0


def test_connections_that_are_cut_under_load(own_server: MakeServer, app: App, start_worker: StartWorker) -> None:
    server = own_server()
    app.configure(url=server.url)
    worker = start_worker(concurrency=2, worker_url=server.url)
    stats = app.client.queue(None).keys.stats
    sent = 0
    with server.client() as client:

        def counted_more_than(number: int) -> bool:
            return int(client.hget(stats, "succeeded") or 0) > number

        for cut in range(20):
            sent += len(tasks.add.map_async([(number, 0) for number in range(100)]))
            tasks.flaky.delay(1)
            wait_until(partial(counted_more_than, cut * 50), 30, "progress")
            client.client_kill_filter(_type="normal", skipme=True)
    app.close()
    assert_done(app, sent + 20)
    assert totals(app).counters["retried"] == 20
    assert worker.stop() == 0


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_killed_server_keeps_what_it_accepted(
    own_server: MakeServer, patient: App, start_worker: StartWorker, beside: ThreadPoolExecutor, fsync: str
) -> None:
    server = own_server(appendonly=True, config={"appendfsync": fsync})
    patient.configure(url=server.url)
    worker = start_worker(concurrency=2, worker_url=server.url, lease=1)
    accepted: list[Any] = []
    full = threading.Event()

    def produce() -> None:
        while not full.is_set():
            accepted.append(tasks.add.delay(len(accepted), 0))

    producer = beside.submit(produce)
    try:
        for _ in range(3):
            goal = len(accepted) + 300
            wait_until(lambda goal=goal: len(accepted) >= goal, 60, "more to be accepted")  # type: ignore[misc]
            server.kill()
            server.start()
    finally:
        full.set()
    producer.result()
    assert tasks.add.delay(1, 1).get(timeout=30) == 2
    wait_until(lambda: settled(patient), 30, "all to be settled")
    if fsync == "always":
        assert [handle.get(timeout=30) for handle in accepted] == list(range(len(accepted)))
        assert_done(patient, len(accepted) + 1)
    assert worker.stop() == 0


@pytest.mark.parametrize("right", ["xadd", "time"])
def test_a_right_that_lacks_inside_a_script_is_told(own_server: MakeServer, app: App, right: str) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">word", "~*", "&*", "+@all", f"-{right}")
        app.configure(url=f"unix://shop:word@{server.socket}?db=0")
        with pytest.raises(BrokerRefused, match=r"denies a command that rsq needs .* ACL LOG names the one"):
            tasks.add.apply_async((1, 1), dedupe_key="k")
        assert client.acl_log()[0]["object"] == right


def test_a_key_that_lacks_inside_a_script_is_told(own_server: MakeServer) -> None:
    server = own_server()
    link = Link(Endpoint(f"unix://shop:word@{server.socket}?db=0"), 5)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">word", "~mine", "+@all")
        with pytest.raises(BrokerRefused, match="denies a command that rsq needs"):
            link.call("EVAL", "return redis.call('GET', 'yours')", 1, "mine")
    link.close()


def test_want_of_memory_inside_a_script_is_told(own_server: MakeServer) -> None:
    server = own_server(config={"maxmemory": "1"})
    link = Link(Endpoint(server.url), 5)
    with pytest.raises(BrokerRefused, match="maxmemory reached"):
        link.call("EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, "k")
    link.close()
