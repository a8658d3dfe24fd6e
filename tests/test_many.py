"""`map`, `starmap` and `chunks`: many calls of a function in one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import rsq
from rsq import (
    App,
    AsyncResult,
    SettingsError,
    Signature,
    Task,
    TimeLimitExceeded,
    chain,
    chunks,
    codec,
    group,
    xmap,
    xstarmap,
)
from rsq.canvas.signature import Group
from tests.modes import MODES, running

app = App("many", task_defaults={"max_retries": 0})
seen: list[Any] = []
not_lists: list[Any] = [(1, 2), 3]


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def doubled(a: int) -> int:
    await asyncio.sleep(0)
    return 2 * a


@app.task(bind=True, max_retries=2, default_retry_delay=0.01)
def at_second(self: Task[..., Any], a: int) -> list[int]:
    seen.append(a)
    if self.request.attempt == 1 and a == 2:
        raise ValueError(a)
    return [a, self.request.attempt]


@app.task
async def sleeps(a: int) -> None:
    await asyncio.sleep(60)


@app.task(dedupe_key="{a}")
def unique(a: int) -> int:
    return a


@app.task(rate_limit="1/s", rate_limit_key="{a}")
def slow(a: int) -> int:
    return a


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    seen.clear()
    with running(app, request) as mode:
        yield mode


def test_map_and_starmap(mode: str) -> None:
    assert total.map([range_of(10), range_of(100)]).delay().get(timeout=60) == [45, 4950]
    assert add.starmap((n, n) for n in range(10)).delay().get(timeout=60) == [2 * n for n in range(10)]
    assert ~xmap(total, [[1], [2, 3]]) == [1, 5]
    assert ~xstarmap(add.s().set(priority=5), ((n, 1) for n in range(3))) == [1, 2, 3]
    assert ~doubled.map(range(3)) == [0, 2, 4]
    assert ~doubled.starmap([[3]]) == [6]
    assert ~total.map([]) == []


def range_of(count: int) -> list[int]:
    return list(range(count))


def test_chunks(mode: str) -> None:
    made = add.chunks(((n, n) for n in range(100)), 10)
    result = made()
    assert len(result) == 10
    assert result.get(timeout=60) == [[2 * n for n in range(first, first + 10)] for first in range(0, 100, 10)]
    parts = chunks(add.s(), ((n, n) for n in range(5)), 2).group()
    assert type(parts) is Group
    assert parts.skew(start=0.01, stop=0.03, step=0.01).delay().get(timeout=60) == [[0, 2], [4, 6], [8]]
    assert [part.options["countdown"] for part in parts] == [0.01, 0.02, 0.01]
    assert add.chunks([], 3)().get(timeout=60) == []
    assert (add.chunks([(1, 1), (2, 2), (3, 3)], 2) | total.map([[1, 2]])).delay().get(timeout=60) == [3]


def test_in_a_canvas_its_list_is_what_it_was(mode: str) -> None:
    summed: AsyncResult[Any] = chain(add.s(1, 1), total.map([[5]]), total.s()).delay()
    assert summed.get(timeout=60) == 5
    assert group(total.map([[n], [1]]) for n in range(3)).delay().get(timeout=60) == [[0, 1], [1, 1], [2, 1]]
    given: Signature[Any] = doubled.signature(each="map")
    assert chain(group(add.s(1, 1), add.s(2, 2)), given, given).delay().get(timeout=60) == [8, 16]


def test_it_is_retried_as_one(mode: str) -> None:
    assert at_second.map([1, 2, 3]).delay().get(timeout=60) == [[1, 2], [2, 2], [3, 2]]
    assert seen == [1, 2, 1, 2, 3]


def test_a_failure_shows_the_bodys_own_lines(mode: str) -> None:
    result = add.starmap([(1, "x")]).delay()
    with pytest.raises(TypeError, match="unsupported operand"):
        result.get(timeout=60)
    assert result.traceback is not None
    assert "each.py" not in result.traceback
    assert "return a + b" in result.traceback


def test_a_time_limit_is_that_of_all(url: str) -> None:
    with app.testing.worker(url=url), pytest.raises(TimeLimitExceeded):
        sleeps.signature(([1, 2],), each="map", time_limit=0.05).delay().get(timeout=60)


def test_it_is_data() -> None:
    made = add.starmap([(1, 2)]).set(queue="x")
    assert made == Signature.from_dict(dict(made)) == codec.decode(codec.encode(made))
    assert repr(made) == f"[{add.name}(*x) for x in [(1, 2)]]"
    assert repr(total.map([[1]])) == f"[{total.name}(x) for x in [[1]]]"
    assert Signature.from_dict(dict(add.chunks([(1, 2)], 1))) == group(add.starmap([(1, 2)]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: add.map([1]).delay(), TypeError, r"add\(\) missing a required argument: 'b'"),
        (lambda: add.starmap([(1, 2), (1,)]).delay(), TypeError, r"add\(\) missing a required argument: 'b'"),
        (lambda: add.starmap(not_lists).delay(), TypeError, r"add\(\) starmap takes a list of lists .* 3 in it"),
        (lambda: add.starmap(["ab"]).delay(), TypeError, "'ab' in it is none"),
        (lambda: add.apply_async((1, 2), each="map"), TypeError, r"add\(\) with each='map' it takes one list"),
        (lambda: add.apply_async(([],), each="all"), SettingsError, "each takes 'map' or 'starmap', not 'all'"),
        (lambda: xmap(add.s(1), [1]), SettingsError, "map takes a task without arguments"),
        (lambda: xmap(add.s() | add.s(), [1]), SettingsError, "map takes a task without arguments"),
        (lambda: add.chunks([], 0), SettingsError, "a chunk has 1 item or more, not 0"),
        (lambda: unique.map([1]).delay(), SettingsError, "dedupe_key, which is made of the arguments of one call"),
        (lambda: slow.map([1]).delay(), SettingsError, "rate_limit_key, which is made .*: write group"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with app.testing.eager(), pytest.raises(error, match=text):
        call()


def test_a_name_alone_will_do(mode: str) -> None:
    assert xstarmap(rsq.signature(add.name, app=app), [(1, 2)]).delay().get(timeout=60) == [3]
