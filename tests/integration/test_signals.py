"""Signals of real workers and producers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from rsq import App, TaskRevoked, signals
from tests.helpers import wait_until
from tests.integration import pool_tasks, tasks
from tests.integration.conftest import Journal, StartWorker

POOLS = ["prefork", "threads", "asyncio", "solo"]
NAME = "tests.integration.signal_tasks"


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["add", "aadd"])
def test_a_success(app: App, start_worker: StartWorker, journal: Journal, pool: str, name: str) -> None:
    worker = start_worker("-P", pool, name=NAME, concurrency=1)
    assert getattr(tasks, name).delay(1, 2).get(timeout=20) == 3
    assert worker.stop() == 0
    told = ["success 3"] if name == "add" else []
    assert journal.lines() == [
        "init True",
        f"ready {app.queues()}",
        f"prerun {name} [1, 2] True",
        *told,
        f"postrun {name} SUCCESS 3 True",
        "shutdown",
        "exit 0",
    ]
    assert "a handler of mine" in worker.log()


@pytest.mark.parametrize("pool", POOLS)
def test_a_failure_after_a_retry(app: App, start_worker: StartWorker, journal: Journal, pool: str) -> None:
    start_worker("-P", pool, name=NAME, concurrency=1)
    with pytest.raises(ValueError, match="attempt 2"):
        tasks.flaky.apply_async((9,), max_retries=1).get(timeout=20)
    assert [line for line in journal.lines() if line.split()[0] in ("retry", "failure", "postrun")] == [
        "retry 1 ValueError('attempt 1')",
        "postrun flaky RETRY ValueError('attempt 1') True",
        "failure flaky ValueError True",
        "postrun flaky FAILURE ValueError('attempt 2') True",
    ]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["gate", "agate"])
def test_a_call_that_is_revoked_while_it_runs(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str, name: str
) -> None:
    start_worker("-P", pool, name=NAME, concurrency=1)
    handle: Any = getattr(tasks, name).delay(str(tmp_path / "never"))
    wait_until(lambda: journal.count(f"began {name}") == 1, 20, "it to begin")
    handle.revoke(terminate=True)
    with pytest.raises(TaskRevoked):
        handle.get(timeout=20)
    told = [line for line in journal.lines() if line.split()[0] in ("revoked", "failure", "postrun")]
    assert told[0] == f"revoked {name} False True"
    assert told[1].startswith(f"postrun {name} REVOKED TaskRevoked(")
    assert told[2:] == []


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_settled_without_a_run(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, pool: str
) -> None:
    start_worker("-P", pool, name=NAME, concurrency=1, RSQ_UNKNOWN_TASK_GRACE_S="0.1")
    with pytest.raises(TaskRevoked):
        tasks.note.apply_async(("late",), expires=datetime(2020, 1, 1, tzinfo=timezone.utc)).get(timeout=20)
    with pytest.raises(Exception, match="nope"):
        app.send_task("nope").get(timeout=20)
    with pytest.raises(Exception, match="result"):
        tasks.returns.delay("object").get(timeout=20)
    told = [line for line in journal.lines() if line.split()[0] in ("revoked", "failure")]
    assert told == ["revoked note True False", "failure None UnknownTask False", "failure returns EncodeError False"]
    busy = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, 20, "the worker to be busy")
    waiting, delayed = tasks.note.delay("waiting"), tasks.note.apply_async(("delayed",), countdown=600)
    app.revoke(waiting.id, delayed.id)
    (tmp_path / "open").touch()
    assert busy.get(timeout=20) == "gate"
    with pytest.raises(TaskRevoked):
        waiting.get(timeout=20)
    # One that was delayed ends on the server, at once: no worker hears of it.
    assert [line for line in journal.lines() if line.startswith("revoked")][1:] == ["revoked note False False"]


@pytest.fixture
def published() -> Iterator[list[tuple[Any, ...]]]:
    heard: list[tuple[Any, ...]] = []

    def before(sender: str, args: Any, headers: dict[str, Any], **rest: Any) -> None:
        headers["trace"] = f"t-{len(heard)}"
        heard.append(("before", sender, args, rest["queue"]))

    def after(sender: str, headers: dict[str, Any], duplicate: bool, **rest: Any) -> None:
        heard.append(("after", sender, dict(headers), duplicate))

    signals.before_publish.connect(before)
    signals.after_publish.connect(after)
    yield heard
    assert signals.before_publish.disconnect(before)
    assert signals.after_publish.disconnect(after)


async def test_publishing(app: App, start_worker: StartWorker, published: list[tuple[Any, ...]]) -> None:
    start_worker(concurrency=1)
    name = tasks.about.name
    assert (await tasks.about.adelay()).get(timeout=20)["headers"] == {"trace": "t-0"}
    tasks.about.apply_async(headers={"mine": 1}, dedupe_key="k")
    assert tasks.about.apply_async(dedupe_key="k").get(timeout=20)["headers"] == {"mine": 1, "trace": "t-2"}
    assert published == [
        ("before", name, [], "default"),
        ("after", name, {"trace": "t-0"}, False),
        ("before", name, [], "default"),
        ("after", name, {"mine": 1, "trace": "t-2"}, False),
        ("before", name, [], "default"),
        ("after", name, {"trace": "t-4"}, True),
    ]
    published.clear()
    assert [handle.get(timeout=20) for handle in tasks.add.map_async([(1, 1), (2, 2)])] == [2, 4]
    assert [kind for kind, *_ in published] == ["before", "before", "after", "after"]
    await app.aclose()


@pytest.mark.parametrize("pool", POOLS)
def test_progress(app: App, start_worker: StartWorker, tmp_path: Any, pool: str, redis: Any) -> None:
    start_worker("-P", pool, name=pool_tasks.__name__, concurrency=1)
    handle = pool_tasks.advances.delay(500, str(tmp_path / "open"))
    # All of the 500 are told at once; the last one is what stays.
    wait_until(lambda: (seen := handle.progress) and seen.current == 500, 20, "the last report")
    progress = handle.progress
    assert progress is not None
    assert (progress.total, progress.info, progress.fraction) == (500, {"what": "row 500"}, 1.0)
    assert handle.info == {"current": 500, "total": 500, "what": "row 500"}
    assert app.AsyncResult(handle.id).progress == progress
    key = app.client.queue(None).keys.progress_of(handle.id)
    assert 0 < redis.pttl(key) <= 86_400_000
    wait_until(lambda: handle.state == "STARTED", 20, "the state to be seen")
    (tmp_path / "open").touch()
    assert handle.get(timeout=20) == "done"
    assert handle.info == "done"
    handle.forget()
    assert handle.progress is None


def test_the_last_report_is_written_though_the_process_ends(app: App, start_worker: StartWorker, tmp_path: Any) -> None:
    start_worker("--max-tasks-per-child", "1", name=pool_tasks.__name__, concurrency=1)
    (tmp_path / "open").touch()
    handle = pool_tasks.advances.delay(20_000, str(tmp_path / "open"))
    assert handle.get(timeout=20) == "done"
    wait_until(lambda: (seen := handle.progress) and seen.current == 20_000, 20, "the last report")


def test_progress_is_written_now_and_then(app: App, start_worker: StartWorker, redis: Any, tmp_path: Any) -> None:
    start_worker(concurrency=1, name=pool_tasks.__name__)
    redis.config_resetstat()
    (tmp_path / "open").touch()
    assert pool_tasks.advances.delay(50_000, str(tmp_path / "open")).get(timeout=60) == "done"
    writes = redis.info("commandstats").get("cmdstat_set", {"calls": 0})["calls"]
    assert writes < 500
