"""One call all the way, through a real worker process."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from rsq import (
    App,
    QueueFull,
    RemoteError,
    ResultIgnored,
    ResultTimeout,
    SettingsError,
    State,
    TaskRevoked,
    codec,
)
from rsq.calls.message import pack_meta
from rsq.errors import DecodeError, EncodeError, MessageTooLarge, Rejected, UnknownTask
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals


@pytest.fixture(autouse=True)
def _one_worker(app: App, start_worker: StartWorker) -> None:
    start_worker(RSQ_UNKNOWN_TASK_GRACE_S="0.3")


def test_a_result_comes_back() -> None:
    assert tasks.add.delay(2, 3).get(timeout=10) == 5


def test_states_of_a_success() -> None:
    handle = tasks.add.delay(2, 3)
    handle.get(timeout=10)
    assert handle.state is State.SUCCESS
    assert handle.ready()
    assert handle.successful()
    assert not handle.failed()
    assert handle.traceback is None


async def test_the_async_twins(app: App) -> None:
    handle = await tasks.aadd.adelay(2, 3)
    assert await handle.aget(timeout=10) == 5
    later = await tasks.add.aapply_async((1, 1), countdown=0.05)
    assert await later.aget(timeout=10) == 2
    await app.aclose()


async def test_many_coroutines_wait_at_once(app: App) -> None:
    handles = [await tasks.add.adelay(number, 1) for number in range(100)]
    assert await asyncio.gather(*(handle.aget(timeout=20) for handle in handles)) == list(range(1, 101))
    await app.aclose()


def test_many_threads_wait_at_once() -> None:
    got: dict[int, int] = {}

    def ask(number: int) -> None:
        got[number] = tasks.add.delay(number, 1).get(timeout=20)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == {number: number + 1 for number in range(20)}


def test_waiting_uses_one_subscribed_connection_and_leaves_no_channel(redis: Any, tmp_path: Any) -> None:
    handles = [tasks.gate.delay(str(tmp_path / "open"), str(number)) for number in range(2)]
    threads = [threading.Thread(target=handle.get, args=(20,)) for handle in handles]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(redis.pubsub_channels("*:result:*")) == 2, what="both waiters to subscribe")
    assert sum(int(client["sub"]) + int(client.get("ssub", 0)) == 2 for client in redis.client_list()) == 1
    (tmp_path / "open").touch()
    for thread in threads:
        thread.join(20)
    wait_until(lambda: not redis.pubsub_channels("*:result:*"), what="the channels to be left")


def test_bulk(app: App) -> None:
    handles = tasks.add.map_async([(number, number) for number in range(2500)])
    assert [handle.get(timeout=30) for handle in handles] == [2 * number for number in range(2500)]
    assert totals(app).counters["succeeded"] == 2500


def test_a_handle_by_id_finds_its_queue(app: App) -> None:
    sent = tasks.add.delay(1, 2)
    assert app.AsyncResult(sent.id).get(timeout=10) == 3
    assert tasks.add.AsyncResult(sent.id).get(timeout=10) == 3


def test_get_times_out_and_works_afterwards(tmp_path: Any) -> None:
    handle = tasks.gate.delay(str(tmp_path / "open"))
    with pytest.raises(ResultTimeout, match=handle.id):
        handle.get(timeout=1)
    (tmp_path / "open").touch()
    assert handle.get(timeout=10) == "gate"


def test_forget(redis: Any) -> None:
    handle = tasks.add.delay(1, 2)
    handle.get(timeout=10)
    handle.forget()
    assert handle.state is State.PENDING
    assert redis.keys("*:result:*") == []


def test_a_failing_task_is_retried_and_then_kept(app: App, journal: Journal) -> None:
    handle = tasks.flaky.delay(99)
    with pytest.raises(ValueError, match="attempt 3") as caught:
        handle.get(timeout=20)
    assert "in flaky" in str(caught.value.__cause__)
    assert journal.lines() == ["attempt 1", "attempt 2", "attempt 3"]
    counted = totals(app)
    assert (counted.dead, counted.counters["retried"], counted.counters["dead"]) == (1, 2, 1)


def test_a_retry_that_helps(journal: Journal) -> None:
    assert tasks.flaky.delay(2).get(timeout=20) == 3
    assert journal.lines() == ["attempt 1", "attempt 2", "attempt 3"]


def test_a_task_may_ask_for_its_retry() -> None:
    assert tasks.asks_for_retry.delay().get(timeout=20) == (3, 2)


def test_state_while_the_retry_waits() -> None:
    handle = tasks.flaky.apply_async((1,), max_retries=1)
    handle.get(timeout=20)
    slow = tasks.asks_for_retry.delay()
    slow.get(timeout=20)
    waiting = tasks.add.apply_async((1, 1), countdown=30)
    assert waiting.state is State.PENDING


def test_max_retries_of_one_call(journal: Journal) -> None:
    with pytest.raises(ValueError, match="attempt 1"):
        tasks.flaky.apply_async((99,), max_retries=0).get(timeout=20)
    assert journal.lines() == ["attempt 1"]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("key", KeyError, "missing"),
        ("unserialisable", RemoteError, "it holds"),
        ("local", RemoteError, "only here"),
        ("exit", RemoteError, "3"),
    ],
)
def test_exceptions_travel(kind: str, error: type[Exception], text: str) -> None:
    handle = tasks.raises.delay(kind)
    with pytest.raises(error, match=text):
        handle.get(timeout=20)
    assert handle.failed()
    assert "in raises" in (handle.traceback or "")
    assert isinstance(handle.get(propagate=False), error)


@pytest.mark.parametrize("task", [tasks.add, tasks.aadd], ids=["plain", "coroutine"])
def test_a_traceback_begins_at_the_body(task: Any) -> None:
    handle = task.apply_async((1, "x"), max_retries=0)
    with pytest.raises(TypeError, match="unsupported operand"):
        handle.get(timeout=20)
    frames = [line for line in handle.traceback.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert f"in {task.__name__}" in frames[0]


@pytest.mark.parametrize(("kind", "error"), [("object", EncodeError), ("huge", MessageTooLarge)])
def test_a_result_that_cannot_be_kept_is_a_failure(app: App, kind: str, error: type[Exception]) -> None:
    handle = tasks.returns.delay(kind)
    with pytest.raises(error, match="result"):
        handle.get(timeout=60)
    assert len((handle.traceback or "").splitlines()) == 1  # none of its lines is the user's
    assert totals(app).dead == 1
    assert tasks.add.delay(1, 1).get(timeout=10) == 2


def test_reject_and_ignore(app: App) -> None:
    with pytest.raises(Exception, match="not for me") as caught:
        tasks.steer.delay("reject").get(timeout=20)
    assert isinstance(caught.value, Rejected)
    assert totals(app).dead == 1
    ignored = tasks.steer.delay("ignore")
    wait_until(lambda: settled(app), what="the ignored task to end")
    assert ignored.state is State.PENDING


def test_a_task_that_ignores_results(app: App, journal: Journal, redis: Any) -> None:
    handle = tasks.quiet.delay("hush")
    with pytest.raises(ResultIgnored):
        handle.get(timeout=1)
    wait_until(lambda: journal.lines() == ["ran hush"], what="it to run")
    wait_until(lambda: settled(app), what="it to be settled")
    assert redis.keys("*:result:*") == []


def test_countdown_and_eta() -> None:
    assert tasks.add.apply_async((1, 1), countdown=0.2).get(timeout=10) == 2
    soon = datetime.now(timezone.utc) + timedelta(seconds=0.2)
    assert tasks.add.apply_async((1, 2), eta=soon).get(timeout=10) == 3


def test_a_delayed_call_is_in_no_worker(app: App) -> None:
    """Neither one that waits for its time nor one that waits for its retry: it is the server's until it is due."""
    tasks.add.apply_async((1, 1), countdown=600)
    tasks.add.apply_async((1, 1), eta=datetime(2100, 1, 1))
    again = tasks.flaky.apply_async((1,), max_retries=None)
    assert again.get(timeout=20) == 2
    with pytest.raises(ResultTimeout):
        tasks.waits_for_retry.delay().get(timeout=0.5)
    wait_until(lambda: totals(app).counters.get("retried") == 2, 20, "both retries")
    # Nothing is pending, in whichever consumer's hands, so no worker holds anything.
    wait_until(lambda: (totals(app).ready, totals(app).running, totals(app).delayed) == (0, 0, 3), 20, "all to wait")
    keys = app.client.queue(None).keys
    with app.client.link() as link:
        assert link.call("HLEN", keys.messages) == 3


def test_expired_calls_are_not_run(journal: Journal) -> None:
    handle = tasks.note.apply_async(("late",), expires=datetime(2020, 1, 1, tzinfo=timezone.utc))
    with pytest.raises(TaskRevoked, match="expired"):
        handle.get(timeout=10)
    assert handle.state is State.REVOKED
    assert tasks.note.apply_async(("in time",), expires=60).get(timeout=10) == "in time"
    assert journal.lines() == ["ran in time"]


def test_dedupe_by_key_and_by_id(journal: Journal, app: App) -> None:
    first = tasks.note.apply_async(("first",), dedupe_key="the key")
    second = tasks.note.apply_async(("second",), dedupe_key="the key")
    assert (first.duplicate, second.duplicate) == (False, True)
    assert second.id == first.id
    assert second.get(timeout=10) == "first"
    third = tasks.note.apply_async(("third",), task_id="my-own-id")
    fourth = tasks.note.apply_async(("fourth",), task_id="my-own-id")
    assert (third.duplicate, fourth.duplicate, fourth.id) == (False, True, "my-own-id")
    assert fourth.get(timeout=10) == "third"
    wait_until(lambda: settled(app), what="all to be settled")
    assert sorted(journal.lines()) == ["ran first", "ran third"]


def test_dedupe_across_a_bulk(app: App, journal: Journal) -> None:
    handles = tasks.note.map_async([(number % 10,) for number in range(100)], dedupe_key="note:{word}")
    assert [handle.get(timeout=10) for handle in handles] == [number % 10 for number in range(100)]
    assert sum(handle.duplicate for handle in handles) == 90
    assert len(journal.lines()) == 10


def test_max_length(app: App) -> None:
    tasks.add.apply_async((1, 1), queue="narrow", max_length=1)
    with pytest.raises(QueueFull, match="narrow"):
        tasks.add.apply_async((1, 1), queue="narrow", max_length=1)


def test_unknown_tasks_are_put_off_and_then_kept(app: App) -> None:
    handle = app.send_task("tests.integration.tasks.nope")
    with pytest.raises(UnknownTask, match=r"tasks\.note|tasks\.gate|no task is registered"):
        handle.get(timeout=20)
    assert totals(app).counters["deferred"] >= 1
    assert totals(app).dead == 1


def test_arguments_that_do_not_fit_are_refused_here_and_there(app: App) -> None:
    with pytest.raises(TypeError, match=r"add\(\) missing a required argument: 'b'"):
        tasks.add.delay(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"add\(\) got an unexpected keyword argument 'c'"):
        tasks.add.delay(1, b=2, c=3)  # type: ignore[call-arg]
    plain = App("elsewhere", url=app.settings.url)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        plain.send_task(tasks.add.name, (1,)).get(timeout=20)
    assert totals(app).counters.get("retried", 0) == 0
    plain.close()


def test_garbage_in_the_stream_stops_nobody(app: App, redis: Any) -> None:
    stream = app.client.queue(None).keys.stream()
    redis.xadd(stream, {"what": "is this"})
    redis.xadd(stream, {"id": "x1", "task": tasks.add.name, "body": b"\xc1", "meta": b""})
    redis.xadd(stream, {"id": "x2", "task": tasks.add.name, "body": b"\x92\x90\x80", "meta": b"\x01"})
    redis.xadd(stream, {"id": b"\xff", "task": tasks.add.name, "body": b"", "meta": b""})
    for name in ("", "x" * 101):
        redis.xadd(stream, {"id": name, "task": tasks.add.name, "body": b"\x92\x92\x01\x01\x80", "meta": b""})
    # What Redis refuses, or nobody can write, must not take along the outcomes that are committed with it.
    metas: list[dict[str, Any]] = [{"result_expires": seconds} for seconds in (0, 1e300, float("inf"), float("nan"))]
    metas += [{"version": ["k", 1, ms]} for ms in (0, 2**63)]
    metas += [{"attempt": 2**64 - 1, "max_retries": None}]
    for number, meta in enumerate(metas):
        body = b"\x92\x91\x09\x80"  # flaky(9)
        redis.xadd(stream, {"id": f"y{number}", "task": tasks.flaky.name, "body": body, "meta": pack_meta(meta)})
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    wait_until(lambda: totals(app).dead == 6 + len(metas), what="all of them to be dead letters")
    wait_until(lambda: settled(app), what="them to be settled")


def test_priorities_go_first(start_worker: StartWorker, journal: Journal, tmp_path: Path) -> None:
    # One child: of two, one may overtake the other between fetching and running.
    start_worker("-Q", "single", concurrency=1)
    tasks.gate.apply_async((str(tmp_path / "open"), "busy"), queue="single")
    wait_until(lambda: journal.count("began busy") == 1, what="the child to be busy")
    for number in range(20):
        tasks.note.apply_async((f"low-{number}",), queue="single")
    tasks.note.apply_async(("middle",), queue="single", priority=5)
    tasks.note.apply_async(("high",), queue="single", priority=9)
    (tmp_path / "open").touch()
    ran: list[str] = []

    def all_ran() -> bool:
        ran[:] = [line for line in journal.lines() if line.startswith("ran")]
        return len(ran) == 22

    wait_until(all_ran, what="all to have run")
    assert ran == ["ran high", "ran middle", *(f"ran low-{number}" for number in range(20))]


def test_a_first_priority_wakes_an_idle_worker() -> None:
    assert tasks.add.apply_async((1, 1), priority=7).get(timeout=10) == 2


def test_request_and_lineage(app: App) -> None:
    handle = tasks.about.apply_async(priority=3, headers={"trace": "abc"})
    told = handle.get(timeout=10)
    assert told == {
        "id": handle.id,
        "task": tasks.about.name,
        "queue": "default",
        "priority": 3,
        "attempt": 1,
        "headers": {"trace": "abc"},
        "parent": None,
        "root": None,
        "direct": False,
    }
    assert tasks.about()["direct"] is True


def test_a_task_may_send_calls(app: App, journal: Journal) -> None:
    assert tasks.spawns.delay(30).get(timeout=10) == "sent"
    wait_until(lambda: len(journal.lines()) == 30, what="the children to run")
    wait_until(lambda: settled(app), what="them to be settled")


def test_acks_early_runs_at_most_once(app: App, journal: Journal) -> None:
    assert tasks.at_most_once.delay("fine").get(timeout=10) == "fine"
    with pytest.raises(Exception, match="process died"):
        tasks.at_most_once.delay("die").get(timeout=20)
    wait_until(lambda: settled(app), what="it to be settled")
    assert journal.lines() == ["ran fine", "ran die"]


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingsError, match="no option of a call is called 'countdwn'"):
        tasks.add.apply_async((1, 1), countdwn=3)
    with pytest.raises(SettingsError, match="countdown or eta"):
        tasks.add.apply_async((1, 1), countdown=3, eta=datetime.now(timezone.utc))
    with pytest.raises(SettingsError, match="priority 10"):
        tasks.add.apply_async((1, 1), priority=10)
    with pytest.raises(MessageTooLarge, match="pass a reference"):
        tasks.note.delay("x" * 2_000_000)
    with pytest.raises(EncodeError, match=r"args\[0\]\['when'\]"):
        tasks.note.delay({"when": object()})


async def test_a_coroutine_waits_as_long_as_it_takes(app: App) -> None:
    later = await tasks.add.aapply_async((1, 1), countdown=1.5)
    assert await later.aget(timeout=20) == 2
    await app.aclose()


def test_meta_that_makes_no_sense_hurts_nobody(app: App, redis: Any) -> None:
    stream = app.client.queue(None).keys.stream()
    body = codec.encode_call((1, 1), {}, None)
    bad = [
        {"result_expires": "x"},
        {"time_limit": "x"},
        {"soft_time_limit": -1},
        {"time_limit": float("nan")},
        {"expires": "x"},
        {"attempt": "x"},
        {"attempt": 0},
        {"max_retries": "x"},
        {"headers": 3},
        {"ignore_result": "x"},
    ]
    for number, meta in enumerate(bad):
        packed = codec.encode(meta)
        redis.xadd(stream, {"id": f"bad-{number}", "task": tasks.add.name, "body": body, "meta": packed})
    for number in range(len(bad)):
        with pytest.raises(DecodeError, match="meta carries"):
            app.AsyncResult(f"bad-{number}").get(timeout=20)
    assert totals(app).dead == len(bad)
    assert totals(app).counters.get("crashed", 0) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"result_expires": "x"},
        {"result_expires": 0},
        {"max_retries": "3"},
        {"headers": [1]},
        {"ignore_result": 1},
        {"max_length": "5"},
        {"expires": "soon"},
        {"countdown": "soon"},
        {"dedupe_ttl": -1},
        {"dedupe_key": 5},
        {"eta": 5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_wrong_kind_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        tasks.add.apply_async((1, 1), **options)


def test_times_may_be_timedeltas() -> None:
    second = timedelta(seconds=0.05)
    hour = timedelta(hours=1)
    handle = tasks.add.apply_async((1, 1), countdown=second, expires=hour, result_expires=hour, dedupe_ttl=hour)
    assert handle.get(timeout=10) == 2
