"""The peer is gone without a word: what is sent is lost, and no connection is ever closed. Noticed all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App, BrokerUnavailable
from tests.helpers import patience, wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, settled
from tests.proxy import Proxy
from tests.servers import Server

NOTICED_S = 15
"""By then everybody has noticed and works on new connections."""


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server) as running:
        yield running


@pytest.fixture
def via_proxy(app: App, proxy: Proxy) -> Iterator[App]:
    """The app, with its connections through the proxy."""
    app.configure(url=proxy.url, broker_timeout_s=3.0)
    yield app
    app.configure(broker_timeout_s=5.0)


def test_an_idle_worker_notices(app: App, start_worker: StartWorker, proxy: Proxy) -> None:
    worker = start_worker(concurrency=2, worker_url=proxy.url)
    for turn in range(2):
        assert tasks.add.delay(turn, 1).get(timeout=patience(20)) == turn + 1
        proxy.swallow()
        # They are delivered into the void, or to a child that has noticed.
        handles = tasks.add.map_async([(number, 0) for number in range(50)])
        assert [handle.get(timeout=patience(NOTICED_S)) for handle in handles] == list(range(50))
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert ended(app) == {"succeeded": 102}
    assert worker.stop() == 0


def test_a_busy_worker_notices(
    app: App, start_worker: StartWorker, proxy: Proxy, journal: Journal, tmp_path: Path
) -> None:
    worker = start_worker(concurrency=1, worker_url=proxy.url)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    proxy.swallow()
    (tmp_path / "open").touch()
    assert handle.get(timeout=patience(NOTICED_S)) == "gate"
    assert journal.count("began gate") == 1
    wait_until(lambda: settled(app), 20, "it to be settled")
    assert ended(app) == {"succeeded": 1}
    assert "lost the lease" not in worker.log()
    assert worker.stop() == 0


def test_a_producer_notices_within_its_deadline(via_proxy: App, proxy: Proxy) -> None:
    tasks.add.delay(0, 0)
    proxy.swallow()
    try:
        handle = tasks.add.delay(1, 1)
    except BrokerUnavailable as error:
        handle = tasks.add.apply_async((1, 1), task_id=error.task_id)
    assert handle.state == "PENDING"


def waits(redis: Any, proxy: Proxy, gate: Path, wait: Callable[[], None]) -> None:
    """What `wait` waits for is pushed while its connections are half open."""
    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()

    def in_vain() -> bool:
        """It has subscribed, and has looked."""
        return redis.pubsub_channels("*:result:*") and "get" in {client["cmd"] for client in redis.client_list()}

    wait_until(in_vain, what="the subscription")
    proxy.swallow()
    gate.touch()
    waiter.join(patience(2 * NOTICED_S))
    assert not waiter.is_alive()


def test_who_waits_for_a_result_notices(
    via_proxy: App, start_worker: StartWorker, proxy: Proxy, tmp_path: Path, url: str, redis: Any
) -> None:
    start_worker(concurrency=1, worker_url=url)
    gate = tmp_path / "open"
    handle = tasks.gate.delay(str(gate))
    got: list[str] = []
    waits(redis, proxy, gate, lambda: got.append(handle.get()))
    assert got == ["gate"]


def test_a_coroutine_that_waits_for_a_result_notices(
    via_proxy: App, start_worker: StartWorker, proxy: Proxy, tmp_path: Path, url: str, redis: Any
) -> None:
    start_worker(concurrency=1, worker_url=url)
    gate = tmp_path / "open"
    handle = tasks.gate.delay(str(gate))
    got: list[str] = []

    async def wait() -> None:
        got.extend(await asyncio.gather(handle.aget(), via_proxy.AsyncResult(handle.id, queue=handle.queue).aget()))
        await via_proxy.client.leave_loop()

    waits(redis, proxy, gate, lambda: asyncio.run(wait()))
    assert got == ["gate", "gate"]
