"""Sentinels, a master that fails, replicas that take over, and producers that wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rsq import App, State, chain
from rsq.errors import BrokerRefused, BrokerUnavailable, NotReplicated
from tests.conftest import MakeServer
from tests.helpers import patience, wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled
from tests.sentinels import SERVICE, SETTLE_S, Sentinel, Service, role
from tests.servers import Server, find_binary

PATIENT_S = 60.0
"""A producer's deadline that no failover exceeds, however slow the machine."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(find_binary()) as running:
        yield running


@pytest.fixture
def app(service: Service) -> Iterator[App]:
    with tasks.app.configured(url=service.url, broker_timeout_s=PATIENT_S):
        yield tasks.app


@pytest.fixture
def alone(own_server: MakeServer) -> Iterator[tuple[App, Server]]:
    """An app on a master that has no replica, and waits for none as long as nobody says so."""
    server = own_server(tcp=True)
    with tasks.app.configured(url=server.url, broker_timeout_s=patience(1.0)):
        yield tasks.app, server


def counted(server: Server, command: str) -> int:
    """How often the server has carried out a command."""
    with server.client() as client:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


# -- finding the master


async def test_all_sides_find_the_master_through_the_sentinels(start_worker: StartWorker) -> None:
    with Service(find_binary(), password="data", sentinel_password="watch") as service:
        worker = start_worker(worker_url=service.url)
        with tasks.app.configured(url=service.url):
            assert tasks.add.delay(1, 2).get(timeout=30) == 3
            assert await (await tasks.aadd.adelay(3, 4)).aget(timeout=30) == 7
            assert [each.get(timeout=30) for each in tasks.add.map_async([(1, 1), (2, 2)])] == [2, 4]
            await tasks.app.aclose()
        assert worker.stop() == 0
        assert "redis+sentinel://***@127.0.0.1:" in worker.log()
        assert "watch" not in worker.log()


async def test_sentinels_that_are_silent_cost_a_call_little(service: Service) -> None:
    for sentinel in service.sentinels[:2]:
        sentinel.freeze()
    with tasks.app.configured(url=service.url):
        assert not tasks.add.delay(1, 2).duplicate
        assert not (await tasks.add.adelay(1, 2)).duplicate
        await tasks.app.aclose()


async def test_errors_tell_what_is_wrong(service: Service) -> None:
    with Service(find_binary(), sentinel_password="watch") as guarded:
        for url, error, text in (
            (service.url.replace(f"/{SERVICE}/", "/shoe/"), BrokerRefused, "no sentinel knows a service 'shoe'"),
            (guarded.url.replace("watch", "wrong"), BrokerRefused, "it takes sentinel_username and sentinel_password"),
            (guarded.url.partition("?")[0], BrokerRefused, "it takes sentinel_username and sentinel_password"),
            ("redis+sentinel://127.0.0.1:1,[::1]:1/shop", BrokerUnavailable, r"no sentinel answered \(127.0.0.1:1: .*"),
        ):
            with tasks.app.configured(url=url, broker_timeout_s=0.5):
                with pytest.raises(error, match=text) as caught:
                    tasks.add.delay(1, 2)
                assert "wrong" not in str(caught.value)
                with pytest.raises(error, match=text):
                    await tasks.add.adelay(1, 2)
                await tasks.app.aclose()


async def test_a_node_that_says_it_is_no_master_is_not_used(service: Service) -> None:
    misled = Sentinel(find_binary(), service.replica().port)
    try:
        wait_until(misled.answers, what="the sentinel to answer")
        url = f"redis+sentinel://127.0.0.1:{misled.port}/{SERVICE}"
        with tasks.app.configured(url=url, broker_timeout_s=0.5):
            with pytest.raises(BrokerUnavailable, match="which says that it is a slave: a failover is under way"):
                tasks.add.delay(1, 2)
            with pytest.raises(BrokerUnavailable, match="which says that it is a slave: a failover is under way"):
                await tasks.add.adelay(1, 2)
            await tasks.app.aclose()
        # With others to ask it does no harm.
        with tasks.app.configured(url=service.url.replace("://", f"://127.0.0.1:{misled.port},")):
            assert not tasks.add.delay(1, 2).duplicate
    finally:
        misled.close()


# -- failover


class Load:
    """A thread that sends calls of `note` until it is stopped.

    replicated  words of calls that returned: a replica has them
    stored      words of calls of which only the master is known to have them
    """

    def __init__(self) -> None:
        self.replicated: dict[str, Any] = {}
        self.stored: dict[str, str] = {}
        self.failed: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            word = f"w{number}"
            try:
                self.replicated[word] = tasks.note.apply_async((word,), wait_replicas=1)
            except NotReplicated as error:
                self.stored[word] = error.task_id
            except Exception as error:
                self.failed.append(error)
                return

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_killed_master_is_replaced_and_loses_nothing_that_a_replica_had(
    service: Service, app: App, journal: Journal, start_worker: StartWorker
) -> None:
    start_worker(worker_url=service.url, lease=3)
    # Half of the deadline is the wait for a replica, of which there is none for a while.
    with app.configured(broker_timeout_s=10.0):
        load = Load()
        try:
            wait_until(lambda: len(load.replicated) >= 50, 60, "calls before the failover")
            old = service.master()
            old.kill()
            new = service.await_failover(old)
            wait_until(lambda: load.stored or load.failed, 60, "a call to the new master, which has no replica")
            assert tasks.note.apply_async(("after",), wait_replicas=0).get(timeout=60) == "after"
            old.start()
            service.settle()
            assert role(old) == "slave"
            before = len(load.replicated)
            wait_until(lambda: len(load.replicated) >= before + 50, 60, "calls after the failover")
        finally:
            load.stop()
    assert load.failed == []
    assert service.master() is new
    for word, handle in load.replicated.items():
        assert handle.get(timeout=60) == word
        assert handle.state is State.SUCCESS
    wait_until(lambda: settled(app), 60, "all to end")
    assert set(load.replicated) <= {line.removeprefix("ran ") for line in journal.lines()}
    with app.client.link() as link:
        assert link.call("XLEN", app.client.queue(None).keys.dead) == 0


async def test_coroutines_get_over_a_failover(service: Service, app: App, start_worker: StartWorker) -> None:
    start_worker(worker_url=service.url, lease=3)
    assert await (await tasks.aadd.aapply_async((1, 2), wait_replicas=1)).aget(timeout=60) == 3
    old = service.master()
    old.kill()
    assert await (await tasks.aadd.adelay(3, 4)).aget(timeout=60) == 7
    assert service.await_failover(old) is not old
    await app.aclose()


def test_a_master_that_hangs_is_replaced(service: Service, start_worker: StartWorker, journal: Journal) -> None:
    start_worker(worker_url=service.url, lease=3)
    with tasks.app.configured(url=service.url, broker_timeout_s=5.0):
        assert tasks.note.delay("before").get(timeout=30) == "before"
        old = service.master()
        old.freeze()
        service.await_failover(old)
        handle = tasks.note.apply_async(("after",), task_id="after")
        assert handle.get(timeout=60) == "after"
    assert journal.count("ran after") == 1


async def test_a_send_that_is_under_way_when_the_master_hangs_goes_to_its_successor(service: Service) -> None:
    """However long its deadline is."""
    with tasks.app.configured(url=service.url, broker_timeout_s=600.0):
        tasks.note.delay("before")
        await tasks.aadd.adelay(1, 2)
        old = service.master()
        old.freeze()
        with ThreadPoolExecutor() as pool:
            sent = pool.submit(tasks.note.delay, "sync")
            bulk = pool.submit(tasks.note.map_async, [("one",), ("two",)])
            asent = asyncio.create_task(tasks.aadd.adelay(3, 4))
            ids = [(await asyncio.wait_for(asyncio.wrap_future(sent), 120)).id, (await asyncio.wait_for(asent, 120)).id]
            ids += [each.id for each in await asyncio.wait_for(asyncio.wrap_future(bulk), 120)]
        new = service.await_failover(old)
        with new.client() as client:
            found = [fields[b"id"].decode() for _, fields in client.xrange(tasks.app.client.queue(None).keys.stream())]
        await tasks.app.aclose()
    assert [found.count(task_id) for task_id in ids] == [1] * 4


def test_a_replica_that_takes_over_without_the_group_is_set_up_anew(
    service: Service, app: App, start_worker: StartWorker
) -> None:
    worker = start_worker(worker_url=service.url, lease=3)
    assert tasks.add.delay(1, 2).get(timeout=30) == 3
    old = service.master()
    old.kill()
    new = service.await_failover(old)
    with new.client() as client:
        client.flushall()
    assert tasks.add.delay(3, 4).get(timeout=60) == 7
    assert worker.process.poll() is None


async def test_a_plain_url_at_a_node_that_became_a_replica_is_an_error_and_no_hang(
    service: Service, start_worker: StartWorker
) -> None:
    old = service.master()
    worker = start_worker(worker_url=old.url)
    with tasks.app.configured(url=old.url, broker_timeout_s=1.0):
        assert tasks.add.delay(1, 2).get(timeout=30) == 3
        assert await (await tasks.aadd.adelay(1, 2)).aget(timeout=30) == 3
        service.sentinels[0].fail_over()
        service.await_failover(old)
        wait_until(lambda: role(old) == "slave", SETTLE_S, "the old master to follow the new one")
        with pytest.raises(BrokerUnavailable, match=r"cannot serve now: .*read only replica"):
            tasks.add.delay(1, 2)
        with pytest.raises(BrokerUnavailable, match=r"cannot serve now: .*read only replica"):
            tasks.add.map_async([(1, 2), (3, 4)])
        with pytest.raises(BrokerUnavailable, match=r"cannot serve now: .*read only replica"):
            await tasks.aadd.adelay(1, 2)
        await tasks.app.aclose()
    wait_until(lambda: "cannot serve now" in worker.log(), 30, "the worker to say so")
    assert worker.process.poll() is None


# -- waiting for replicas


async def test_too_few_replicas_are_told_and_the_call_stands(
    alone: tuple[App, Server], journal: Journal, start_worker: StartWorker
) -> None:
    app, server = alone
    with app.configured(wait_replicas=1):
        with pytest.raises(NotReplicated, match="0 of 1 replicas have confirmed") as plain:
            tasks.note.delay("plain")
        with pytest.raises(NotReplicated) as delayed:
            tasks.note.apply_async(("delayed",), countdown=0.01)
        with pytest.raises(NotReplicated) as awaited:
            await tasks.note.adelay("awaited")
        # Sent again under its id it is not doubled; whether replicas have it now is asked again.
        with pytest.raises(NotReplicated):
            tasks.note.apply_async(("plain",), task_id=plain.value.task_id)
        assert (
            tasks.note.apply_async(("plain",), task_id=plain.value.task_id, wait_replicas=0).id == plain.value.task_id
        )
        with pytest.raises(NotReplicated):
            await tasks.note.aapply_async(("awaited",), task_id=awaited.value.task_id)
        await app.aclose()
    start_worker(worker_url=server.url)
    for error, word in ((plain, "plain"), (delayed, "delayed"), (awaited, "awaited")):
        assert app.AsyncResult(error.value.task_id).get(timeout=30) == word
    wait_until(lambda: settled(app), 30, "all to end")
    assert sorted(journal.lines()) == ["ran awaited", "ran delayed", "ran plain"]


def test_a_bulk_waits_once_in_each_thousand_and_no_more_when_it_was_in_vain(alone: tuple[App, Server]) -> None:
    app, server = alone
    text = r"these calls of .*note are stored on the master"
    with app.configured(wait_replicas=1), pytest.raises(NotReplicated, match=text) as caught:
        tasks.note.map_async([(word,) for word in range(2500)])
    assert len(set(caught.value.task_ids)) == 2500
    assert counted(server, "wait") == 1
    with app.client.link() as link:
        assert link.call("XLEN", app.client.queue(None).keys.stream()) == 2500


async def test_replicas_are_waited_for_once_on_a_server_that_knows_no_script_yet(alone: tuple[App, Server]) -> None:
    app, server = alone
    with app.configured(wait_replicas=1), server.client() as client:
        client.script_flush()
        with pytest.raises(NotReplicated):
            tasks.note.delay("a")
        assert counted(server, "wait") == 1
        client.script_flush()
        with pytest.raises(NotReplicated):
            chain(tasks.note.s("a"), tasks.add.si(1, 2)).delay()
        assert counted(server, "wait") == 2
        client.script_flush()
        with pytest.raises(NotReplicated):
            app.publish("published", {"a": "b"}, id="a")
        client.script_flush()
        with app.configured(namespace="other"), pytest.raises(NotReplicated):  # of a process that has sent nothing yet
            await tasks.note.adelay("a")
        await app.aclose()
    assert counted(server, "wait") == 4


async def test_flows_wait_for_replicas_as_calls_do(alone: tuple[App, Server], start_worker: StartWorker) -> None:
    """What was started stands, and so does what was added to a batch."""
    app, server = alone
    canvas = tasks.add.s(1, 2) | tasks.add.s(3)
    started = canvas.freeze()
    text = r"what was sent of flow \S+ is stored on the master, .*: 0 of 1 replicas have confirmed"
    with app.configured(wait_replicas=1):
        with pytest.raises(NotReplicated, match=text):
            canvas.delay()
        with pytest.raises(NotReplicated, match=text):
            await chain(tasks.add.s(1, 2), tasks.add.s(3)).adelay()
        await app.aclose()
    with app.batch() as batch, app.configured(wait_replicas=1), pytest.raises(NotReplicated, match=text):
        app.batches[batch.id].add(tasks.add.s(1, 2))
    start_worker(worker_url=server.url)
    assert app.AsyncResult(started.id).get(timeout=30) == 6
    assert batch.wait(30).done == 1


async def test_nothing_is_asked_of_replicas_without_the_setting(alone: tuple[App, Server]) -> None:
    app, server = alone
    tasks.note.delay("a")
    tasks.note.map_async([("b",), ("c",)])
    tasks.note.apply_async(("d",), countdown=60)
    await tasks.note.adelay("e")
    await tasks.note.aapply_async(("f",), countdown=60)
    chain(tasks.add.s(1, 2), tasks.add.s(3)).delay()
    await app.aclose()
    assert counted(server, "wait") == 0
    with server.client() as client:
        assert not client.exists(app.client.queue(None).keys.barrier)


async def test_a_replica_confirms(service: Service, app: App) -> None:
    master = service.master()
    with app.configured(wait_replicas=1):
        sent = [
            tasks.note.delay("a"),
            *tasks.note.map_async([("b",), ("c",)]),
            tasks.note.apply_async(("d",), dedupe_key="d"),
            await tasks.note.adelay("e"),
        ]
        assert tasks.note.apply_async(("d",), dedupe_key="d").duplicate
        await app.aclose()
    assert counted(master, "wait") == 5
    with service.replica().client() as client:
        entries = client.xrange(app.client.queue(None).keys.stream())
    assert {handle.id for handle in sent} <= {fields[b"id"].decode() for _, fields in entries}


def test_a_repeat_asks_the_replicas_anew(service: Service, app: App) -> None:
    replica = service.replica()
    with app.configured(broker_timeout_s=1.0, wait_replicas=1):
        assert tasks.note.delay("before").id
        replica.freeze()
        with pytest.raises(NotReplicated) as caught:
            tasks.note.delay("a")
        task_id = caught.value.task_id
        # On a connection of its own, which has written nothing of this call.
        with pytest.raises(NotReplicated):
            tasks.note.apply_async(("a",), task_id=task_id)
        replica.thaw()
    service.settle()
    handle = tasks.note.apply_async(("a",), task_id=task_id, wait_replicas=1)
    assert handle.id == task_id
