"""Rules about when a call starts: rates, concurrency, duplicates, versions, full queues. On real workers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from rsq import App, DuplicateCall, QueueFull, State, TaskRevoked, codec
from rsq.broker.dead_letters import DeadLetter, dead_letters, redrive
from tests.helpers import wait_until
from tests.integration import rule_tasks
from tests.integration.conftest import Journal, StartWorker, Worker, ended, kill, nobody_reads, settled, totals

POOLS = ["prefork", "threads", "asyncio", "solo"]

StartRules = StartWorker


@pytest.fixture
def app(url: str) -> Iterator[App]:
    rule_tasks.app.configure(url=url)
    yield rule_tasks.app
    rule_tasks.app.close()


@pytest.fixture
def start(start_worker: StartWorker) -> StartRules:
    return partial(start_worker, name=rule_tasks.__name__)


def most_at_once(lines: list[str]) -> int:
    """How many ran at the same time, by the order in which they began and ended."""
    now = most = 0
    for line in lines:
        now += {"began": 1, "ended": -1}[line.split()[0]]
        most = max(most, now)
    return most


def left_over(redis: redis_py.Redis, app: App) -> set[str]:
    """Keys of the queue that hold something for calls, beside results and markers with a TTL."""
    tag = app.client.queue(None).keys.prefix
    names = {name.decode().removeprefix(f"{tag}:") for name in redis.scan_iter(f"{tag}:*")}
    return {name for name in names if name.split(":")[0] in ("calls", "slots", "parked", "messages")}


# -- rates


@pytest.mark.parametrize("pool", POOLS)
def test_a_rate_holds_over_all_workers(app: App, journal: Journal, start: StartRules, pool: str, redis: Any) -> None:
    for _ in range(2):
        start("-P", pool)
    began = time.monotonic()
    handles = [rule_tasks.paced.delay(number) for number in range(30)]
    for handle in handles:
        handle.get(timeout=30)
    # Later is allowed on a slow machine, earlier never.
    assert time.monotonic() - began >= 29 / 40
    assert sorted(journal.lines()) == sorted(f"ran {number}" for number in range(30))
    wait_until(lambda: ended(app).get("succeeded") == 30, 10, "the outcomes to be counted")
    assert ended(app)["limited"] >= 29
    assert {record.attempt for handle in handles if (record := handle.result_record())} == {1}
    assert left_over(redis, app) == set()


def test_who_waits_for_its_turn_is_in_nobodys_way(app: App, journal: Journal, start: StartRules) -> None:
    for _ in range(5):
        for tenant in ("red", "blue"):
            rule_tasks.rare.delay(tenant)
    start(concurrency=1)
    assert rule_tasks.free.delay("behind them").get(timeout=20) == "behind them"
    wait_until(lambda: totals(app).delayed == 6, 20, "the others to be put off")
    # A burst of two of each.
    assert sorted(journal.lines()) == ["ran behind them", *["ran blue"] * 2, *["ran red"] * 2]


def test_at_most_once_under_a_rate(app: App, journal: Journal, start: StartRules) -> None:
    for word in "ab":
        rule_tasks.rare_once.delay(word)
    start()
    wait_until(lambda: totals(app).delayed == 1 and len(journal.lines()) == 1, 20, "one to run and one to wait")


def test_a_retry_waits_for_a_turn_of_its_own(app: App, journal: Journal, start: StartRules) -> None:
    rule_tasks.rare_and_failing.delay("a")
    start()
    wait_until(lambda: ended(app).get("limited", 0) == 1, 20, "the second attempt to be put off")
    assert journal.lines() == ["ran a"]


def test_a_key_that_cannot_be_made_is_told(app: App, start: StartRules) -> None:
    handle = rule_tasks.unlike.delay("no tenant")
    start()
    with pytest.raises(AttributeError, match="tenant"):
        handle.get(timeout=20)
    with app.client.link() as link:
        (letter,) = dead_letters(link, app.client.queue(None))
    assert letter.reason == "arguments"


# -- concurrency


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["crowded", "acrowded"])
def test_so_many_run_at_once(app: App, journal: Journal, start: StartRules, pool: str, name: str, redis: Any) -> None:
    for _ in range(2):
        start("-P", pool, concurrency=1 if pool == "solo" else 3)
    task = getattr(rule_tasks, name)
    handles = [task.delay(number) for number in range(20)]
    for handle in handles:
        handle.get(timeout=60)
    assert most_at_once(journal.lines()) <= 2
    assert sorted(journal.lines()) == sorted(f"{word} {n}" for n in range(20) for word in ("began", "ended"))
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert left_over(redis, app) == set()


def test_each_key_has_slots_of_its_own(app: App, journal: Journal, start: StartRules, tmp_path: Path) -> None:
    start(concurrency=3)
    opened = tmp_path / "open"
    handles = [rule_tasks.one_each.delay(str(opened), tenant) for tenant in ("red", "red", "blue")]
    wait_until(lambda: totals(app).delayed == 1 and len(journal.lines()) == 2, 20, "one of each to run")
    assert sorted(journal.lines()) == ["began blue", "began red"]
    opened.touch()
    for handle in handles:
        handle.get(timeout=20)
    assert journal.count("ended red") == 2


@pytest.mark.parametrize("whole", [False, True], ids=["a child", "a worker"])
def test_a_crash_frees_the_slot(
    app: App, journal: Journal, start: StartRules, tmp_path: Path, whole: bool, redis: Any
) -> None:
    opened = tmp_path / "open"
    first: Worker = start(concurrency=1, lease=2)
    handles = [rule_tasks.one_each.delay(str(opened), "red")]
    wait_until(lambda: journal.lines() == ["began red"], 20, "the first one to run")
    start(concurrency=1, lease=2)
    handles.append(rule_tasks.one_each.delay(str(opened), "red"))
    wait_until(lambda: totals(app).delayed == 1, 20, "the second one to wait")
    if whole:
        first.kill()
    else:
        for pid in first.children():
            kill(pid)
    wait_until(lambda: journal.count("began red") > 1, 30, "the slot to be taken again")
    opened.touch()
    for handle in handles:
        handle.get(timeout=60)
    # Who was killed could not say that it ended.
    assert most_at_once(journal.lines()[1:]) <= 1
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert left_over(redis, app) == set()


# -- duplicates


@pytest.mark.parametrize("name", ["until_done", "until_started"])
def test_a_marker_that_ends_before_its_time(
    app: App, journal: Journal, start: StartRules, tmp_path: Path, name: str, redis: Any
) -> None:
    task, opened = getattr(rule_tasks, name), tmp_path / "open"
    first = task.delay(str(opened), "k")
    assert task.delay(str(opened), "k").id == first.id
    start(concurrency=2)
    wait_until(lambda: journal.lines() == ["began k"], 20, "it to begin")
    second = task.delay(str(opened), "k")
    assert second.duplicate is (name == "until_done")
    opened.touch()
    first.get(timeout=20)
    second.get(timeout=20)
    assert task.delay(str(opened), "k").duplicate is False
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert left_over(redis, app) == set()


def test_the_newest_arguments_win(app: App, journal: Journal, start: StartRules, redis: Any) -> None:
    waiting = [rule_tasks.newest.delay("k", value) for value in (1, 2, 3)]
    delayed = [rule_tasks.newest.apply_async(("later", value), countdown=0.1) for value in (4, 5)]
    assert [handle.duplicate for handle in [*waiting, *delayed]] == [False, True, True, False, True]
    start()
    assert [handle.get(timeout=20) for handle in [*waiting, *delayed]] == [3, 3, 3, 5, 5]
    assert sorted(journal.lines()) == ["ran k 3", "ran later 5"]
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert left_over(redis, app) == set()


def test_a_duplicate_can_be_an_error(app: App) -> None:
    first = rule_tasks.unwelcome.delay("k")
    with pytest.raises(DuplicateCall, match="dedupe key 'k'") as caught:
        rule_tasks.unwelcome.delay("k")
    assert caught.value.task_id == first.id
    with pytest.raises(DuplicateCall):
        asyncio.run(_closing(app, rule_tasks.unwelcome.adelay("k")))
    with pytest.raises(DuplicateCall):
        rule_tasks.unwelcome.map_async([("other",), ("k",)])
    assert totals(app).ready == 2, "what was sent beside it stands"
    one = rule_tasks.free.apply_async(("a",), task_id="own")
    with pytest.raises(DuplicateCall, match="task id"):
        rule_tasks.free.apply_async(("a",), task_id="own", on_duplicate="raise")
    assert one.id == "own"


def test_a_debounced_call_runs_once_with_the_last_arguments(app: App, journal: Journal, start: StartRules) -> None:
    start()
    handles = [rule_tasks.settled_down.delay("k", value) for value in range(5)]
    assert len({handle.id for handle in handles}) == 1
    assert handles[0].get(timeout=20) == 4
    # It has begun, so the next one is a call of its own.
    again = rule_tasks.settled_down.delay("k", 5)
    assert again.id != handles[0].id
    assert again.get(timeout=20) == 5
    assert journal.lines() == ["ran k 4", "ran k 5"]


@pytest.mark.parametrize("how", ["replace", "debounce"])
def test_a_call_that_others_replaced_dies_and_is_sent_again_with_the_newest_arguments(
    app: App, journal: Journal, start: StartRules, tmp_path: Path, redis: Any, how: str
) -> None:
    task, opened = rule_tasks.failing[how], tmp_path / "open"
    handles = [task.delay(str(opened), "k", value) for value in (1, 2, 3)]
    assert len({handle.id for handle in handles}) == 1
    start()
    with pytest.raises(ValueError, match="3"):
        handles[0].get(timeout=20)
    assert journal.lines() == ["ran k 3"] * 2, "the first attempt, and its retry"
    (letter,) = letters(app)
    assert list(codec.decode(letter.body)[0]) == [str(opened), "k", 3]
    # It has ended, so its key is free; and whoever has the key keeps the letter where it is.
    app.pause("default")
    wait_until(lambda: nobody_reads(redis), 20, "the worker to notice")
    other = task.delay(str(opened), "k", 4)
    assert not other.duplicate
    with app.client.link() as link, pytest.raises(DuplicateCall, match=other.id):
        redrive(link, app.client.queue(None), letter)
    app.resume("default")
    with pytest.raises(ValueError, match="4"):
        other.get(timeout=20)
    # Sent again it has its key as before, and may be replaced until it starts.
    app.pause("default")
    wait_until(lambda: nobody_reads(redis), 20, "the worker to notice")
    with app.client.link() as link:
        assert redrive(link, app.client.queue(None), letter)
    newer = task.delay(str(opened), "k", 5)
    assert (newer.id, newer.duplicate) == (letter.id, True)
    opened.touch()
    app.resume("default")
    wait_until(lambda: "ran k 5" in journal.lines(), 20, "it to run")
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert journal.lines() == ["ran k 3"] * 2 + ["ran k 4"] * 2 + ["ran k 5"]
    assert newer.get(timeout=20) == 5
    assert [each.id for each in letters(app)] == [other.id]
    assert left_over(redis, app) == set()
    assert not task.delay(str(opened), "k", 6).duplicate


def letters(app: App) -> list[DeadLetter]:
    with app.client.link() as link:
        return list(dead_letters(link, app.client.queue(None)))


# -- versions


def test_of_versions_that_wait_only_the_newest_counts(
    app: App, journal: Journal, start: StartRules, redis: Any
) -> None:
    """Ready, delayed, and put off behind others: whenever their turn comes, a newer one is done."""
    older = [
        rule_tasks.price.apply_async(("tea", 100), version=1),
        rule_tasks.price.apply_async(("tea", 200), version=2, countdown=0.5),
        rule_tasks.price.apply_async(("tea", 250), version=3, priority=3),
    ]
    newest = rule_tasks.price.apply_async(("tea", 300), version=4, priority=9)
    assert not any(handle.duplicate for handle in [*older, newest]), "each is a call of its own"
    again = rule_tasks.price.apply_async(("tea", 999), version=4)
    assert (again.id, again.duplicate) == (newest.id, True)
    start(concurrency=1)
    assert newest.get(timeout=20) == 300
    for handle in older:
        with pytest.raises(TaskRevoked, match="superseded"):
            handle.get(timeout=20)
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert journal.lines() == ["tried 300", "set 300"]
    assert ended(app) == {"succeeded": 1, "superseded": 3}
    assert left_over(redis, app) == set()


def test_an_older_version_is_skipped_when_it_comes_late(app: App, journal: Journal, start: StartRules) -> None:
    start()
    assert rule_tasks.price.apply_async(("tea", 300), version=3).get(timeout=20) == 300
    late = rule_tasks.price.apply_async(("tea", 200), version=2)
    with pytest.raises(TaskRevoked, match="superseded"):
        late.get(timeout=20)
    assert late.state is State.REVOKED
    same = rule_tasks.price.apply_async(("tea", 301), version=3)
    assert same.duplicate
    assert rule_tasks.price.apply_async(("milk", 99), version=1).get(timeout=20) == 99
    assert rule_tasks.price.apply_async(("tea", 400), version=4).get(timeout=20) == 400
    assert journal.lines() == [f"{word} {cents}" for cents in (300, 99, 400) for word in ("tried", "set")]
    assert ended(app)["superseded"] == 1


def test_an_older_version_is_not_retried_after_a_newer_one(
    app: App, journal: Journal, start: StartRules, tmp_path: Path, redis: Any
) -> None:
    start()
    old = rule_tasks.price.apply_async(("tea", 100, str(tmp_path / "never there")), version=1)
    wait_until(lambda: "tried 100" in journal.lines(), 20, "the first attempt")
    assert rule_tasks.price.apply_async(("tea", 200), version=2).get(timeout=20) == 200
    with pytest.raises(TaskRevoked, match="superseded"):
        old.get(timeout=20)
    wait_until(lambda: settled(app), 10, "all to be settled")
    assert left_over(redis, app) == set()


# -- a full queue


def test_room_is_waited_for(app: App, start: StartRules) -> None:
    first = rule_tasks.narrow.delay("first")
    with pytest.raises(QueueFull):
        rule_tasks.narrow.apply_async(("too soon",), max_length_wait=0.1)
    with pytest.raises(QueueFull):
        asyncio.run(_closing(app, rule_tasks.narrow.aapply_async(("too soon",), max_length_wait=0.1)))
    results: list[str] = []

    def send() -> None:
        handles = rule_tasks.narrow.map_async([("second",), ("third",)], max_length_wait=60)
        results.extend(handle.get(timeout=60) for handle in handles)

    sender = threading.Thread(target=send)
    sender.start()
    start()
    sender.join(60)
    assert (first.get(timeout=20), results) == ("first", ["second", "third"])
    fourth = asyncio.run(_closing(app, rule_tasks.narrow.aapply_async(("fourth",), max_length_wait=60)))
    assert fourth.get(timeout=20) == "fourth"


async def _closing(app: App, coroutine: Any) -> Any:
    try:
        return await coroutine
    finally:
        await app.aclose()
