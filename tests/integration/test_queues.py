"""Whole queues: pausing and resuming, the order in which a worker takes from several, and where calls are routed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rsq import App, QueuePaused
from rsq.cli.main import main
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, nobody_reads, totals


def run(url: str, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["--url", url, *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def ask_again(app: App, queue: str = "default") -> None:
    """Have the next plain call ask whether its queue is open, as if a second had gone by."""
    app.client._sending._open_until.pop(app.client.queue(queue), None)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_says_which_queues_it_does_not_read(pool: str, app: App, start_worker: StartWorker) -> None:
    worker = start_worker("-Q", "celery", "-P", pool)
    line = "queues    celery; not read here, though calls go there: default"
    wait_until(lambda: line in worker.log(), 60, "its first lines")


# -- pause


def test_a_paused_queue_hands_out_nothing(
    app: App, url: str, journal: Journal, start_worker: StartWorker, redis: Any
) -> None:
    start_worker("-Q", "default", concurrency=1)
    assert tasks.note.delay("before").get(timeout=20) == "before"
    assert run(url, "pause", "default") == "paused default\n"
    wait_until(lambda: nobody_reads(redis), 20, "the worker to hear of the pause")
    waiting = [tasks.note.delay(f"while {number}") for number in range(3)]
    late = tasks.note.apply_async(("delayed",), countdown=0.01)
    start_worker("-Q", "default,other")  # one that starts later honours it, too, and goes on with other queues
    assert tasks.note.apply_async(("other",), queue="other").get(timeout=20) == "other"
    assert journal.lines() == ["ran before", "ran other"]
    assert totals(app).paused
    assert totals(app).ready + totals(app).delayed == 4

    assert run(url, "resume", "default", "other") == "resumed default\nother was not paused\n"
    assert sorted(str(handle.get(timeout=20)) for handle in waiting) == ["while 0", "while 1", "while 2"]
    assert late.get(timeout=20) == "delayed"
    assert not totals(app).paused


def test_a_pause_outlives_the_server(app: App, url: str, redis: Any) -> None:
    app.pause("default")
    assert redis.ttl(app.client.queue(None).keys.paused) == -1


def test_a_pause_outlives_restarts_of_server_and_worker(
    app: App, journal: Journal, start_worker: StartWorker, own_server: MakeServer
) -> None:
    server = own_server(appendonly=True)
    app.configure(url=server.url)
    assert start_worker("-Q", "default", worker_url=server.url).stop() == 0
    run(server.url, "pause", "default", "closed")
    run(server.url, "pause", "closed", "--refuse")
    waiting = tasks.note.delay("waited")
    server.restart()
    app.close()
    start_worker("-Q", "default,other", worker_url=server.url)
    assert tasks.note.apply_async(("other",), queue="other").get(timeout=30) == "other"
    with pytest.raises(QueuePaused):
        tasks.note.apply_async(("refused",), queue="closed")
    assert journal.lines() == ["ran other"]
    run(server.url, "resume", "default", "closed")
    assert waiting.get(timeout=30) == "waited"
    tasks.note.apply_async(("taken in",), queue="closed")


def test_status_shows_it(app: App, url: str) -> None:
    run(url, "pause", "never-used", "--refuse")
    run(url, "pause", "default")
    status = run(url, "status")
    assert "never-used (paused, refuses calls)" in status
    assert "default (paused)" in status
    queues = {each["queue"]: each for each in json.loads(run(url, "status", "--json"))["queues"]}
    assert (queues["never-used"]["paused"], queues["never-used"]["refusing"]) == (True, True)
    assert (queues["default"]["paused"], queues["default"]["refusing"]) == (True, False)


def test_a_closed_queue_refuses_every_way_of_sending(app: App, url: str) -> None:
    async def asend() -> None:
        try:
            await tasks.add.adelay(1, 1)
        finally:
            await app.aclose()

    tasks.add.delay(1, 1)
    app.pause("default", refuse=True)
    ask_again(app)
    refused = "queue 'default' is paused and refuses calls.*rsq resume default"
    for _ in range(3):  # a refusal is no answer that is remembered
        with pytest.raises(QueuePaused, match=refused):
            tasks.add.delay(1, 1)
    with pytest.raises(QueuePaused, match=refused):
        tasks.add.apply_async((1, 1), countdown=5)
    with pytest.raises(QueuePaused, match=refused):
        tasks.add.apply_async((1, 1), dedupe_key="k")
    with pytest.raises(QueuePaused, match=refused):
        tasks.add.map_async([(1, 1), (2, 2)])
    with pytest.raises(QueuePaused, match=refused):
        tasks.add.map_async([(1, 1), (2, 2)], max_length=9)
    with pytest.raises(QueuePaused, match=refused):
        asyncio.run(asend())
    assert tasks.add.apply_async((1, 1), queue="other").queue == "other"
    assert totals(app).ready == 1
    app.resume("default")
    tasks.add.delay(1, 1)
    tasks.add.map_async([(1, 1), (2, 2)])
    assert totals(app).ready == 4


def test_a_busy_producer_hears_of_it_within_a_second(app: App) -> None:
    tasks.add.delay(1, 1)
    app.pause("default", refuse=True)

    def refused() -> bool:
        try:
            tasks.add.delay(1, 1)
        except QueuePaused:
            return True
        return False

    wait_until(refused, 20, "a refusal")


def test_the_command_line_tells_of_a_refusal(app: App, url: str) -> None:
    app.pause("default", refuse=True)
    done = CliRunner().invoke(main, ["--url", url, "call", "some.task"])
    assert done.exit_code == 4
    assert "refuses calls" in done.output
    assert CliRunner().invoke(main, ["--url", url, "pause", "no queue"]).exit_code == 2


# -- several queues in one worker


MANY = 100_000


def test_a_nine_behind_a_hundred_thousand_zeros_is_next(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path
) -> None:
    start_worker(concurrency=1)
    busy = tasks.gate.delay(str(tmp_path / "open"), "busy")
    wait_until(lambda: journal.count("began busy") == 1, 20, "the child to be busy")
    tasks.word.map_async([("zero",)] * MANY)
    tasks.word.apply_async(("nine",), priority=9)
    (tmp_path / "open").touch()
    assert busy.get(timeout=20) == "busy"
    wait_until(lambda: len(journal.lines()) > 3, 20, "more to run")
    assert journal.lines()[:4] == ["began busy", "ended busy", "nine", "zero"]


def test_a_nine_overtakes_zeros_that_are_being_worked_off(
    app: App, journal: Journal, start_worker: StartWorker
) -> None:
    """Only what the children have fetched already goes before it: some hundreds of such short tasks."""
    for _ in range(2):
        start_worker(concurrency=2)
    tasks.word.map_async([("zero",)] * MANY)
    wait_until(lambda: journal.count("zero") > 1000, 30, "the zeros to run")
    ran = journal.count("zero")
    tasks.word.apply_async(("nine",), priority=9)
    before = wait_until(lambda: "nine" in (lines := journal.lines()) and lines.index("nine"), 60, "it to run")
    assert before - ran < MANY / 10
    assert totals(app).ready > 0


def backlog(**numbers: int) -> None:
    """So many calls in each queue, which journal the name of their queue."""
    for queue, number in numbers.items():
        tasks.word.map_async([(queue,)] * number, queue=queue)


def shares(journal: Journal, first: int) -> dict[str, int]:
    wait_until(lambda: len(journal.lines()) >= first, 120, f"{first} calls to run")
    return dict(Counter(journal.lines()[:first]))


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_weights_hold(app: App, journal: Journal, start_worker: StartWorker, pool: str) -> None:
    backlog(critical=6300, default=3300, low=1300)
    start_worker("-Q", "critical:6,default:3,low:1", "-P", pool)
    got = shares(journal, 10_000)
    assert got["critical"] == pytest.approx(6000, rel=0.05)
    assert got["default"] == pytest.approx(3000, rel=0.05)
    assert got["low"] == pytest.approx(1000, rel=0.05)


def test_weights_hold_for_long_tasks(app: App, journal: Journal, start_worker: StartWorker, redis: Any) -> None:
    for queue in ("a", "b"):
        tasks.word.map_async([(queue, 0.05)] * 60, queue=queue)
    start_worker("-Q", "a:3,b:1", concurrency=1)
    assert shares(journal, 60) == {"a": pytest.approx(45, abs=2), "b": pytest.approx(15, abs=2)}


def test_an_empty_queue_holds_nobody_back(app: App, journal: Journal, start_worker: StartWorker) -> None:
    backlog(low=2000)
    start_worker("-Q", "critical:9,low:1", concurrency=1)
    assert shares(journal, 2000) == {"low": 2000}
    backlog(critical=1)
    wait_until(lambda: journal.count("critical"), 20, "the critical call to run")


def test_a_paused_queue_holds_nobody_back(app: App, journal: Journal, start_worker: StartWorker) -> None:
    app.pause("critical")
    backlog(critical=500, low=2000)
    start_worker("-Q", "critical:9,low:1", concurrency=1)
    assert shares(journal, 2000) == {"low": 2000}


def test_without_weights_the_order_is_strict(app: App, journal: Journal, start_worker: StartWorker) -> None:
    backlog(second=1000, first=1000)
    start_worker("-Q", "first,second", concurrency=1)
    assert shares(journal, 1000) == {"first": 1000}
    assert shares(journal, 2000) == {"first": 1000, "second": 1000}
