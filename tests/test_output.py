"""What running calls emit, and what is seen of it: with a real worker, and in eager mode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from rsq import (
    App,
    EncodeError,
    Gap,
    Ignore,
    Item,
    MessageTooLarge,
    NewRun,
    ResultIgnored,
    ResultTimeout,
    SettingsError,
    TaskRevoked,
)
from rsq.calls.output import Seen
from rsq.errors import InvalidTask
from tests.modes import MODES, running

app = App("outputs")
PATIENT_S = 60.0


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(app, request) as mode:
        yield mode


class Boom(Exception):
    pass


@app.task(bind=True)
def counts(self: Any, number: int) -> str:
    for n in range(number):
        self.emit(n)
    return "done"


@app.task(bind=True)
async def acounts(self: Any, number: int) -> str:
    self.emit(0)
    for n in range(1, number):
        await self.aemit(n)
    return "done"


@app.task
def yields(number: int) -> Generator[int, None, str]:
    yield from range(number)
    return "done"


@app.task
async def ayields(number: int) -> AsyncIterator[int]:
    for n in range(number):
        yield n


@app.task(bind=True, max_retries=2, default_retry_delay=0, autoretry_for=(Boom,))
def fails_once(self: Any) -> str:
    self.emit(self.request.attempt)
    if self.request.attempt == 1:
        raise Boom
    return "done"


@app.task(bind=True, max_retries=0)
def fails(self: Any, quietly: bool = False) -> None:
    self.emit("so far")
    if quietly:
        raise Ignore
    raise Boom("no")


@app.task(bind=True, ignore_result=True, max_retries=0)
def keeps_nothing(self: Any, bad: bool) -> None:
    self.emit("so far")
    if bad:
        raise Boom


def values(seen: list[Seen]) -> list[Any]:
    return [each.value if isinstance(each, Item) else each for each in seen]


async def alist(stream: AsyncIterator[Seen]) -> list[Seen]:
    return [each async for each in stream]


@pytest.mark.parametrize("task", [counts, acounts, yields, ayields], ids=lambda task: task.__name__)
def test_values_come_in_order_and_then_the_end(mode: str, task: Any) -> None:
    result = task.delay(250)
    seen = list(result.stream(timeout=PATIENT_S))
    assert seen == [Item(n, f"1-{n + 1}", 1) for n in range(250)]
    assert result.get(timeout=PATIENT_S) == (None if task is ayields else "done")


async def test_so_for_a_coroutine(mode: str) -> None:
    result = await counts.adelay(250)
    assert await alist(result.stream(timeout=PATIENT_S)) == [Item(n, f"1-{n + 1}", 1) for n in range(250)]
    await app.aclose()


def test_one_goes_on_behind_a_cursor(mode: str) -> None:
    result = counts.delay(5)
    first = result.stream(timeout=PATIENT_S)
    assert [next(first), next(first)] == [Item(0, "1-1", 1), Item(1, "1-2", 1)]
    first.close()
    assert first.cursor == "1-2"
    assert values(list(result.stream(first.cursor, timeout=PATIENT_S))) == [2, 3, 4]


def test_another_run_is_an_item(mode: str) -> None:
    assert list(fails_once.delay().stream(timeout=PATIENT_S)) == [Item(1, "1-1", 1), NewRun(2), Item(2, "2-2", 2)]


def test_a_failure_is_raised_at_the_end(mode: str) -> None:
    result = fails.delay()
    stream = result.stream(timeout=PATIENT_S)
    assert next(stream) == Item("so far", "1-1", 1)
    with pytest.raises(Boom, match="no"):
        next(stream)
    assert values(list(result.stream(propagate=False))) == ["so far"]


def test_what_ends_without_a_result_has_an_end(mode: str) -> None:
    for result in (keeps_nothing.delay(False), fails.delay(quietly=True)):
        assert values(list(result.stream(timeout=PATIENT_S))) == ["so far"]


def test_a_failure_without_a_result_says_where_to_look() -> None:
    with app.testing.eager(propagate=False):
        stream = keeps_nothing.delay(True).stream()
        assert next(stream) == Item("so far", "1-1", 1)
        with pytest.raises(ResultIgnored, match="dead letter"):
            next(stream)
        assert stream.ended == "dead"


def test_a_call_that_emits_nothing_has_an_end_too(mode: str) -> None:
    result = counts.delay(0)
    assert list(result.stream(timeout=PATIENT_S)) == []


def test_what_never_was_runs_into_the_timeout(url: str) -> None:
    with app.testing.isolated(url), pytest.raises(ResultTimeout, match="nothing has come of no-such-call within 0 s"):
        next(app.AsyncResult("no-such-call", "default").stream(timeout=0))


@pytest.mark.parametrize("cursor", ["", "1", "1-", "-1", "1-2-3", "1-2\n", "x-1", "1-99999999999999999", 7])
def test_what_is_no_cursor_is_refused(cursor: Any) -> None:
    with pytest.raises(SettingsError, match="cursor"):
        counts.AsyncResult("id").stream(cursor)


def test_nothing_is_emitted_outside_of_a_call() -> None:
    assert counts(3) == "done"
    assert list(yields(3)) == [0, 1, 2]


refused: list[type[Exception]] = []


@app.task(bind=True)
def emits_badly(self: Any) -> None:
    for value in (object(), "x" * 2 * 1024 * 1024):
        try:
            self.emit(value)
        except (EncodeError, MessageTooLarge) as error:
            refused.append(type(error))


@app.task
def yields_badly() -> Iterator[object]:
    try:
        yield object()
    except EncodeError as error:
        refused.append(type(error))
        yield "went on"


def test_a_value_that_cannot_be_carried_is_the_error_of_the_body(mode: str) -> None:
    refused.clear()
    emits_badly.delay().get(timeout=PATIENT_S)
    assert values(list(yields_badly.delay().stream(timeout=PATIENT_S))) == ["went on"]
    assert refused == [EncodeError, MessageTooLarge, EncodeError]


def test_output_length_bounds_it(mode: str) -> None:
    result = counts.apply_async((1000,), output_length=100)
    result.get(timeout=PATIENT_S)
    gap, *rest = result.stream()
    assert isinstance(gap, Gap)
    # The server trims whole nodes, of a hundred entries.
    assert 799 <= gap.count <= 900
    assert values(rest) == list(range(gap.count, 1000))


@pytest.mark.parametrize("option", [{"output_length": 0}, {"output_length": 10**7}, {"output_expires": 0}])
def test_options_that_make_no_sense_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        app.task(name="never", **option)(lambda: None)
    with pytest.raises(SettingsError):
        counts.apply_async((1,), **option)


def test_options_of_the_task_and_of_the_app() -> None:
    defaults = App("x", task_defaults={"output_length": 7, "output_expires": 60})
    task = defaults.task(name="t")(lambda: None)
    assert (task.options.output_length, task.options.output_expires) == (7, 60.0)
    assert task.message(output_length=3)[0].meta == {"output_length": 3}


def test_the_output_goes_with_its_result(mode: str) -> None:
    result = counts.delay(2)
    assert len(list(result.stream(timeout=PATIENT_S))) == 2
    result.forget()
    with pytest.raises(ResultTimeout):
        next(result.stream(timeout=0))


def test_a_call_that_was_revoked_ends(url: str) -> None:
    with app.testing.worker(url=url):
        result = counts.apply_async((1,), countdown=3600)
        result.revoke()
        with pytest.raises(TaskRevoked):
            next(result.stream(timeout=PATIENT_S))


@app.task(bind=True)
def emits_from_threads(self: Any) -> None:
    def emit_some() -> None:
        for n in range(100):
            self.emit(n)

    threads = [threading.Thread(target=copy_context().run, args=(emit_some,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_threads_of_a_body_emit(url: str) -> None:
    with app.testing.worker(url=url):
        seen = list(emits_from_threads.delay().stream(timeout=PATIENT_S))
    assert sorted(values(seen)) == sorted([*range(100)] * 4)
    assert [each.cursor for each in seen if isinstance(each, Item)] == [f"1-{n}" for n in range(1, 401)]


@app.task(bind=True)
def hands_on(self: Any) -> None:
    self.emit("before")
    raise self.replace(counts.s(2))


@app.task
def takes(value: str) -> str:
    return value


def test_what_takes_the_place_of_a_call_goes_on_with_its_output(mode: str) -> None:
    seen = list(hands_on.delay().stream(timeout=PATIENT_S))
    assert values(seen) == ["before", NewRun(2), 0, 1]


def test_a_step_of_a_chain_is_watched_like_any_call(mode: str) -> None:
    last = (counts.s(3) | takes.s()).delay()
    assert last.parent is not None
    assert values(list(last.parent.stream(timeout=PATIENT_S))) == [0, 1, 2]
    assert list(last.stream(timeout=PATIENT_S)) == []


def test_a_step_that_never_ran_has_an_end(url: str) -> None:
    with app.testing.worker(url=url):
        last = (counts.s(1).set(countdown=3600) | takes.s() | takes.s()).delay()
        assert last.parent is not None
        last.revoke()
        with pytest.raises(TaskRevoked):
            next(last.parent.stream(timeout=PATIENT_S))


async def test_many_watch_on_one_connection(url: str, redis: Any) -> None:
    with app.testing.worker(url=url):
        result = counts.apply_async((50,), countdown=1)
        before = len(redis.client_list(_type="pubsub"))
        watchers = [asyncio.create_task(alist(result.stream(timeout=PATIENT_S))) for _ in range(1000)]
        for seen in await asyncio.gather(*watchers):
            assert values(seen) == list(range(50))
        assert len(redis.client_list(_type="pubsub")) <= before + 1
        await app.aclose()
