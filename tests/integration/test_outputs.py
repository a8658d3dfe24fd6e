"""What tasks emit, with workers as processes, and faults on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App, Item, NewRun
from rsq.broker import scripts
from rsq.calls.output import Seen
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import output_tasks
from tests.integration.conftest import Journal, StartWorker
from tests.proxy import Proxy
from tests.servers import Server

PATIENT_S = 60.0
NAME = output_tasks.__name__


@pytest.fixture
def app(url: str) -> Iterator[App]:
    output_tasks.app.configure(url=url)
    yield output_tasks.app
    output_tasks.app.close()


def values(seen: list[Seen]) -> list[Any]:
    return [each.value if isinstance(each, Item) else each for each in seen]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_every_executor_emits(app: App, start_worker: StartWorker, pool: str) -> None:
    start_worker("-P", pool, name=NAME)
    for task in (output_tasks.counts, output_tasks.acounts, output_tasks.yields):
        results = [task.delay(300) for _ in range(5)]
        for result in results:
            assert values(list(result.stream(timeout=PATIENT_S))) == list(range(300))
            assert result.get(timeout=PATIENT_S) == 300


def test_a_worker_that_is_killed_leaves_a_run_and_the_next_one_is_told_apart(
    app: App, start_worker: StartWorker, tmp_path: Path
) -> None:
    start_worker(name=NAME, concurrency=1)
    result = output_tasks.dies_once.delay(100, str(tmp_path / "mark"))
    seen = list(result.stream(timeout=PATIENT_S))
    first, second = seen[: seen.index(NewRun(2))], seen[seen.index(NewRun(2)) + 1 :]
    assert values(first) == list(range(len(first)))
    assert values(second) == list(range(100))
    assert [each.cursor for each in second if isinstance(each, Item)] == [f"2-{len(first) + n + 1}" for n in range(100)]
    assert result.get(timeout=PATIENT_S) == 100


@pytest.mark.parametrize("fault", ["cut_request", "cut_reply", "truncate_reply"])
@pytest.mark.parametrize("step", [scripts.EMIT, scripts.COMPLETE], ids=lambda script: script.name)
def test_a_lost_reply_doubles_no_value(
    app: App, server: Server, start_worker: StartWorker, fault: str, step: scripts.Script
) -> None:
    with Proxy(server) as proxy:
        start_worker(worker_url=proxy.url, lease=3, name=NAME, concurrency=1)
        proxy.plan(fault, at=proxy.sha(step))
        result = output_tasks.counts.delay(200, 0.002)
        seen = list(result.stream(timeout=PATIENT_S))
        assert values(seen) == list(range(200))
        wait_until(lambda: proxy.pending == 0, 30, "the fault to strike")


@pytest.mark.parametrize(("pool", "task"), [("prefork", "floods"), ("threads", "floods"), ("asyncio", "afloods")])
def test_a_time_limit_ends_what_waits_for_a_server_that_is_away(
    own_server: MakeServer, start_worker: StartWorker, journal: Journal, pool: str, task: str
) -> None:
    server = own_server()
    app = output_tasks.app
    app.configure(url=server.url)
    start_worker("-P", pool, name=NAME, worker_url=server.url)
    result = app.tasks[f"{NAME}.{task}"].apply_async(output_length=1)
    next(result.stream(timeout=PATIENT_S))
    server.freeze()
    wait_until(lambda: journal.lines() == ["stopped"], 60, "the body to be told")
    server.thaw()
    assert result.get(timeout=PATIENT_S) == "stopped"
    app.close()


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_watchers_see_each_value_once_across_reconnects(
    app: App, redis: Any, start_worker: StartWorker, kind: str
) -> None:
    start_worker(name=NAME)
    result = output_tasks.counts.delay(1500, 0.001)
    done = threading.Event()

    def cut() -> None:
        while not done.wait(0.15):
            redis.client_kill_filter(_type="pubsub")

    async def watch() -> list[list[Seen]]:
        async def one() -> list[Seen]:
            return [seen async for seen in result.stream(timeout=PATIENT_S)]

        try:
            return list(await asyncio.gather(*(one() for _ in range(50))))
        finally:
            await app.aclose()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        each = asyncio.run(watch()) if kind == "coroutine" else [list(result.stream(timeout=PATIENT_S))]
    finally:
        done.set()
        cutter.join()
    for seen in each:
        assert values(seen) == list(range(1500))
