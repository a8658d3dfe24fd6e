"""Several partitions: one worker reads all of them, each by a lane of its own, and one that is away stops no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from rsq import App, chain
from rsq.broker import scripts
from rsq.broker.partition_control import pin, placements
from rsq.cli.main import main
from rsq.errors import SettingsError
from rsq.testing.server import delete_namespace
from tests.clusters import Cluster
from tests.conftest import MakeServer, keys_without_ttl
from tests.helpers import patience, wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, kill
from tests.servers import Server, find_binary

pytestmark = pytest.mark.skipif(
    os.environ.get("RSQ_TEST_SERVER") == "redis62", reason="clusters are started with a setting that Redis 6.2 lacks"
)

QUEUES = ("a", "b", "c")
"""In partitions 0, 1 and 2, which lie on three masters."""

LONG_S = 60.0

THREE = {"RSQ_PARTITIONS": "3"}


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with Cluster(find_binary(), config={"cluster-require-full-coverage": "no"}) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Whole, settled and empty; afterwards no key is left that should not be."""
    running.settle()
    running.flush()
    yield running
    running.settle()
    for number in range(3):
        with running.master(f"rsq:{number}").client(decode_responses=True, encoding_errors="replace") as client:
            assert keys_without_ttl(client) == []


@pytest.fixture(params=["plain", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param if request.param == "cluster" else "own").url
    return found


@pytest.fixture
def own(own_server: MakeServer) -> Server:
    return own_server()


@pytest.fixture
def app(url: str) -> Iterator[App]:
    with tasks.app.configured(url=url, partitions=3, broker_timeout_s=LONG_S):
        assert [queue.partition for queue in tasks.app.client.located(QUEUES, use=True)] == [0, 1, 2]
        yield tasks.app


on_cluster = pytest.mark.parametrize("url", ["cluster"], indirect=True)


@contextmanager
def hanging(cluster: Cluster, tag: str) -> Iterator[Server]:
    """The master of a tag and its replica hang: nobody takes over, also in the moment in which both are back."""
    master = cluster.master(tag)
    replica = cluster.replica_of(master)
    name, others = cluster.id_of(master), [node for node in cluster.nodes if node not in (master, replica)]

    def is_trusted() -> bool:
        return all("fail" not in row[2] for node in others for row in cluster.rows(node) if row[0] == name)

    try:
        replica.freeze()
        master.freeze()
        yield master
    finally:
        master.thaw()
        try:
            wait_until(is_trusted, LONG_S, "the others to know that it is back")
        finally:
            replica.thaw()


def with_neither(cluster: Cluster, *tags: str) -> int:
    """A partition on a master that holds none of these tags."""
    others = [cluster.master(tag) for tag in tags]
    return next(number for number in range(3) if cluster.master(f"rsq:{number}") not in others)


def send(queue: str, count: int) -> list[str]:
    words = [f"{queue}-{number}" for number in range(count)]
    for word in words:
        tasks.note.apply_async((word,), queue=queue)
    return words


def all_ran(journal: Journal, words: list[str]) -> bool:
    lines = set(journal.lines())
    return all(f"ran {word}" in lines for word in words)


def ran_once(journal: Journal, words: list[str]) -> bool:
    return [journal.count(f"ran {word}") for word in words] == [1] * len(words)


# -- everything works there


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_one_worker_reads_queues_of_three_partitions(
    app: App, start_worker: StartWorker, journal: Journal, pool: str
) -> None:
    worker = start_worker("-Q", "a,b,c", "-P", pool, **THREE)
    words = [word for queue in QUEUES for word in send(queue, 20)]
    results = [tasks.add.apply_async((number, 1), queue=QUEUES[number % 3], priority=number) for number in range(9)]
    results += [tasks.add.apply_async((9, 1), queue="c", countdown=0.1)]
    assert [result.get(timeout=LONG_S) for result in results] == [*range(1, 11)]
    assert app.AsyncResult(results[5].id).get(timeout=LONG_S) == 6  # of an unknown queue
    wait_until(lambda: all_ran(journal, words), LONG_S, "all to run")
    assert ran_once(journal, words)
    assert worker.stop() == 0


def test_what_is_known_of_queues_is_found_in_each_partition(app: App) -> None:
    for queue in QUEUES:
        tasks.note.apply_async((queue,), queue=queue)
    found = {each.queue: (each.partition, each.length) for each in placements(app.client)}
    assert found == {"a": (0, 1), "b": (1, 1), "c": (2, 1), "default": (0, 0)}
    shown = CliRunner().invoke(main, ["--url", app.settings.url, "status"]).output
    assert [line.split()[:2] for line in shown.splitlines()[1:5]] == [
        ["a", "1"],
        ["b", "1"],
        ["c", "1"],
        ["default", "0"],
    ]
    dropped = CliRunner().invoke(main, ["--url", app.settings.url, "purge", "b", "--yes"]).output
    assert "dropped 1 message of queue b" in dropped
    shown = CliRunner().invoke(main, ["--url", app.settings.url, "partitions"]).output
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
        ["a", "0"],
        ["default", "0"],
        ["b", "1"],
        ["c", "2"],
    ]
    delete_namespace(app.settings)
    with app.client.link() as link:
        keys = [*app.client.queue("b").keys.streams(), "{rsq}:partitions", "{rsq}:queues"]
        assert [link.call("EXISTS", key) for key in keys] == [0] * len(keys)


def test_a_process_that_knows_of_one_partition_sends_to_the_right_one(
    app: App, start_worker: StartWorker, journal: Journal
) -> None:
    with app.configured(partitions=1):
        words = send("c", 3)
        tasks.add.map_async([(1, 1)] * 3, queue="b")
    found = {each.queue: (each.partition, each.length) for each in placements(app.client)}
    assert (found["b"], found["c"]) == ((1, 3), (2, 3))
    start_worker("-Q", "a,b,c")  # it was told of one, too
    wait_until(lambda: all_ran(journal, words), LONG_S, "all to run")


# -- nothing is lost or doubled, and one that is away stops no other


@on_cluster
def test_a_master_that_hangs_stops_no_other(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    number = with_neither(cluster, "rsq:0", "rsq")
    away, (one, other) = QUEUES[number], [queue for queue in QUEUES if queue != QUEUES[number]]
    start_worker("-Q", "a,b,c", concurrency=2, **THREE)
    gate = tmp_path / "gate"
    runs = tasks.gate.apply_async((str(gate), "over-it"), queue=away)
    wait_until(lambda: journal.count("began over-it"), LONG_S, "it to begin")
    app.pause(away)
    waits = send(away, 20)
    send(one, 1), send(other, 1)  # both are known in this process
    with hanging(cluster, f"rsq:{number}"):
        words = [word for _ in range(5) for queue in (one, other) for word in send(queue, 20)]
        results = [tasks.add.apply_async((each, 1), queue=(one, other)[each % 2]) for each in range(20)]
        assert [result.get(timeout=LONG_S) for result in results] == [*range(1, 21)]
        wait_until(lambda: all_ran(journal, words), LONG_S, "the others to be run")
        assert not all_ran(journal, waits)
        gate.touch()
        wait_until(lambda: journal.count("ended over-it"), LONG_S, "it to end")
    app.resume(away)
    wait_until(lambda: all_ran(journal, waits), LONG_S, "the calls of the master that is back")
    assert runs.get(timeout=LONG_S) == "over-it"
    assert ran_once(journal, waits)
    assert journal.count("began over-it") == 1


@on_cluster
def test_a_worker_begins_while_a_master_hangs_and_reads_it_when_that_is_back(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal
) -> None:
    number = with_neither(cluster, "rsq")
    away, one = QUEUES[number], QUEUES[number - 1]
    words, waits = send(one, 5), send(away, 5)
    with hanging(cluster, f"rsq:{number}"):
        start_worker("-Q", "a,b,c", **THREE)
        wait_until(lambda: all_ran(journal, words), LONG_S, "those that are there to be read")
    wait_until(lambda: all_ran(journal, waits), LONG_S, "the calls of the master that is back")
    assert ran_once(journal, words + waits)


@on_cluster
def test_a_child_begins_while_the_master_of_the_fleet_hangs(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal
) -> None:
    """And its calls send to the queues that it reads."""
    queue = QUEUES[with_neither(cluster, "rsq")]
    worker = start_worker("-Q", "a,b,c", concurrency=1, **THREE)
    words = send(queue, 1)
    wait_until(lambda: all_ran(journal, words), LONG_S, "it to run")
    (first,) = worker.children()
    with hanging(cluster, "rsq"):
        kill(first)
        words.append("passed-on")
        tasks.pass_on.apply_async((words[-1], queue), queue=queue)
        wait_until(lambda: all_ran(journal, words), LONG_S, "another child to run it")
    assert first not in worker.children()


@on_cluster
def test_a_worker_of_one_partition_begins_while_the_master_of_the_fleet_hangs(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal
) -> None:
    if cluster.master("rsq") is cluster.master("rsq:0"):
        with cluster.moving("rsq:0", cluster.other_master(cluster.master("rsq"))):
            pass
    with app.configured(partitions=1):
        words = send("a", 5)
        with hanging(cluster, "rsq"):
            worker = start_worker("-Q", "a")
            wait_until(lambda: all_ran(journal, words), LONG_S, "what is there to be read")
        wait_until(lambda: app.control.workers(), LONG_S, "the worker to be listed")
        assert worker.stop() == 0


@on_cluster
def test_leases_elsewhere_outlast_a_master_that_hangs(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    """For longer than they last: two workers, so that one would take what another has lost."""
    number = with_neither(cluster, "rsq")
    one = QUEUES[number - 1]
    for _ in range(2):
        start_worker("-Q", "a,b,c", concurrency=1, lease=6, **THREE)
    gate = tmp_path / "gate"
    runs = tasks.gate.apply_async((str(gate), "kept"), queue=one)
    wait_until(lambda: journal.count("began kept"), LONG_S, "it to begin")
    with hanging(cluster, f"rsq:{number}"), cluster.master(f"rsq:{QUEUES.index(one)}").client() as client:
        key = app.client.queue(one).keys.consumers

        def latest() -> float:
            return max(float(score) for _, score in client.zrange(key, 0, -1, withscores=True))

        first = latest()
        wait_until(lambda: latest() > first + 9_000, 2 * LONG_S, "more than a lease to pass")
        assert client.zcard(key) == 2
        gate.touch()
        assert runs.get(timeout=LONG_S) == "kept"
    assert journal.count("began kept") == 1


@on_cluster
def test_the_slot_of_a_partition_moves(app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal) -> None:
    start_worker("-Q", "a,b,c", **THREE)
    words = send("a", 5) + send("b", 5)
    wait_until(lambda: all_ran(journal, words), LONG_S, "them to run")
    home = cluster.master("rsq:1")
    with cluster.moving("rsq:1", cluster.master("rsq:0")):
        result = tasks.add.apply_async((1, 1), queue="a")
        assert result.get(timeout=LONG_S) == 2  # the others go on
    more = [f"moved-{number}" for number in range(20)]
    for word in more:
        tasks.note.apply_async((word,), queue="b")
    wait_until(lambda: all_ran(journal, more), LONG_S, "the calls in the slot that has moved")
    assert ran_once(journal, words + more)
    with cluster.moving("rsq:1", home):
        pass


def test_what_a_killed_worker_held_in_each_partition_runs_again(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    first = start_worker("-Q", "a,b,c", concurrency=3, lease=2, **THREE)
    gate = tmp_path / "gate"
    results = [tasks.gate.apply_async((str(gate), queue), queue=queue) for queue in QUEUES]
    wait_until(lambda: all(journal.count(f"began {queue}") for queue in QUEUES), LONG_S, "all to begin")
    first.kill()
    gate.touch()
    start_worker("-Q", "a,b,c", concurrency=3, lease=2, **THREE)
    assert [result.get(timeout=LONG_S) for result in results] == [*QUEUES]
    assert [journal.count(f"began {queue}") for queue in QUEUES] == [2, 2, 2]


@on_cluster
def test_a_master_that_hangs_keeps_nothing_of_the_others_at_the_end(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    """What runs there goes back in time, however long the lease."""
    number = with_neither(cluster, "rsq", "rsq:0")
    others = [queue for queue in QUEUES if queue != QUEUES[number]]
    first = start_worker("-Q", "a,b,c", "--shutdown-timeout", "1", concurrency=2, lease=600, **THREE)
    gate = tmp_path / "gate"
    results = [tasks.gate.apply_async((str(gate), queue), queue=queue) for queue in others]
    wait_until(lambda: all(journal.count(f"began {queue}") for queue in others), LONG_S, "both to begin")
    with hanging(cluster, f"rsq:{number}"):
        first.signal(signal.SIGTERM)
        assert first.process.wait(patience(30)) == 0
        gate.touch()
        start_worker("-Q", ",".join(others), concurrency=2, lease=600, **THREE)
        assert [result.get(timeout=LONG_S) for result in results] == others


@on_cluster
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_ends_though_what_it_runs_is_on_a_master_that_hangs(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str
) -> None:
    number = with_neither(cluster, "rsq")
    queue, gate = QUEUES[number], tmp_path / "gate"
    first = start_worker("-Q", "a,b,c", "-P", pool, "--shutdown-timeout", "1", lease=2, **THREE)
    runs = tasks.gate.apply_async((str(gate), "held"), queue=queue)
    wait_until(lambda: journal.count("began held"), LONG_S, "it to begin")
    with hanging(cluster, f"rsq:{number}"):
        first.signal(signal.SIGTERM)
        assert first.process.wait(patience(30)) == 0
    gate.touch()
    start_worker("-Q", queue, lease=2, **THREE)
    assert runs.get(timeout=LONG_S) == "held"
    assert journal.count("began held") == 2


# -- where a queue lies


def test_a_queue_that_was_never_used_is_pinned(app: App, start_worker: StartWorker, journal: Journal) -> None:
    pin(app.client, "a", 2)
    pin(app.client, "new", 2)
    words = send("a", 1)  # this process knew it in partition 0
    assert {each.queue: each.partition for each in placements(app.client)}["new"] == 2
    start_worker("-Q", "a,new", **THREE)
    wait_until(lambda: all_ran(journal, words), LONG_S, "it to run")
    with pytest.raises(SettingsError, match="queue a stays in partition 2: it holds calls"):
        pin(app.client, "a", 1)
    with pytest.raises(SettingsError, match="there is no partition 7, only 0, 1, 2"):
        pin(app.client, "b", 7)


def test_a_producer_that_knows_the_old_place_is_told(app: App) -> None:
    queue = app.client.target("b")
    other = App("other", url=app.settings.url, partitions=3)
    pin(other.client, "b", 0)
    pin(other.client, "b", 1)
    pin(other.client, "b", 0)
    other.close()
    assert app.client.target("b") is queue
    tasks.add.apply_async((1, 1), queue="b")
    assert app.client.target("b").partition == 0
    with app.client.link() as link:
        assert link.run(scripts.VACATE, queue.keys.prefix) == b"moved"
        assert link.call("XLEN", app.client.target("b").keys.stream()) == 1


def test_a_queue_that_a_worker_reads_is_not_pinned(app: App, start_worker: StartWorker) -> None:
    start_worker("-Q", "c", **THREE)
    with app.client.link() as link:
        consumers = app.client.queue("c").keys.consumers
        wait_until(lambda: link.call("ZCARD", consumers) == 2, LONG_S, "its children to have leases")
    with pytest.raises(SettingsError, match="a worker reads it"):
        pin(app.client, "c", 0)


def pinned_elsewhere(app: App, queue: str) -> None:
    """By another process than this one, which has known the queue in its old place."""
    app.client.target(queue)
    other = App("other", url=app.settings.url, partitions=3)
    pin(other.client, queue, 2)
    other.close()


def test_a_flow_for_a_queue_that_lies_elsewhere_now_is_refused(app: App) -> None:
    tasks.add.delay(1, 1)  # the default queue is used, in the first partition
    pinned_elsewhere(app, "a")
    with pytest.raises(SettingsError, match="calls for queue 'a' in partition 2, and flows lie with queue 'default'"):
        chain(tasks.add.si(1, 1), tasks.add.si(1, 2).set(queue="a")).delay()
    assert list(app.client.flows.ids()) == []


def test_what_is_added_to_a_batch_for_a_queue_that_lies_elsewhere_now_is_refused(app: App) -> None:
    tasks.add.delay(1, 1)
    with app.batch() as block:
        batch = app.batches[block.id]
        batch.add(tasks.add.si(1, 1))
        pinned_elsewhere(app, "a")
        with pytest.raises(SettingsError, match="calls for queue 'a' in partition 2"):
            batch.add(tasks.add.si(1, 2).set(queue="a"))
        batch.add(tasks.add.si(1, 3))
    found = app.client.flows.look(block.id)
    assert found is not None
    assert found.total == 2


def test_a_queue_to_which_a_flow_will_send_is_not_pinned(app: App) -> None:
    """Its calls come when others have ended."""
    chain(tasks.add.si(1, 1), tasks.add.si(1, 2).set(queue="a")).delay()
    with pytest.raises(SettingsError, match="queue a stays in partition 0: it holds calls, or has held some"):
        pin(app.client, "a", 2)
