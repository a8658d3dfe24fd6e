"""Requests and replies that get lost on the wire: nothing lost, nothing twice, nobody hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from rsq import App, BrokerUnavailable, ResultTimeout
from rsq.broker import scripts
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, settled, totals
from tests.proxy import Proxy
from tests.servers import Server, on_cluster

FAULTS = ["cut_request", "cut_reply", "truncate_reply"]


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server) as running:
        yield running


@pytest.fixture
def producer(app: App, proxy: Proxy) -> Iterator[App]:
    """The app, sending through the proxy, with a connection that stands already."""
    app.configure(url=proxy.url, broker_timeout_s=5.0)
    app.client.queue_names()
    tasks.add.apply_async((0, 0), queue="warm-up", task_id="warm-up")
    yield app
    app.configure(broker_timeout_s=5.0)


def held(app: App) -> int:
    now = totals(app)
    return now.ready + now.running + now.delayed


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"countdown": 60}, {"priority": 3}, {"dedupe_key": "k"}, {"task_id": "own"}, {"max_length": 5}],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_send_arrives_once(producer: App, proxy: Proxy, fault: str, options: dict[str, Any], times: int) -> None:
    proxy.plan(*[fault] * times)
    handle = tasks.add.apply_async((1, 1), **options)
    assert not handle.duplicate
    assert proxy.pending == 0
    assert held(producer) == 1


def gives_up() -> AbstractContextManager[Any]:
    """A producer whose try hangs. In a cluster it tries again in time, since another node may have taken over."""
    return nullcontext() if on_cluster() else pytest.raises(BrokerUnavailable)


def test_a_send_that_is_held_up_does_not_arrive_after_its_repeat(producer: App, proxy: Proxy) -> None:
    producer.configure(broker_timeout_s=2)
    tasks.add.apply_async((0, 0), queue="warm-up")
    proxy.plan("hold_request")
    with gives_up():
        tasks.add.apply_async((1, 1), task_id="held-up")
    assert tasks.add.apply_async((1, 1), task_id="held-up").id == "held-up"
    assert proxy.release() == 0
    assert held(producer) == 1


async def test_an_async_send_that_is_held_up_does_not_arrive_after_its_repeat(producer: App, proxy: Proxy) -> None:
    producer.configure(broker_timeout_s=2)
    await tasks.add.aapply_async((0, 0), queue="warm-up")
    proxy.plan("hold_request")
    with gives_up():
        await tasks.add.aapply_async((1, 1), task_id="held-up")
    assert (await tasks.add.aapply_async((1, 1), task_id="held-up")).id == "held-up"
    assert proxy.release() == 0
    assert held(producer) == 1


def test_a_read_that_is_held_up_takes_nothing_after_its_repeat(
    app: App, proxy: Proxy, start_worker: StartWorker
) -> None:
    worker = start_worker(worker_url=proxy.url, concurrency=1)
    proxy.plan("hold_request", at=b"XREADGROUP")
    wait_until(lambda: "trying again" in worker.log(), 30, "the read to be given up")
    assert tasks.add.delay(1, 2).get(timeout=30) == 3
    # Of the old read nobody would ever see the reply.
    assert proxy.release() == 0
    handles = tasks.add.map_async([(n, n) for n in range(20)])
    assert [handle.get(timeout=30) for handle in handles] == [2 * n for n in range(20)]
    wait_until(lambda: settled(app), what="nothing to be pending")


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_async_send_arrives_once(producer: App, proxy: Proxy, fault: str) -> None:
    await tasks.add.aapply_async((0, 0), queue="warm-up")
    proxy.plan(fault)
    await tasks.add.adelay(1, 1)
    assert proxy.pending == 0
    assert held(producer) == 1
    await producer.aclose()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("options", [{}, {"dedupe_key": "{a}"}], ids=["plain", "dedupe"])
def test_a_bulk_arrives_once(producer: App, proxy: Proxy, fault: str, options: dict[str, Any]) -> None:
    proxy.plan(fault)
    handles = tasks.add.map_async([(number, 1) for number in range(300)], **options)
    assert len({handle.id for handle in handles}) == 300
    assert proxy.pending == 0
    assert held(producer) == 300


@pytest.mark.parametrize("fault", ["cut_reply", "truncate_reply"])
def test_a_send_whose_call_has_ended_already_is_not_sent_again(
    producer: App, proxy: Proxy, fault: str, start_worker: StartWorker, journal: Journal
) -> None:
    # The worker is quick: it may have run the call, and dropped all trace of it, before the repeat.
    start_worker(concurrency=1)
    for number in range(20):
        proxy.plan(fault)
        tasks.quiet.delay(number)
        tasks.note.delay(f"kept-{number}")
    wait_until(lambda: settled(producer), 20, "all to be settled")
    assert sorted(journal.lines()) == sorted([f"ran {n}" for n in range(20)] + [f"ran kept-{n}" for n in range(20)])


def test_a_send_that_gave_up_may_be_sent_again_under_its_id(producer: App, proxy: Proxy) -> None:
    producer.configure(broker_timeout_s=0.5)
    tasks.add.apply_async((0, 0), queue="warm-up")
    proxy.plan(*["cut_reply"] * 100)
    with pytest.raises(BrokerUnavailable, match=r"to send it again without doubling it, pass task_id=") as caught:
        tasks.add.delay(1, 1)
    proxy._faults.clear()
    assert caught.value.task_id is not None
    assert tasks.add.apply_async((1, 1), task_id=caught.value.task_id).id == caught.value.task_id
    assert held(producer) == 1


def test_a_silent_server_is_given_up_at_the_deadline(producer: App, proxy: Proxy) -> None:
    producer.configure(broker_timeout_s=1.0)
    tasks.add.apply_async((0, 0), queue="warm-up")
    proxy.plan(*["stall_reply"] * 10)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        tasks.add.delay(1, 1)
    assert time.monotonic() - began >= 0.9


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wait_survives(producer: App, proxy: Proxy, fault: str, start_worker: StartWorker, tmp_path: Any) -> None:
    start_worker(concurrency=1)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    got: list[str] = []
    waiter = threading.Thread(target=lambda: got.append(handle.get(timeout=30)))
    proxy.plan(fault)
    waiter.start()
    wait_until(lambda: proxy.pending == 0, what="the fault to strike")
    (tmp_path / "open").touch()
    waiter.join(30)
    assert got == ["gate"]


def test_a_wait_on_a_silent_connection_ends_in_time(producer: App, proxy: Proxy) -> None:
    handle = tasks.add.delay(1, 1)
    for fault in (["stall_reply"], ["stall_reply", "stall_reply"]):
        proxy.plan(*fault)
        began = time.monotonic()
        with pytest.raises((ResultTimeout, BrokerUnavailable)):
            handle.get(timeout=1)
        # It may be late by a thread's sleep, not by the deadline of some other call (5 s).
        assert 0.9 <= time.monotonic() - began < 4


@pytest.mark.parametrize("fault", [*FAULTS, "stall_reply"])
def test_a_worker_gets_over_one_fault_at_any_step(
    app: App, server: Server, start_worker: StartWorker, fault: str, journal: Journal
) -> None:
    """One fault after the other, each when the worker is at work: whatever step it hits, the outcome is the same."""
    with Proxy(server) as proxy:
        start_worker(concurrency=1, worker_url=proxy.url, lease=3)
        for number in range(6):
            handles = tasks.add.map_async([(n, 0) for n in range(100)])
            proxy.plan(fault)
            assert [handle.get(timeout=60) for handle in handles] == list(range(100))
            wait_until(lambda number=number: proxy.struck > number, 30, "the fault to strike")  # type: ignore[misc]
        wait_until(lambda: settled(app), 30, "all to be settled")
        assert totals(app).counters["succeeded"] == 600
        assert totals(app).dead == 0


STEPS = [
    *(scripts.REGISTER, scripts.FETCH, scripts.TAKE, scripts.BEGIN, scripts.COMPLETE, scripts.RETRY, scripts.BURY),
    *(scripts.RELEASE, scripts.RENEW, scripts.RECONCILE, scripts.RETIRE),
]
"""Every script that a worker calls."""

BATCH = [(number, 0.4 if number == 150 else 0.0) for number in range(200)]
"""Calls that take no time, and a long one among them."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_gets_over_a_fault_at_each_step(
    app: App, server: Server, start_worker: StartWorker, fault: str, journal: Journal
) -> None:
    with Proxy(server) as proxy:
        worker = start_worker(concurrency=1, worker_url=proxy.url, lease=3)
        batches = 0
        for step in STEPS:
            proxy.plan(fault, at=proxy.sha(step))
            # All that a call can come to; those that were fetched behind the slow one are handed back.
            brief = tasks.brief.map_async(BATCH)
            batches += 1
            early = tasks.at_most_once.delay(step.name)
            again, limited, dead = tasks.flaky.delay(1), tasks.limited.delay(7), tasks.flaky.delay(9)
            assert [handle.get(timeout=60) for handle in brief] == [*range(len(BATCH))]
            assert (early.get(timeout=60), again.get(timeout=60), limited.get(timeout=60)) == (step.name, 2, 7)
            with pytest.raises(ValueError, match="attempt 3"):
                dead.get(timeout=60)
            wait_until(lambda: settled(app), 30, "all to be settled")
            # A crash: its supervisor hands the call on, and another child registers.
            assert tasks.die_until.delay(1).get(timeout=60) == 1
            if step is scripts.RELEASE:
                # How much is fetched ahead follows from measured times: perhaps nothing was, that time.
                while proxy.pending:
                    assert len([handle.get(timeout=60) for handle in tasks.brief.map_async(BATCH)]) == len(BATCH)
                    batches += 1
            wait_until(lambda: proxy.pending == 0, 30, f"the fault to strike at {step.name}")
            wait_until(lambda: settled(app), 30, "all to be settled")
        number = len(STEPS)
        succeeded = batches * len(BATCH) + 4 * number
        assert ended(app) == {"succeeded": succeeded, "retried": 3 * number, "dead": number, "crashed": number}
        assert [line for line in journal.lines() if line.startswith("ran")] == [f"ran {step.name}" for step in STEPS]
        assert worker.stop() == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_worker_gets_over_many_faults(
    app: App, server: Server, start_worker: StartWorker, seed: int, journal: Journal
) -> None:
    with Proxy(server) as proxy:
        start_worker(concurrency=2, worker_url=proxy.url, lease=3)
        proxy.at_random(0.05, seed)
        handles = [tasks.add.delay(number, 0) for number in range(1500)]
        quiet = [tasks.quiet.delay(number) for number in range(300)]
        flaky = [tasks.flaky.delay(1) for _ in range(20)]
        assert [handle.get(timeout=90) for handle in handles] == list(range(1500))
        assert [handle.get(timeout=60) for handle in flaky] == [2] * 20
        # How many strike follows from how often the worker speaks: it goes on until there were enough.
        more = 0
        while proxy.struck <= 5:
            assert tasks.add.delay(more, 0).get(timeout=90) == more
            more += 1
        wait_until(lambda: settled(app), 60, "all to be settled")
        proxy.at_random(0, seed)
        assert proxy.struck > 5
        assert len(quiet) == 300
        now = totals(app)
        assert (now.counters["succeeded"], now.counters["retried"], now.dead) == (1820 + more, 20, 0)
        assert {line for line in journal.lines() if line.startswith("ran")} == {f"ran {n}" for n in range(300)}
