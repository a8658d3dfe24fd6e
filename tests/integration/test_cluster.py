"""Redis Cluster: everything works there, and nothing is lost or doubled by failovers, lost masters and moving slots."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import pytest

from rsq import App, every
from rsq.beat.store import Store
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.broker.queue_control import purge
from rsq.errors import QueuePaused, TaskRevoked
from rsq.testing.server import delete_namespace
from tests.clusters import Cluster
from tests.conftest import keys_without_ttl
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled
from tests.servers import Server, find_binary

pytestmark = pytest.mark.skipif(
    os.environ.get("RSQ_TEST_SERVER") == "redis62", reason="clusters are started with a setting that Redis 6.2 lacks"
)

PATIENT_S = 60.0
"""A producer's deadline that no failover exceeds, however slow the machine."""

TAG = "rsq:0"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with Cluster(find_binary()) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Whole, settled and empty; afterwards no key is left that should not be."""
    for node in running.nodes:
        if not node.running:
            node.start()
    running.settle()
    running.flush()
    yield running
    for node in running.nodes:
        if node.running:
            with node.client(decode_responses=True, encoding_errors="replace") as client:
                if client.role()[0] == "master":
                    assert keys_without_ttl(client) == []


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.url


@pytest.fixture
def app(cluster: Cluster) -> Iterator[App]:
    with tasks.app.configured(url=cluster.url, broker_timeout_s=PATIENT_S):
        yield tasks.app


def rsq(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rsq", "-A", "tests.integration.tasks", *arguments]
    env = {**os.environ, "RSQ_URL": cluster.url, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)


# -- everything works there


def test_calls_and_their_results(app: App, start_worker: StartWorker) -> None:
    start_worker("-Q", "default,other")
    assert tasks.add.delay(2, 3).get(timeout=PATIENT_S) == 5
    assert tasks.add.apply_async((2, 4), queue="other", priority=9).get(timeout=PATIENT_S) == 6
    assert tasks.add.apply_async((2, 5), countdown=0.1).get(timeout=PATIENT_S) == 7
    assert [each.get(timeout=PATIENT_S) for each in tasks.add.map_async([(n, n) for n in range(50)])] == [
        2 * n for n in range(50)
    ]


def test_calls_and_results_of_coroutines(app: App, start_worker: StartWorker) -> None:
    start_worker()

    async def many() -> list[int]:
        handles = await asyncio.gather(*(tasks.aadd.adelay(n, 1) for n in range(20)))
        return list(await asyncio.gather(*(handle.aget(timeout=PATIENT_S) for handle in handles)))

    async def all_of_it() -> list[int]:
        try:
            return await many()
        finally:
            await app.aclose()

    assert asyncio.run(all_of_it()) == [n + 1 for n in range(20)]


def test_a_call_under_one_id_runs_once(app: App, start_worker: StartWorker, journal: Journal) -> None:
    start_worker()
    for _ in range(3):
        result = tasks.note.apply_async(("once",), task_id="the-one")
    assert result.get(timeout=PATIENT_S) == "once"
    assert journal.count("ran once") == 1


def test_dead_letters_come_again(app: App, start_worker: StartWorker) -> None:
    start_worker()
    failed = tasks.add.apply_async((1, "x"), max_retries=0)
    with pytest.raises(TypeError):
        failed.get(timeout=PATIENT_S)
    queue = app.client.queue(None)
    with app.client.link() as link:
        (letter,) = dead_letters(link, queue)
        assert redrive(link, queue, letter)
    wait_until(lambda: settled(app), PATIENT_S, "the redriven call")


def test_what_is_revoked_never_runs(app: App) -> None:
    waits = tasks.add.apply_async((1, 1), countdown=3600)
    waits.revoke()
    with pytest.raises(TaskRevoked):
        waits.get(timeout=PATIENT_S)


def test_queues_are_paused_and_purged(app: App) -> None:
    app.pause("default", refuse=True)
    with pytest.raises(QueuePaused):
        tasks.add.delay(1, 1)
    assert app.resume("default") == ["default"]
    tasks.add.delay(1, 1)
    with app.client.link() as link:
        assert purge(link, app.client.queue(None)) == 1


def test_workers_are_inspected_and_told(app: App, cluster: Cluster, start_worker: StartWorker) -> None:
    worker = start_worker()
    wait_until(lambda: app.inspect().ping(), PATIENT_S, "the worker to answer")
    assert "pong" in rsq(cluster, "inspect", "ping").stdout
    assert "default" in rsq(cluster, "status").stdout
    app.control.shutdown()
    assert worker.process.wait(PATIENT_S) == 0


def test_schedules_are_fired(app: App, start_worker: StartWorker, journal: Journal) -> None:
    app.schedules.add("often", every(seconds=1), tasks.note, ("beat",))
    worker = start_worker("-B")
    wait_until(lambda: journal.count("ran beat") >= 2, PATIENT_S, "two slots")
    app.schedules.remove("often")
    assert worker.stop() == 0


def test_a_namespace_is_deleted_on_all_its_nodes(app: App, cluster: Cluster) -> None:
    tasks.add.delay(1, 1)
    app.schedules.add("often", every(seconds=100), tasks.note, ("beat",))
    sizes = [cluster.ask(node, "DBSIZE") for node in (cluster.master("rsq"), cluster.master(TAG))]
    assert all(sizes)
    delete_namespace(app.settings)
    assert [cluster.ask(node, "DBSIZE") for node in (cluster.master("rsq"), cluster.master(TAG))] == [0, 0]


# -- nothing is lost or doubled


@contextmanager
def calls(queue: str = "default") -> Iterator[Callable[[], list[str]]]:
    """Calls are sent to a queue all the time; gives what has been accepted so far. At the end of the block it stops."""
    accepted: list[str] = []
    faults: list[BaseException] = []
    stop = threading.Event()

    def send() -> None:
        number = 0
        try:
            while not stop.is_set():
                word = f"call-{number}"
                tasks.note.apply_async((word,), queue=queue)
                accepted.append(word)
                number += 1
                stop.wait(0.002)
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield lambda: accepted
    finally:
        stop.set()
        thread.join()
    assert faults == []


def ran_once(journal: Journal, accepted: list[str]) -> bool:
    ran = Counter(line.removeprefix("ran ") for line in journal.lines())
    assert all(number == 1 for number in ran.values()), [word for word, number in ran.items() if number > 1]
    return set(accepted) <= set(ran)


def a_failover(cluster: Cluster) -> None:
    cluster.fail_over(TAG)


def a_lost_master(cluster: Cluster) -> None:
    old = cluster.master(TAG)
    old.kill()
    cluster.await_other_master(TAG, old)
    old.start()
    cluster.settle()


def a_moving_slot(cluster: Cluster) -> None:
    with cluster.moving(TAG, cluster.other_master(cluster.master(TAG))):
        pass


def a_slot_that_moves_whole(cluster: Cluster) -> None:
    cluster.move_whole(TAG, cluster.other_master(cluster.master(TAG)))


@pytest.fixture(params=[a_failover, a_lost_master, a_moving_slot, a_slot_that_moves_whole])
def event(request: pytest.FixtureRequest) -> Callable[[Cluster], None]:
    """What happens to the shard meanwhile."""
    if request.param is a_slot_that_moves_whole and "valkey" not in find_binary().name:
        pytest.skip("only Valkey can move all of a slot at once")
    happens: Callable[[Cluster], None] = request.param
    return happens


def test_each_call_runs_once(
    event: Callable[[Cluster], None], app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal
) -> None:
    start_worker(lease=20)
    with app.configured(wait_replicas=1), calls() as accepted:
        wait_until(lambda: len(accepted()) > 20, PATIENT_S, "some calls")
        event(cluster)
        before = len(accepted())
        wait_until(lambda: len(accepted()) > before + 20, PATIENT_S, "calls after it")
    wait_until(lambda: ran_once(journal, accepted()), PATIENT_S, "all of them to run")
    wait_until(lambda: settled(app), PATIENT_S, "the last outcome")


def test_who_waits_for_a_result_gets_it(
    event: Callable[[Cluster], None], app: App, cluster: Cluster, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its channel is one of the shard's, and the node that serves the slot changes while a thread and a loop wait."""
    start_worker(lease=20)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    channel = app.client.queue(None).keys.result(handle.id)

    async def awaited() -> Any:
        try:
            return await handle.aget()
        finally:
            await app.client.leave_loop()

    def waiting() -> int:
        found = cluster.ask(cluster.master(TAG), "PUBSUB", "SHARDNUMSUB", channel)
        return int(found[1])

    with ThreadPoolExecutor(2) as threads:
        got = [threads.submit(handle.get), threads.submit(asyncio.run, awaited())]
        wait_until(lambda: waiting() == 2, PATIENT_S, "both to wait")
        event(cluster)
        wait_until(lambda: waiting() == 2, PATIENT_S, "both to wait at the other node")
        (tmp_path / "open").touch()
        assert [each.result(PATIENT_S) for each in got] == ["gate", "gate"]
    # No other node hears of it.
    assert [cluster.ask(node, "PUBSUB", "NUMPAT") for node in cluster.nodes if node.running] == [0] * 6
    assert not [name for node in cluster.nodes for name in cluster.ask(node, "PUBSUB", "CHANNELS", "*:result:*")]


def test_results_of_several_shards_are_waited_for_at_once(app: App, cluster: Cluster) -> None:
    """As of a call whose queue is not known: it may lie in any of them."""
    names = [f"{{rsq:{number}}}:default:result:x" for number in range(3)]
    with ThreadPoolExecutor(1) as threads, cluster.client() as client:
        for name in reversed(names):
            got = threads.submit(app.client.listener.wait, names, PATIENT_S)
            wait_until(lambda: len(client.pubsub_channels("*:result:x")) == 3, PATIENT_S, "all to be subscribed")
            client.set(name, "there", ex=100)
            client.execute_command("SPUBLISH", name, "there")
            assert got.result(PATIENT_S) == b"there"
            client.delete(name)
            wait_until(lambda: not client.pubsub_channels("*:result:x"), PATIENT_S, "the channels to be left")

        async def awaited() -> Any:
            waiting = asyncio.create_task(app.client.alistener.wait(names, PATIENT_S))
            await asyncio.to_thread(
                wait_until, lambda: len(client.pubsub_channels("*:result:x")) == 3, PATIENT_S, "all to be subscribed"
            )
            client.execute_command("SPUBLISH", names[2], "there")
            found = await waiting
            await app.aclose()
            return found

        assert asyncio.run(awaited()) == b"there"


def test_a_slot_on_the_move_takes_nothing_and_loses_nothing(app: App, cluster: Cluster) -> None:
    """While its keys move each script is refused before its first write, and nobody goes where they are not yet."""
    tasks.add.delay(1, 1)
    target = cluster.other_master(cluster.master(TAG))
    sent: list[Any] = []
    with cluster.moving(TAG, target) as source:
        before = cluster.ask(source, "DBSIZE"), cluster.ask(target, "DBSIZE")
        thread = threading.Thread(target=lambda: sent.append(tasks.add.apply_async((1, 2), task_id="waits")))
        thread.start()
        asked = cluster.ask(source, "INFO", "commandstats")
        wait_until(lambda: cluster.ask(source, "INFO", "commandstats") != asked, PATIENT_S, "the send to be tried")
        assert (cluster.ask(source, "DBSIZE"), cluster.ask(target, "DBSIZE")) == before
        assert not sent
    thread.join(PATIENT_S)
    assert sent
    assert cluster.master(TAG) is target


def test_a_send_to_a_master_that_hangs_reaches_its_successor(app: App, cluster: Cluster) -> None:
    """A host that is lost says nothing, not even that it is gone."""
    old = cluster.master(TAG)
    with app.configured(broker_timeout_s=30):
        tasks.add.delay(1, 1)
        os.kill(old.pid, signal.SIGSTOP)
        try:
            tasks.add.apply_async((1, 2), task_id="in-flight")
            new = cluster.await_other_master(TAG, old)
            with new.client() as client:
                assert b"in-flight" in [fields[b"id"] for _, fields in client.xrange("{rsq:0}:default:stream")]
        finally:
            os.kill(old.pid, signal.SIGCONT)


def test_an_outcome_that_a_failover_loses_is_produced_again(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    """No connection of the worker breaks: its next command is answered by the name of the new master."""
    start_worker(concurrency=1)
    gate = tmp_path / "gate"
    runs = tasks.gate.apply_async((str(gate), "lost"))
    wait_until(lambda: journal.count("began lost"), PATIENT_S, "it to begin")
    with cluster.behind(TAG):
        gate.touch()
        key = app.client.queue("default").keys.result(runs.id)
        with cluster.master(TAG).client() as client:
            wait_until(lambda: client.exists(key), PATIENT_S, "its outcome to be confirmed")
    assert runs.get(timeout=PATIENT_S) == "lost"
    assert journal.count("ended lost") == 2


def test_a_slot_of_a_schedule_that_a_failover_loses_is_fired_again(app: App, cluster: Cluster) -> None:
    """At a master that has lost its replica, and is replaced while it waits for that."""
    with app.configured(wait_replicas=1), ThreadPoolExecutor(1) as threads:
        app.schedules.add("often", every(seconds=1), tasks.note, ("beat",))
        store = Store(app.client)
        record = store.read("often")
        assert record is not None
        assert record.due_ms is not None
        slot_ms = record.due_ms
        wait_until(lambda: time() * 1000 > slot_ms, PATIENT_S, "the slot to be due")
        with cluster.behind(TAG):
            fired = threads.submit(store.fire, [(record, slot_ms)], slot_ms)
            with cluster.master(TAG).client() as old:
                wait_until(lambda: old.exists("{rsq:0}:default:fired:often"), PATIENT_S, "it to be fired")
        (one,) = fired.result(PATIENT_S)
        assert one.verdict == "fired"
        with cluster.master(TAG).client() as new:
            assert new.xlen("{rsq:0}:default:stream") == 1
        app.schedules.remove("often")


def test_an_isolated_block_leaves_nothing(app: App, cluster: Cluster) -> None:
    for _ in range(4):  # of random names, so that their slots lie on several nodes
        with app.testing.isolated(cluster.url):
            tasks.add.apply_async((1, 2), countdown=1000)
            app.pause("mail")
    assert [node.port for node in cluster.nodes if masters_keys(node)] == []


def masters_keys(node: Server) -> list[str]:
    with node.client(decode_responses=True) as client:
        return [str(key) for key in client.keys("*test-*")] if client.role()[0] == "master" else []


@contextmanager
def fleet_away(cluster: Cluster) -> Iterator[None]:
    """All nodes hang of the shard that knows the workers and the names of the queues; the other shards go on."""
    fleet = cluster.master("rsq")
    shard = [fleet, cluster.replica_of(fleet)]
    with ExitStack() as stack:
        for node in cluster.nodes:
            cluster.ask(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
            stack.callback(cluster.ask, node, "CONFIG", "SET", "cluster-require-full-coverage", "yes")
        for node in shard:
            os.kill(node.pid, signal.SIGSTOP)
            stack.callback(os.kill, node.pid, signal.SIGCONT)
        yield


def test_a_shard_that_serves_goes_on_without_the_one_that_knows_the_workers(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    fleet = cluster.master("rsq")
    if fleet is cluster.master(TAG):
        with cluster.moving(TAG, cluster.other_master(fleet)):
            pass
    for _ in range(2):  # each would take what the other has no lease for
        start_worker(lease=2)
    gate = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate"), PATIENT_S, "the call to begin")
    with cluster.client() as client:
        wait_until(lambda: client.zcard("{rsq:0}:default:consumers") == 4, PATIENT_S, "all children to begin")
    with fleet_away(cluster):
        for number in range(8):  # twice a lease
            assert tasks.add.delay(1, number).get(timeout=PATIENT_S) == 1 + number
            sleep(1)
        fresh = App("fresh", url=cluster.url, broker_timeout_s=PATIENT_S)
        began = monotonic()
        fresh.send_task(tasks.add.name, (1, 2))
        assert monotonic() - began < PATIENT_S / 2
        fresh.close()
        (tmp_path / "open").touch()
        assert gate.get(timeout=PATIENT_S) == "gate"
    assert journal.lines() == ["began gate", "ended gate"]
    wait_until(lambda: settled(app), PATIENT_S, "the last outcome")
