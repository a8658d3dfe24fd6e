"""Each rule of a call as a way for a member of a canvas to end: nothing waits for ever, and nothing runs early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from rsq import (
    App,
    AsyncResult,
    Ignore,
    MessageTooLarge,
    QueueFull,
    QueuePaused,
    Reject,
    Rejected,
    Signature,
    SoftTimeLimitExceeded,
    State,
    TaskRevoked,
    TimeLimitExceeded,
    chain,
    chord,
    group,
)
from tests.helpers import wait_until
from tests.modes import MODES, running

app = App("endings", task_defaults={"max_retries": 0}, max_message_bytes=1_000_000)
noted: list[Any] = []
at_once: list[int] = []


class Broken(Exception):
    pass


@app.task
def add(a: int, b: int = 1) -> int:
    return a + b


@app.task
def echo(*args: Any) -> list[Any]:
    noted.append("body")
    return list(args)


@app.task
def told(task_id: str) -> None:
    noted.append("errback")


@app.task(dedupe_key="key {a}")
def keyed(a: int, b: int = 1) -> int:
    return a + b


@app.task(rate_limit="50/s")
def rated(a: int) -> int:
    return a


@app.task(max_concurrency=1)
async def alone(a: int) -> int:
    at_once.append(a)
    try:
        assert len(at_once) == 1
        await asyncio.sleep(0.01)
        return a
    finally:
        at_once.remove(a)


@app.task(rate_limit="50/s", rate_limit_key="{a}", max_concurrency=1, max_concurrency_key="{a}")
def rated_by_value(a: int) -> int:
    return a


@app.task
async def sleeps(*args: Any) -> None:
    await asyncio.sleep(60)


@app.task
def breaks(*args: Any) -> None:
    raise Broken("no")


@app.task(max_retries=2, default_retry_delay=0.01)
def breaks_again(*args: Any) -> None:
    noted.append("attempt")
    raise Broken("no")


@app.task
def rejects(*args: Any) -> None:
    raise Reject("not me")


@app.task
def ignores(*args: Any) -> None:
    raise Ignore


@app.task
def too_large(*args: Any) -> str:
    return "x" * 1_100_000


@app.task(acks_late=False)
def early(a: int = 1) -> int:
    return a


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    noted.clear()
    with running(app, request) as mode:
        yield mode


@pytest.fixture
def worker(url: str) -> Iterator[None]:
    noted.clear()
    with app.testing.worker(url=url) as worker:
        yield
        worker.wait_idle(timeout=60)


def held() -> Signature[Any]:
    """One whose key an earlier call has."""
    keyed.delay(5).get(timeout=60)
    return keyed.s(5, 2)


def superseded() -> Signature[Any]:
    """One of which a newer version is done."""
    add.apply_async((1,), dedupe_key="doc", version=7).get(timeout=60)
    return add.signature((1,), dedupe_key="doc", version=3)


Way: TypeAlias = "tuple[Callable[[], Signature[Any]], type[Exception], str, bool]"
"""Makes the member; its error, with this text, and whether errbacks hear of it."""

BADLY: dict[str, Way] = {
    "fails": (lambda: breaks.s(), Broken, "no", True),
    "retries exhausted": (lambda: breaks_again.s(), Broken, "no", True),
    "rejected": (lambda: rejects.s(), Rejected, "not me", True),
    "result too large": (lambda: too_large.s(), MessageTooLarge, "the limit is", True),
    "duplicate": (held, TaskRevoked, "duplicate of", False),
    "superseded": (superseded, TaskRevoked, "superseded", False),
    "expired": (lambda: add.signature((1,), expires=-1), TaskRevoked, "expired", False),
}

LIMITED: dict[str, Way] = {
    "time limit": (lambda: sleeps.signature(time_limit=0.05), TimeLimitExceeded, "limit", True),
    "soft time limit": (lambda: sleeps.signature(soft_time_limit=0.05), SoftTimeLimitExceeded, "limit", True),
}
"""For which eager mode has no clock."""

WELL: dict[str, tuple[Callable[[], Signature[Any]], Any]] = {
    "ignored": (lambda: ignores.s(), None),
    "rate limit": (lambda: rated.s(3), 3),
    "limit of places": (lambda: alone.s(3), 3),
    "limits by value": (lambda: rated_by_value.s(3), 3),
    "taken early": (lambda: early.s(3), 3),
    "own key": (lambda: keyed.s(time.monotonic_ns(), 0) | add.s(0) | echo.si(3), [3]),
    "newest version": (
        lambda: add.signature((1,), dedupe_key=f"x{time.monotonic_ns()}", version=1),
        2,
    ),
    "time limit": (lambda: add.signature((1,), time_limit=60, soft_time_limit=50), 2),
    "expires later": (lambda: add.signature((1,), expires=600, countdown=0.01), 2),
}


def check(made: Signature[Any], error: type[Exception], text: str, has_errback: bool) -> None:
    made.link_error(told.s())
    handle: AsyncResult[Any] = made.delay()
    with pytest.raises(error, match=text):
        handle.get(timeout=60)
    add.delay(1).get(timeout=60)
    wait_until(lambda: noted.count("errback") == int(has_errback), 60, "the errback")
    assert "body" not in noted


@pytest.mark.parametrize("place", ["first step", "later step", "header", "header behind a step"])
class TestBadly:
    @staticmethod
    def made(way: Signature[Any], place: str) -> Signature[Any]:
        made: dict[str, Callable[[], Signature[Any]]] = {
            "first step": lambda: way | echo.s(),
            "later step": lambda: chain(add.s(1), way.set(immutable=True), echo.s()),
            "header": lambda: chord([add.s(1), way], echo.s()),
            "header behind a step": lambda: chain(add.s(1), group(add.s(), way.set(immutable=True)), echo.s()),
        }
        return made[place]()

    @pytest.mark.parametrize("way", BADLY)
    def test_what_waits_for_it_ends_with_it(self, mode: str, way: str, place: str) -> None:
        make, error, text, has_errback = BADLY[way]
        check(self.made(make(), place), error, text, has_errback)
        if way == "retries exhausted":
            assert noted.count("attempt") == 3

    @pytest.mark.parametrize("way", LIMITED)
    def test_by_time_limits(self, worker: None, way: str, place: str) -> None:
        make, error, text, has_errback = LIMITED[way]
        check(self.made(make(), place), error, text, has_errback)

    def test_by_being_revoked(self, worker: None, place: str) -> None:
        canvas = self.made(add.signature((1,), countdown=600), place)
        canvas.link_error(told.s())
        handle = canvas.delay()
        member = handle.parent
        if isinstance(member, AsyncResult) and "header" in place:
            member = member[1]  # type: ignore[index]
        assert member is not None
        member.revoke()
        with pytest.raises(TaskRevoked):
            handle.get(timeout=60)
        assert member.state is State.REVOKED
        add.delay(1).get(timeout=60)
        assert noted == []


@pytest.mark.parametrize("way", WELL)
def test_what_waits_for_it_goes_on(mode: str, way: str) -> None:
    make, value = WELL[way]
    assert (make() | echo.s()).delay().get(timeout=60) == [value]
    assert chain(add.s(1), make().set(immutable=True), echo.s()).delay().get(timeout=60) == [value]


@pytest.mark.parametrize("task", [rated, alone, rated_by_value], ids=lambda task: task.name)
def test_members_that_wait_for_a_limit_are_all_waited_for(worker: None, task: Any) -> None:
    assert chord([task.s(n % 2) for n in range(6)], echo.s()).delay().get(timeout=60) == [[0, 1, 0, 1, 0, 1]]


def test_two_members_with_one_key(worker: None) -> None:
    """The second one is a duplicate of the first, and ends at once."""
    handle = group(keyed.s(77), keyed.s(77), add.s(1)).delay()
    first, second, third = handle.get(timeout=60, propagate=False)
    assert {type(first), type(second)} == {int, TaskRevoked}
    assert third == 2


def test_a_limit_that_is_made_of_what_comes_before(worker: None) -> None:
    assert chain(add.s(1), rated_by_value.s(), echo.s()).delay().get(timeout=60) == [2]


def test_a_queue_that_refuses_one_refuses_all(worker: None) -> None:
    app.pause("refusing", refuse=True)
    with pytest.raises(QueuePaused):
        group(add.s(1), add.s(1).set(queue="refusing")).delay()
    with pytest.raises(QueueFull):
        chain(add.s(1).set(queue="nobody", max_length=1), group(add.s(n) for n in range(3))).set(max_length=1).delay()
        chain(add.s(1).set(queue="nobody", max_length=1), add.s(1)).delay()
    add.delay(1).get(timeout=60)
    assert noted == []
    app.resume("refusing")
