"""What chains, groups and chords do, in eager mode and with a worker alike; first what Celery's guide shows."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, partialmethod
from typing import Any

import pytest
import redis

from rsq import (
    App,
    AsyncResult,
    GroupResult,
    Ignore,
    ResultIgnored,
    ResultSet,
    ResultTimeout,
    Signature,
    State,
    Task,
    TaskRevoked,
    chain,
    chord,
    group,
    signature,
)
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange
from rsq.broker.status import counts
from rsq.broker.waiting import Awaited, Wanted
from rsq.broker.watched import Watched
from rsq.result_member import MemberResult
from tests.helpers import wait_until
from tests.modes import MODES, noted_in, running

app = App("flows", task_defaults={"max_retries": 0})
noted: list[Any] = []


class Broken(Exception):
    pass


@app.task
def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


@app.task
def mul(a: int, b: int) -> int:
    return a * b


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs] if kwargs else list(args)


@app.task
def breaks(*args: Any, text: str = "no") -> int:
    raise Broken(text)


@app.task
def ignores(*args: Any) -> None:
    raise Ignore


@app.task(ignore_result=True)
def keeps_none(a: int) -> int:
    return a


@app.task(bind=True, max_retries=3, default_retry_delay=0.01)
def at_third(self: Task[..., Any], a: int) -> list[Any]:
    if self.request.attempt < 3:
        self.retry()
    return [a, self.request.id, self.request.headers, self.request.priority]


@app.task(bind=True)
def who(self: Task[..., Any], *args: Any) -> list[Any]:
    return [self.request.id, self.request.parent, self.request.root, dict(self.request.headers)]


@app.task
async def aecho(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@app.task
def gives_signature(a: int) -> Signature[int]:
    return add.s(a)


@app.task
def starts(given: Signature[int]) -> str:
    return given.delay(1).id


@app.task
def note(*args: Any) -> None:
    noted.append(list(args))


@app.task
def note_error(request: Any, exc: BaseException, traceback: str, *more: Any) -> None:
    noted.append([request.id, type(exc), str(exc), "Broken: " in traceback, *more])


@app.task
def note_id(task_id: str) -> None:
    noted.append(task_id)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    noted.clear()
    with running(app, request) as mode:
        yield mode


noted_after = partial(noted_in, noted, add.s(1))


def started_by(given: Signature[int]) -> AsyncResult[Any]:
    """What a task starts that got it as an argument."""
    return app.AsyncResult(starts.delay(given).get(timeout=60), "default")


# -- what Celery's guide shows

SHOWN: dict[str, tuple[Callable[[], AsyncResult[Any]], Any]] = {
    "signature by name": (lambda: signature(add.name, args=(2, 2), app=app).delay(), 4),
    "signature method": (lambda: add.signature((2, 2), countdown=0.01).apply_async(), 4),
    "partial": (lambda: add.s(2).delay(4), 6),
    "partial keywords": (lambda: add.s(2, c=1).delay(c=5), 7),
    "partial by apply_async": (lambda: add.s(2).apply_async((4,), {"c": 1}), 7),
    "clone": (lambda: add.s(2).clone(args=(4,), kwargs={"c": 1}).delay(), 7),
    "immutable": (lambda: add.si(2, 2).apply_async((9,)), 4),
    "chain": (lambda: chain(add.s(2, 2), add.s(4), add.s(8))(), 16),
    "pipe": (lambda: (add.s(2, 2) | add.s(4) | add.s(8))(), 16),
    "immutable steps": (lambda: (add.si(2, 2) | add.si(4, 4) | add.si(8, 8))(), 16),
    "group": (lambda: group(add.s(i, i) for i in range(10))(), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
    "group of several": (lambda: group(add.s(2, 2), add.s(4, 4)).apply_async(), [4, 8]),
    "chord": (lambda: chord((add.s(i, i) for i in range(10)), total.s())(), 90),
    "chord called with its body": (lambda: chord([add.s(i, i) for i in range(100)])(total.s()), 9900),
    "immutable body": (lambda: chord([add.s(1, 1)], add.si(3, 4)).delay(), 7),
    "partial chain": (lambda: (add.s(4) | mul.s(8))(16), 160),
    "chains in a chain": (lambda: (add.s(4, 16) | mul.s(2) | (add.s(4) | mul.s(8)))(), 352),
    "group and task": (lambda: (group(add.s(i, i) for i in range(10)) | total.s())(), 90),
    "task and group": (lambda: (add.s(1) | group(add.s(1), mul.s(5))).delay(c=2), [4, 15]),
    "immutable members": (lambda: (add.s(4, 4) | group(add.si(i, i) for i in range(3)))(), [0, 2, 4]),
    "link": (lambda: add.apply_async((2, 2), link=mul.s(16)).children[0], 64),
    "link of a signature": (lambda: add.s(2, 2).set(link=[mul.s(16), add.s(8)]).delay().children[1], 12),
    "link of a chain": (lambda: chain(add.s(1, 1), add.s(1)).set(link=mul.s(5)).delay().children[0], 15),
    "link of a link": (
        lambda: add.s(1, 1).set(link=add.s(1).set(link=add.s(1))).delay().children[0].children[0],
        4,
    ),
}

# -- how canvases lie in each other

NESTED: dict[str, tuple[Callable[[], AsyncResult[Any]], Any]] = {
    "group in group": (lambda: group(add.s(1), group(add.s(2), add.s(3)), add.s(4)).delay(), [1, 2, 3, 4]),
    "group in group in header": (lambda: chord([group(add.s(1), add.s(2)), add.s(3)], echo.s()).delay(), [[1, 2, 3]]),
    "chain between keeps the nesting": (
        lambda: group(chain(add.s(1), group(add.s(1), add.s(2))), add.s(5)).delay(),
        [[2, 3], 5],
    ),
    "the same in a header": (
        lambda: chord([chain(add.s(1), group(add.s(1), add.s(2))), add.s(5)], echo.s()).delay(),
        [[[2, 3], 5]],
    ),
    "chord in a group": (lambda: group(chord([add.s(1), add.s(2)], total.s()), add.s(9)).delay(), [3, 9]),
    "chord in a header": (
        lambda: chord([chord([add.s(1), add.s(2)], total.s()), add.s(9)], total.s()).delay(),
        12,
    ),
    "chord behind a task": (lambda: chain(add.s(1, 1), chord([add.s(1), add.s(2)], total.s())).delay(), 7),
    "group and group": (lambda: (group(add.s(1), add.s(2)) | group(total.s(), echo.s())).delay(), [3, [[1, 2]]]),
    "nine groups in a row": (lambda: chain(*[group(echo.si(n), echo.si(n)) for n in range(9)]).delay(), [[8], [8]]),
    "nine chords in a row": (
        lambda: chain(*[part for n in range(9) for part in (group(add.si(n, 1), add.si(n, 2)), total.s())]).delay(),
        19,
    ),
    "group of one": (lambda: chain(add.s(1), group(add.s(1)), echo.s()).delay(), [[2]]),
    "empty group": (lambda: group([]).delay(), []),
    "empty header": (lambda: chord([], total.s()).delay(), 0),
    "empty group behind a task": (lambda: chain(add.s(1), group([]), echo.s()).delay(), [[]]),
    "empty group that begins a chain": (lambda: chain(group([]), echo.s()).delay(), [[]]),
    "group of empty groups": (lambda: group(group([]), group([])).delay(), []),
    "chords three deep": (
        lambda: chord([chord([chord([add.s(1, 1)], total.s()), add.s(1)], total.s())], total.s()).delay(),
        3,
    ),
    "chords in chains in groups": (
        lambda: group(
            chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(1)),
            chord([chain(add.s(1), group(add.s(1), add.s(2)), total.s()), add.s(3)], total.s()),
        ).delay(),
        [8, 8],
    ),
    "link of a chord": (
        lambda: chord([add.s(1), add.s(2)], total.s()).apply_async(link=[add.s(10), echo.s()]).children[0],
        13,
    ),
    "a canvas as link": (
        lambda: add.apply_async((1, 1), link=chord([add.s(1), add.s(2)], total.s())).children[0],
        7,
    ),
    "group that ends a chain with a link": (
        lambda: chain(add.s(1), group(add.s(1), add.s(2)).set(link=total.s())).delay().links[0],  # type: ignore[attr-defined]
        5,
    ),
    "coroutines": (lambda: chain(aecho.s([1]), group(aecho.s(), aecho.s()), aecho.s()).delay(), [[1], [1]]),
    "values of all kinds": (
        lambda: chain(
            aecho.s({"a": (2**60 + 1, b"x", {}, None, 1.5)}), group(aecho.s(), aecho.si(())), echo.s()
        ).delay(),
        [[{"a": (2**60 + 1, b"x", {}, None, 1.5)}, ()]],
    ),
    "ignored": (lambda: chain(ignores.s(), echo.s()).delay(), [None]),
    "members that keep no result": (lambda: chord([keeps_none.s(1), keeps_none.s(2)], total.s()).delay(), 3),
    "a value that is large": (
        lambda: chain(aecho.s("x" * 100_000), group(aecho.s(), aecho.si(1))).delay(),
        ["x" * 100_000, 1],
    ),
    "a signature as argument": (lambda: started_by(add.s(4)), 5),
    "a chain as argument": (lambda: started_by(add.s(4) | mul.s(2)), 10),
    "a signature as result": (lambda: chain(gives_signature.s(1), echo.s()).delay(), [add.s(1)]),
    "apply_async of a group": (lambda: group(add.s(1), add.s(2)).apply_async((10,), {"c": 5}), [16, 17]),
    "apply_async of a chord": (lambda: chord([add.s(1), add.s(2)], total.s()).apply_async((10,)), 23),
}


@pytest.mark.parametrize("shown", [*SHOWN, *NESTED])
def test_what_a_canvas_gives(mode: str, shown: str) -> None:
    start, value = {**SHOWN, **NESTED}[shown]
    result = start()
    assert result.get(timeout=60) == value
    assert result.state is State.SUCCESS
    assert asyncio.run(result.aget(timeout=60)) == value


def test_coroutines_start_and_wait_alike(mode: str) -> None:
    async def run() -> list[Any]:
        first = await (add.s(1, 1) | group(add.s(1), add.s(2))).adelay()
        second = await add.aapply_async((1, 1), link=add.s(5))
        seen = [each.id async for each in first.aas_completed(timeout=60)]  # type: ignore[attr-defined]
        assert sorted(seen) == sorted(each.id for each in first.results)  # type: ignore[attr-defined]
        parent, child = first.parent, second.children[0]
        assert parent is not None
        return [await first.aget(timeout=60), await child.aget(timeout=60), await parent.aget(timeout=60)]

    assert asyncio.run(run()) == [[3, 4], 7, 2]


def test_tilde_waits(mode: str) -> None:
    assert ~(add.s(1, 1) | add.s(3)) == 5


def test_apply_runs_it_here() -> None:
    result: AsyncResult[Any] = (add.s(1, 1) | group(add.s(1), at_third.s())).apply()
    first, second = result.get()
    assert first == 3
    assert second[0] == 2
    assert result.parent is not None
    assert result.parent.get() == 2
    assert add.apply((1, 2)).get() == 3
    assert isinstance(breaks.s().apply().result, Broken)
    with pytest.raises(Broken):
        chain(add.s(1), breaks.s()).apply(throw=True)


# -- handles


def test_parents_lead_back_through_the_whole_canvas(mode: str) -> None:
    result = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(1)).delay()
    values = []
    handle: AsyncResult[Any] | None = result
    while handle is not None:
        values.append(handle.get(timeout=60))
        handle = handle.parent
    assert values == [8, 7, [3, 4], 2]


def test_what_a_call_knows_of_its_place(mode: str) -> None:
    result: AsyncResult[Any] = chain(who.s(), group(who.si(), who.si()), who.si()).apply_async(headers={"a": 1})
    last = result.get(timeout=60)
    assert result.parent is not None
    assert result.parent.parent is not None
    first = result.parent.parent.get(timeout=60)
    members: list[Any] = result.parent.get(timeout=60)
    assert first == [result.parent.parent.id, None, None, {"a": 1}]
    assert last[0] == result.id
    assert last[1] in [member[0] for member in members], "released by the one that came last"
    assert {member[1] for member in members} == {first[0]}
    assert {each[2] for each in [last, *members]} == {first[0]}


def test_a_retry_keeps_what_it_is(mode: str) -> None:
    result = chain(add.s(1), at_third.s().set(priority=5, headers={"a": 1})).delay()
    assert result.get(timeout=60) == [1, result.id, {"a": 1}, 5]


def test_what_a_group_result_tells(mode: str) -> None:
    result = group(add.s(1), add.s(2), add.s(3)).delay()
    assert isinstance(result, GroupResult)
    assert result.get(timeout=60) == result.join(timeout=60) == [1, 2, 3]
    assert result.ready()
    assert result.successful()
    assert not result.failed()
    assert not result.waiting()
    assert result.completed_count() == len(result) == 3
    assert [each.get(timeout=60) for each in result] == [1, 2, 3]
    assert result[1].get() == 2
    assert result.children == result.results
    assert result.result == [1, 2, 3]
    progress = result.progress
    assert progress is not None
    assert (progress.current, progress.total) == (3, 3)
    assert sorted(each.get() for each in result.as_completed(timeout=60)) == [1, 2, 3]
    result.forget()


def test_a_set_of_results(mode: str) -> None:
    error: Any
    handles = [add.delay(n) for n in range(5)]
    results: ResultSet[int] = ResultSet(app.client, handles[:4])
    results.add(handles[4])
    results.add(handles[4])
    results.discard(handles[0])
    assert results.get(timeout=60) == [1, 2, 3, 4]
    assert results.completed_count() == 4
    broken: ResultSet[Any] = ResultSet(app.client, [add.delay(1), breaks.delay()])
    with pytest.raises(Broken):
        broken.get(timeout=60)
    value, error = broken.get(timeout=60, propagate=False)
    assert value == 1
    assert isinstance(error, Broken)
    assert broken.failed()
    assert broken.state is State.FAILURE
    assert "Broken" in (broken.traceback or "")
    with pytest.raises(ResultIgnored):
        ResultSet(app.client, [keeps_none.delay(1)]).get(timeout=60)
    with pytest.raises(TypeError, match="interval: needless"):
        broken.get(interval=1)


# -- failing


@pytest.mark.parametrize(
    "made",
    [
        chain(add.s(1), breaks.s(), add.s(1), add.s(2)),
        chord([add.s(1), breaks.s(), add.s(2)], total.s()),
        chord([chain(add.s(1), breaks.s(), add.s(1)), add.s(2)], total.s()),
        chain(add.s(1), group(add.s(1), breaks.s()), total.s(), add.s(1)),
        chain(group(breaks.s(), add.s(1)), group(echo.s(), echo.s())),
        group(add.s(1), breaks.s()),
    ],
    ids=str,
)
def test_a_canvas_that_fails_raises_the_own_error(mode: str, made: Signature[Any]) -> None:
    result = made.delay()
    with pytest.raises(Broken, match="no"):
        result.get(timeout=60)
    assert result.failed()
    assert result.state is State.FAILURE


def test_what_never_runs_says_why(mode: str) -> None:
    result = chain(add.s(1), breaks.s(), add.s(1), add.s(2)).delay()
    handle: AsyncResult[Any] | None = result
    states = []
    while handle is not None:
        wait_until(handle.ready, 60, "its end")
        states.append((handle.state, str(handle.get(timeout=60, propagate=False))))
        handle = handle.parent
    assert states == [("FAILURE", "no"), ("FAILURE", "no"), ("FAILURE", "no"), ("SUCCESS", "1")]


def test_values_beside_errors(mode: str) -> None:
    made: Any = group(add.s(1), breaks.s())
    first, second = made.delay().get(timeout=60, propagate=False)
    assert first == 1
    assert isinstance(second, Broken)


def test_a_call_that_expires_ends_what_waits_for_it(mode: str) -> None:
    result = chain(add.s(1).set(expires=-1), add.s(2)).delay()
    with pytest.raises(TaskRevoked, match="expired"):
        result.get(timeout=60)


# -- errbacks

ERRBACK = note_error.s()


def test_an_errback_of_a_task_runs_once(mode: str) -> None:
    result = breaks.apply_async(link_error=[note_error.s("more"), note_id.s(), note.si("immutable")])
    assert isinstance(result.get(timeout=60, propagate=False), Broken)
    assert sorted(noted_after(3), key=str) == sorted(
        [[result.id, Broken, "no", True, "more"], result.id, ["immutable"]], key=str
    )


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_errback_of_a_chain_runs_once_whichever_step_fails(mode: str, failing: int) -> None:
    steps: list[Signature[Any]] = [add.si(n, n) for n in range(3)]
    steps[failing] = breaks.si()
    result = chain(*steps).on_error(note_id.s()).delay()
    assert isinstance(result.get(timeout=60, propagate=False), Broken)
    assert len(noted_after(1)) == 1


def test_an_errback_of_a_group_runs_for_each_member_that_fails(mode: str) -> None:
    result: Any = group(breaks.s(), add.s(1), chain(add.s(1), breaks.s(), add.s(1))).on_error(note_id.s()).delay()
    assert isinstance(result.get(timeout=60, propagate=False)[0], Broken)
    chained = result.results[2].parent
    assert chained is not None
    assert sorted(noted_after(2)) == sorted([result.results[0].id, chained.id])


def test_an_errback_of_a_chord_runs_once_with_the_id_of_its_body(mode: str) -> None:
    result = chord([breaks.s(), breaks.s(), add.s(1)], total.s()).on_error(ERRBACK).delay()
    assert isinstance(result.get(timeout=60, propagate=False), Broken)
    assert noted_after(1) == [[result.id, Broken, "no", True]]


def test_an_errback_of_the_body_hears_of_the_header(mode: str) -> None:
    result = (group(breaks.s(), add.s(1)) | total.s().on_error(ERRBACK)).delay()
    assert isinstance(result.get(timeout=60, propagate=False), Broken)
    assert noted_after(1) == [[result.id, Broken, "no", True]]


def test_with_a_group_as_body_it_runs_for_each_of_its_members(mode: str) -> None:
    body = group(echo.s(), echo.s())
    result: Any = chord([breaks.s(), add.s(1)], body).on_error(note_id.s()).delay()
    assert isinstance(result.get(timeout=60, propagate=False)[0], Broken)
    assert sorted(noted_after(2)) == sorted(each.id for each in result.results)


def test_nothing_follows_what_failed(mode: str) -> None:
    result = breaks.apply_async(link=note.s("link"))
    assert isinstance(result.get(timeout=60, propagate=False), Broken)
    assert isinstance(result.children[0].get(timeout=60, propagate=False), Broken)
    assert noted_after(0) == []


# -- waiting


def test_waiting_has_a_timeout(mode: str) -> None:
    if mode == "worker":
        many = group(add.s(1), add.s(2).set(countdown=600)).delay()
        result = chain(add.s(1).set(countdown=600), add.s(2)).delay()
        for handle in (result, result.parent, many):
            assert handle is not None
            assert not handle.ready()
            for timeout in (0, 0.1):
                with pytest.raises(ResultTimeout):
                    handle.get(timeout=timeout)
        for handle in (result, many):
            handle.revoke()
            with pytest.raises(TaskRevoked):
                handle.get(timeout=60)
        assert many[0].get(timeout=60) == 1


# -- with a server


@app.task
def breaks_at_first(a: int) -> int:
    if not noted:
        raise Broken("not yet")
    return a


def test_a_step_that_is_sent_again_and_succeeds_continues_its_canvas(url: str) -> None:
    noted.clear()
    with app.testing.worker(url=url) as worker:
        result = chain(add.s(1), group(breaks_at_first.s(), add.s(1)), total.s()).delay()
        with pytest.raises(Broken):
            result.get(timeout=60)
        worker.wait_idle(timeout=60)
        noted.append("mended")
        queue = app.client.queue(None)
        with app.client.link() as link:
            (letter,) = dead_letters(link, queue)
            assert redrive(link, queue, letter)
        wait_until(lambda: app.AsyncResult(result.id, "default").state == State.SUCCESS, 60, "its end")
        assert app.AsyncResult(result.id, "default").get() == 3


def test_a_callback_that_died_and_is_sent_again_goes_on_with_what_follows_it(url: str) -> None:
    noted.clear()
    with app.testing.worker(url=url) as worker:
        first = add.s(1, 2)
        first.link(breaks_at_first.s() | add.s(10))
        result = first.delay()
        assert result.get(timeout=60) == 3
        worker.wait_idle(timeout=60)
        noted.append("mended")
        with app.client.link() as link:
            (letter,) = dead_letters(link, app.client.queue(None))
            assert redrive(link, app.client.queue(None), letter)
        worker.wait_idle(timeout=60)
        assert result.children[0].get(timeout=60) == 13


@app.task
def note_reason(request: Any, exc: BaseException, traceback: str) -> None:
    noted.append(str(exc))


def test_an_errback_whose_call_has_succeeded_meanwhile_is_told_the_error(url: str) -> None:
    noted.clear()
    with app.testing.isolated(url):
        with app.testing.worker(["default"]):
            result = breaks_at_first.s(1).on_error(note_reason.s().set(queue="later")).delay()
            with pytest.raises(Broken):
                result.get(timeout=60)
            noted.append("mended")
            with app.client.link() as link:
                queue = app.client.queue(None)
                (letter,) = dead_letters(link, queue)
                assert redrive(link, queue, letter)
            wait_until(lambda: app.AsyncResult(result.id, "default").state == State.SUCCESS, 60, "its end")
        with app.testing.worker(["later"]):
            wait_until(lambda: len(noted) == 2, 60, "its errback")
    assert noted == ["mended", "not yet"]


DELAYED: dict[str, Callable[[], Signature[Any]]] = {
    "of a group": lambda: group(add.s(1, 1).set(countdown=600), add.s(2, 2).set(countdown=600)),
    "before others": lambda: chain(add.s(1, 1).set(countdown=600), add.s(2)),
}


@pytest.mark.parametrize("cancel", ["the flow", "by id, too"])
@pytest.mark.parametrize("made", DELAYED.values(), ids=DELAYED.keys())
def test_that_a_delayed_call_was_cancelled_is_told_once(
    url: str, cancel: str, made: Callable[[], Signature[Any]]
) -> None:
    """By the flow; neither who revokes it nor the worker that gives it up tells it again."""
    with app.testing.worker(url=url) as worker, app.client.link() as link:
        handle = made().delay()
        calls = [*handle] if isinstance(handle, GroupResult) else [handle.parent, handle]
        channels = [app.client.queue(None).keys.result(each.id) for each in calls if each is not None]
        with redis.Redis.from_url(app.settings.url) as client, client.pubsub(ignore_subscribe_messages=True) as told:
            told.subscribe(*channels)
            told.get_message(ignore_subscribe_messages=False, timeout=60)
            if cancel == "the flow":
                assert app.client.flows.cancel(handle.id)
            else:
                assert app.flows[handle.id].cancel()
            wait_until(lambda: not counts(link, app.client.queue(None)).delayed, 60, "them to be given up")
            worker.wait_idle(timeout=60)
            link.call("PUBLISH", channels[0], b"the end")
            heard: list[bytes] = []
            while not heard or heard[-1] != b"the end":
                if (message := told.get_message(timeout=60)) is not None:
                    heard.append(message["data"])
        assert len(heard) == 3
        for each in calls:
            assert each is not None
            with pytest.raises(TaskRevoked, match="cancelled"):
                each.get(timeout=60)


@app.task
def lasts() -> None:
    noted.append("began")
    wait_until(lambda: "over" in noted, 60, "the end")


@pytest.mark.parametrize("restored", [False, True], ids=["its handle", "found again"])
def test_a_group_is_revoked_while_it_runs(url: str, restored: bool) -> None:
    """What runs is interrupted, what waits never starts; in a chord the body does not run, either."""
    noted.clear()
    try:
        with app.testing.worker(url=url) as worker:
            members = group(lasts.s(), add.s(1, 1).set(countdown=600), lasts.s() | note.s("behind"))
            alone = members.delay()
            bodied = (group(lasts.s(), add.s(1, 1)) | note.s("body")).delay()
            alone.save()
            wait_until(lambda: len(noted) == 1, 60, "one to run")
            found = GroupResult.restore(alone.id, app) if restored else alone
            assert found is not None
            found.revoke(terminate=True)
            bodied.revoke(terminate=True)
            for each in (*alone, bodied):
                with pytest.raises(TaskRevoked):
                    each.get(timeout=60)
            worker.wait_idle(timeout=60)
            assert {*noted} == {"began"}
    finally:
        noted.append("over")


def test_a_long_chain_and_a_large_chord(url: str) -> None:
    with app.testing.worker(url=url) as worker:
        long = chain(add.s(0, 1), *[add.s(1)] * 2999).delay()
        large = (group([add.s(0, 1)] * 5000) | total.s()).delay()
        assert long.get(timeout=300) == 3000
        assert large.get(timeout=300) == 5000
        worker.wait_idle(timeout=60)
        for result in (long, large):
            flow = app.client.flows.look(result.id)
            assert flow is not None
            assert flow.state == "succeeded"


def test_a_thousand_results_are_one_subscription_and_one_pipeline(url: str) -> None:
    with app.testing.worker(url=url) as worker:
        result = group(add.s(number) for number in range(1000)).delay()
        worker.wait_idle(timeout=60)
        worker.stop()  # it asks the server now and then, too
        before = commands()
        assert result.get(timeout=60) == list(range(1000))
        after = commands()
        assert after["subscribe"] - before.get("subscribe", 0) == 1
        assert after["get"] - before.get("get", 0) == 1000
        again = GroupResult[int](app.client, "x", [app.AsyncResult(each.id, "default") for each in result])
        assert again.completed_count() == 1000
        assert commands()["get"] - after["get"] == 1000
        result.forget()


def commands() -> dict[str, int]:
    """How often the server was asked what."""
    (info,) = app.client.ask(("INFO", "commandstats"))
    text = info.decode() if isinstance(info, bytes) else str(info)
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(\w+):calls=(\d+)", text)}


@pytest.mark.parametrize("how", ["get", "aget", "set", "aset", "stream", "astream"])
def test_who_waits_for_a_step_that_will_never_run_hears_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It looks once, when it begins to listen; what comes later nobody has to look for."""
    go_on = threading.Event()
    looks: list[Awaited[Any]] = []

    def look_once(
        awaited: Awaited[Any], deadline: Deadline, look: Callable[[Any, Deadline], Exchange[None]]
    ) -> Exchange[None]:
        looks.append(awaited)
        yield from look(awaited, deadline) if len(looks) == 1 else ()

    for kind in (Wanted, Watched):
        monkeypatch.setattr(kind, "looking_on", partialmethod(look_once, look=kind.looking_on))

    @app.task(name="breaks_late")
    def breaks_late() -> None:
        assert go_on.wait(60)
        raise Broken("late")

    async def awaited(handle: AsyncResult[Any]) -> Any:
        return [seen async for seen in handle.stream()] if how == "astream" else await handle.aget()

    def waited(handle: AsyncResult[Any]) -> Any:
        return [*handle.stream()] if how == "stream" else handle.get()

    with app.testing.worker(url=url), ThreadPoolExecutor(1) as beside:
        middle = (breaks_late.s() | add.s() | add.s(1)).delay().parent
        assert isinstance(middle, MemberResult)
        assert not middle.last
        handle: AsyncResult[Any] = ResultSet(app.client, [middle]) if how.endswith("set") else middle
        waits = beside.submit(asyncio.run, awaited(handle)) if how[0] == "a" else beside.submit(waited, handle)
        wait_until(lambda: looks, 60, "a look")
        go_on.set()
        with pytest.raises(Broken, match="late"):
            waits.result(timeout=60)


def test_who_waits_for_a_step_that_has_fallen_finds_it(url: str) -> None:
    with app.testing.worker(url=url):
        first = (breaks.s() | add.s() | add.s(1)).delay()
        with pytest.raises(Broken):
            first.get(timeout=60)
        middle = first.parent
        assert middle is not None
        with pytest.raises(Broken):
            middle.get(timeout=60)


def test_as_completed_gives_them_as_they_come(url: str) -> None:
    with app.testing.worker(url=url):
        result = group(add.s(1).set(countdown=0.6), add.s(2), add.s(3).set(countdown=0.3)).delay()
        assert [each.get() for each in result.as_completed(timeout=60)] == [2, 3, 1]
