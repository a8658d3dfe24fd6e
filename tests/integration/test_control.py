"""Revoking calls: `AsyncResult.revoke`, `app.revoke` and `rsq revoke`."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rsq import App, AsyncResult, State, TaskRevoked, codec
from rsq.calls.message import Message
from rsq.cli.main import main
from rsq.keys import GROUP, RELEASED
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, kill, settled, totals

POOLS = ["prefork", "threads", "asyncio", "solo"]


def run(url: str, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["--url", url, *arguments])
    assert done.exit_code == code, done.output
    return done.output


# -- revoke


def test_a_delayed_call_ends_at_once(app: App) -> None:
    handle = tasks.add.apply_async((1, 1), countdown=600)
    handle.revoke()
    assert handle.state is State.REVOKED
    with pytest.raises(TaskRevoked, match="was not run: revoked"):
        handle.get(timeout=20)
    assert totals(app).delayed == 0
    assert ended(app) == {"revoked": 1}


@pytest.mark.parametrize("pool", POOLS)
def test_a_waiting_call_never_starts(app: App, journal: Journal, start_worker: StartWorker, pool: str) -> None:
    handles = [tasks.note.delay(number) for number in range(300)]
    urgent = tasks.note.apply_async(("urgent",), priority=5)
    once = tasks.at_most_once.delay("once")
    quiet = tasks.quiet.delay("quiet")
    gone: list[AsyncResult[Any]] = [*handles[::3], urgent, once, quiet]
    assert set(app.revoke(*(handle.id for handle in gone)).values()) == {"marked"}
    start_worker("-P", pool)
    for handle in gone[:-1]:
        with pytest.raises(TaskRevoked):
            handle.get(timeout=30)
    wait_until(lambda: settled(app), 30, "all to be settled")
    assert quiet.state is State.REVOKED
    assert sorted(journal.lines()) == sorted(f"ran {number}" for number in range(300) if number % 3)
    assert ended(app) == {"succeeded": 200, "revoked": 103}
    assert urgent.state is State.REVOKED


def test_an_idle_worker_looks_at_what_it_is_given(app: App, journal: Journal, start_worker: StartWorker) -> None:
    """It blocks in a read that no script is behind. The calls are sent by a plain XADD, so the marks stay."""
    start_worker(concurrency=1)
    for number in range(30):
        app.revoke(f"own-{number}", queue="default")
        queue, handle = app.client.queue(None), app.AsyncResult(f"own-{number}", "default")
        message = Message(handle.id, tasks.note.name, codec.encode([[number], {}]), queue.name)
        with app.client.link() as link:
            link.call_packed(queue.plain_enqueue(message))
        with pytest.raises(TaskRevoked):
            handle.get(timeout=20)
        assert tasks.add.delay(1, 1).get(timeout=20) == 2
    assert journal.lines() == []


def test_a_backlog_is_worked_off_without_what_was_revoked(
    app: App, journal: Journal, start_worker: StartWorker
) -> None:
    handles = tasks.note.map_async([(number,) for number in range(6000)])
    start_worker()
    wait_until(lambda: len(journal.lines()) > 500, 30, "the first ones to run")
    app.revoke(*(handle.id for handle in handles[-1000:]))
    ran = {*journal.lines()}
    wait_until(lambda: settled(app), 60, "all to be settled")
    never = {f"ran {number}" for number in range(5000, 6000)} - ran
    assert len(never) > 500
    assert not never & {*journal.lines()}
    assert totals(app).counters["revoked"] == 6000 - len(journal.lines())


def test_what_was_fetched_and_not_begun_is_dropped(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, redis: Any
) -> None:
    """While a task runs for long, what the child has fetched goes back; revoked meanwhile, nobody starts it."""
    start_worker(concurrency=1)
    assert [tasks.brief.delay(number, 0).get(timeout=20) for number in range(30)] == list(range(30))
    gate = tasks.gate.delay(str(tmp_path / "open"))
    handles = [tasks.note.delay(number) for number in range(20)]
    wait_until(lambda: journal.count("began gate"), 20, "the long task to begin")
    stream = app.client.queue(None).keys.stream()

    def held() -> list[int]:
        owners = redis.xpending(stream, GROUP)["consumers"]
        return [owner["pending"] for owner in owners if owner["name"] != RELEASED.encode()]

    wait_until(lambda: held() == [1], 20, "what was fetched with it to go back")
    app.revoke(*(handle.id for handle in handles))
    (tmp_path / "open").touch()
    assert gate.get(timeout=20) == "gate"
    for handle in handles:
        with pytest.raises(TaskRevoked):
            handle.get(timeout=20)
    assert not [line for line in journal.lines() if line.startswith("ran")]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["gate", "agate"])
def test_a_running_call_is_interrupted(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, pool: str, name: str
) -> None:
    worker = start_worker("-P", pool, concurrency=2)
    handle: Any = app.get_task(f"tests.integration.tasks.{name}").delay(str(tmp_path / "never"))
    wait_until(lambda: journal.count(f"began {name}"), 20, "it to begin")
    handle.revoke(terminate=True)
    with pytest.raises(TaskRevoked):
        handle.get(timeout=20)
    assert handle.state is State.REVOKED
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert ended(app) == {"revoked": 1, "succeeded": 1}, worker.log()
    assert totals(app).dead == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_whatever_its_body_makes_of_it_the_call_is_revoked(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, pool: str
) -> None:
    start_worker("-P", pool, concurrency=1)
    handle = tasks.deaf.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began deaf"), 20, "it to begin")
    handle.revoke(terminate=True)
    wait_until(lambda: journal.count("heard TaskRevoked"), 20, "it to hear")
    (tmp_path / "open").touch()
    with pytest.raises(TaskRevoked):
        handle.get(timeout=20)
    assert ended(app) == {"revoked": 1}


def test_without_terminate_it_runs_on_and_its_result_stands(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path, redis: Any
) -> None:
    start_worker(concurrency=1)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate"), 20, "it to begin")
    handle.revoke()
    seen = (
        redis.info("commandstats")["cmdstat_zmscore"]["calls"] if "cmdstat_zmscore" in redis.info("commandstats") else 0
    )
    wait_until(lambda: redis.info("commandstats").get("cmdstat_zmscore", {"calls": 0})["calls"] > seen + 2, 20)
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == "gate"
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert not redis.exists(app.client.queue(None).keys.revoked)


def test_a_call_that_would_be_retried_is_not(
    app: App, journal: Journal, start_worker: StartWorker, tmp_path: Path
) -> None:
    start_worker(concurrency=1)
    handle = tasks.app.send_task("tests.integration.tasks.flaky", (9,), max_retries=None)
    wait_until(lambda: journal.count("attempt 2"), 20, "its second attempt")
    handle.revoke()
    with pytest.raises(TaskRevoked):
        handle.get(timeout=20)
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert totals(app).counters["revoked"] == 1


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoked_call_whose_process_dies_does_not_run_again(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, terminate: bool
) -> None:
    worker = start_worker(concurrency=1)
    handle = tasks.deaf.delay(str(tmp_path / "open"))  # it hears and goes on
    wait_until(lambda: journal.count("began deaf") == 1, what="the body to begin")
    handle.revoke(terminate=terminate)
    (child,) = worker.children()
    kill(child)
    with pytest.raises(TaskRevoked):
        handle.get(timeout=30)
    assert tasks.add.delay(1, 1).get(timeout=30) == 2
    wait_until(lambda: settled(app), what="all to be settled")
    assert journal.count("began deaf") == 1
    assert ended(app) == {"crashed": 1, "revoked": 1, "succeeded": 1}


def test_without_its_queue_a_call_is_found(app: App, start_worker: StartWorker) -> None:
    delayed = tasks.add.apply_async((1, 1), countdown=600, queue="bulk")
    waiting = tasks.add.apply_async((1, 1), queue="bulk")
    tasks.add.delay(1, 1)
    assert app.revoke(delayed.id) == {delayed.id: "revoked"}
    assert app.revoke(waiting.id, delayed.id) == {waiting.id: "marked", delayed.id: "revoked"}
    start_worker("-Q", "bulk,default")
    with pytest.raises(TaskRevoked):
        waiting.get(timeout=20)


def test_the_command(app: App, url: str) -> None:
    delayed = tasks.add.apply_async((1, 1), countdown=600)
    waiting = tasks.add.delay(1, 1)
    assert run(url, "revoke", delayed.id, waiting.id).splitlines() == [
        f"{delayed.id} revoked",
        f"{waiting.id} revoked: it will not start, unless it runs already",
    ]
    assert "is interrupted if it runs" in run(url, "revoke", waiting.id, "--terminate", "-Q", "default")
    assert json.loads(run(url, "revoke", delayed.id, "--json")) == {delayed.id: "revoked"}
    assert "cannot be used" in run(url, "revoke", "two words", code=2)


def test_the_command_takes_stamps(app: App, url: str, start_worker: StartWorker) -> None:
    stamped = [tasks.add.s(1, 1).stamp(customer=n, run="a").delay() for n in (1, 2, 3)]
    assert run(url, "revoke", "--stamp", "customer=2", "--stamp", "run=b").splitlines() == [
        "customer=2 revoked: no call with this stamp will start, unless it runs already",
        "run=b revoked: no call with this stamp will start, unless it runs already",
    ]
    assert json.loads(run(url, "revoke", stamped[2].id, "--stamp", "run=b", "--json")) == {
        stamped[2].id: "marked",
        "run=b": "marked",
    }
    assert "those that run are interrupted" in run(url, "revoke", "--stamp", "run=c", "--terminate")
    assert "--stamp takes NAME=VALUE" in run(url, "revoke", "--stamp", "customer", code=2)
    assert "Missing argument" in run(url, "revoke", code=2)
    start_worker(concurrency=1)
    assert stamped[0].get(timeout=20) == 2
    for each in stamped[1:]:
        with pytest.raises(TaskRevoked):
            each.get(timeout=20)


def test_the_command_says_no_to_what_has_ended(app: App, url: str, start_worker: StartWorker) -> None:
    start_worker(concurrency=1)
    handle = tasks.add.delay(1, 1)
    handle.get(timeout=20)
    assert run(url, "revoke", handle.id, code=1) == f"{handle.id} had ended before\n"


def looks(redis: Any) -> int:
    """How often anybody has looked for a result: who waits has subscribed, and looks once."""
    return int(redis.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"])


def test_who_waits_already_is_woken(app: App, redis: Any) -> None:
    handle = tasks.add.apply_async((1, 1), countdown=600)
    before = looks(redis)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(handle.get, timeout=30)
        wait_until(lambda: looks(redis) > before, 20, "it to wait")
        handle.revoke()
        with pytest.raises(TaskRevoked):
            waiting.result(timeout=20)


async def test_from_a_coroutine(app: App, redis: Any) -> None:
    handle = tasks.add.apply_async((1, 1), countdown=600)
    before = looks(redis)
    waiting = asyncio.create_task(handle.aget(timeout=30))
    while looks(redis) == before:  # noqa: ASYNC110 - it is the server that tells
        await asyncio.sleep(0.01)
    await handle.arevoke()
    with pytest.raises(TaskRevoked):
        await waiting
    assert handle.state is State.REVOKED
    await app.aclose()
