"""Handles as data, as arguments and results, saved and found again; and what they lead to."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from msgpack import ExtType, packb  # type: ignore[import-untyped, unused-ignore]

import rsq
from rsq import (
    App,
    AsyncResult,
    GroupResult,
    ResultSet,
    ResultTimeout,
    SettingsError,
    Signature,
    Task,
    chain,
    codec,
    group,
    result_from_tuple,
)
from rsq.app import shared
from rsq.broker.client import Client
from rsq.canvas.signature import Chain
from rsq.errors import DecodeError
from rsq.home import project, reading_for
from rsq.result_member import MemberResult

app = App("handles", task_defaults={"max_retries": 0})
elsewhere = App("elsewhere", url="redis://localhost:1")


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def starts(n: int) -> AsyncResult[int]:
    return add.delay(n, 1)


@app.task
def starts_group(n: int) -> GroupResult[int]:
    return (add.s(n) | group(add.s(1), add.s(2))).delay()  # type: ignore[return-value]


@app.task
def starts_given(given: Signature[int]) -> AsyncResult[int]:
    return given.delay(1)


@app.task(bind=True)
def looks_again(self: Task[..., Any], given: Signature[int], handle: AsyncResult[int]) -> list[bool]:
    mine, other = self.request.args
    return [mine.app is self.app, other._client is self.app.client, given.app is self.app, handle == other]


@app.task
def told(handle: AsyncResult[int]) -> list[Any]:
    return [type(handle).__name__, handle.id, handle.queue]


def canvas() -> AsyncResult[Any]:
    """A handle with everything: parents, members, links."""
    made = add.s(1, 1).set(link=add.s(5)) | group(add.s(1), add.s(2)) | total.s() | group(add.s(1), add.s(2) | add.s(3))
    made.set(link=total.s())
    return made.delay()


def spelled(handle: AsyncResult[Any] | None, known: tuple[AsyncResult[Any], ...] = ()) -> Any:
    """All that is to be known of a handle and of those that it leads to."""
    if handle is None or handle in known:
        return handle and handle.id
    known = (*known, handle)
    place = [getattr(handle, name, None) for name in ("flow", "number", "last", "whole", "duplicate", "_ignored")]
    others = [[spelled(each, known) for each in getattr(handle, name, ())] for name in ("links", "results")]
    return [type(handle), handle.id, handle.queue, place, spelled(handle.parent, known), *others]


WAYS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda each: result_from_tuple(each.as_tuple(), app),
    "json": lambda each: result_from_tuple(json.loads(json.dumps(each.as_tuple())), app),
    "codec": lambda each: codec.decode(codec.encode(each)),
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_handle_is_data(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "app", app)
    with app.testing.eager():
        for handle in (canvas(), add.delay(1), ResultSet[int](app.client, [add.delay(1), add.delay(2)])):
            with reading_for(app):
                again = WAYS[way](handle)
            assert spelled(again) == spelled(handle)
            assert again == handle
            assert again.get() == handle.get()


def test_a_handle_in_two_sets_is_one() -> None:
    with app.testing.eager(), reading_for(app):
        handle = add.delay(1)
        inner: ResultSet[int] = ResultSet(app.client, [handle])
        outer: Any = codec.decode(codec.encode(ResultSet[Any](app.client, [handle, inner, inner])))
        assert outer[1] is outer[2]
        assert outer[0] is outer[1][0]


def test_a_long_chain_is_a_table() -> None:
    with app.testing.eager(), reading_for(app):
        handle: AsyncResult[Any] = Chain([add.s(1), *(add.s(1) for _ in range(3000))]).freeze()
        again = codec.decode(codec.encode(handle))
        steps = 0
        while again is not None:
            again, steps = again.parent, steps + 1
        assert steps == 3001


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        [0, []],
        [0, [["nothing"]]],
        [0, [["call", "id", None, False]]],
        [0, [["call", "no id", None, False, False]]],
        [0, [["call", "id", "no queue!", False, False]]],
        [0, [["set", [0]]]],
        [0, [["set", [-1]]]],
        [0, [["group", "id", [], "flow", True, 7, []]]],
        [0, [["member", "id", None, False, "flow", "x", True, True, None, []]]],
    ],
)
def test_what_is_no_handle_is_refused(table: Any) -> None:
    with pytest.raises(SettingsError, match=r"this is not what as_tuple\(\) of a handle gives"):
        result_from_tuple(table, app)
    with pytest.raises(DecodeError, match="a handle that cannot be read"), app.testing.eager():
        codec.decode(packb(ExtType(14, packb(table))))


def test_handles_are_arguments_and_results(mode: str) -> None:
    handle: AsyncResult[Any] = add.delay(1, 2)
    assert told.delay(handle).get(timeout=60) == ["AsyncResult", handle.id, handle.queue]
    member: AsyncResult[Any] = chain(add.s(1), add.s(2)).delay()
    assert told.delay(member).get(timeout=60) == ["MemberResult", member.id, member.queue]
    found = starts.delay(3).get(timeout=60)
    assert found._client is app.client
    assert found.get(timeout=60) == 4
    several = starts_group.delay(3).get(timeout=60)
    assert isinstance(several, GroupResult)
    assert several.get(timeout=60) == [4, 5]
    assert several.parent is not None
    assert several.parent.get(timeout=60) == 3


def test_what_is_read_belongs_to_the_app_whose_call_or_handle_reads_it(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "find", lambda: elsewhere)
    assert starts_given.delay(add.s(2)).get(timeout=60).get(timeout=60) == 3
    assert looks_again.delay(add.s(2), add.delay(1)).get(timeout=60) == [True] * 4


def test_read_outside_of_all_it_is_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "find", lambda: elsewhere)
    with app.testing.eager():
        packed = codec.encode([add.delay(1), add.s(1)])
    handle, made = codec.decode(packed)
    assert handle._client is elsewhere.client
    assert made.app is elsewhere


def test_a_group_is_saved_and_found_again(mode: str) -> None:
    handle = (add.s(1) | group(add.s(1), add.s(2))).delay()
    assert isinstance(handle, GroupResult)
    assert GroupResult.restore(handle.id, app) is None
    handle.save()
    found = GroupResult.restore(handle.id, app)
    assert found is not None
    assert spelled(found) == spelled(handle)
    assert found.get(timeout=60) == [2, 3]
    found.delete()
    assert GroupResult.restore(handle.id, app) is None

    async def run() -> Any:
        await handle.asave(expires=60)
        again = await GroupResult.arestore(handle.id, app)
        await handle.adelete()
        return again, await GroupResult.arestore(handle.id, app)

    again, gone = asyncio.run(run())
    assert again == handle
    assert gone is None
    with pytest.raises(SettingsError, match="expires"):
        handle.save(expires=-1)


def test_a_saved_group_has_its_time(url: str) -> None:
    with app.testing.isolated(url):
        handle: GroupResult[int] = GroupResult(app.client, "mine", [])
        handle.save(expires=60)
        (left_ms,) = app.client.ask(("PTTL", f"{{{app.settings.namespace}:0}}::group:mine"))
        assert 0 < left_ms <= 60_000


def test_what_a_handle_leads_to(mode: str) -> None:
    last = chain(add.s(1, 1), add.s(2), add.s(3).set(link=add.s(10))).delay()
    assert last.get(timeout=60) == 7
    assert last.parent is not None
    first = last.parent.parent
    assert first is not None
    (link,) = last.children
    assert [each for each, _ in first.collect(timeout=60)] == [first, last.parent, last, link]
    assert [value for _, value in first.collect(timeout=60)] == [2, 4, 7, 17]
    assert list(first.iterdeps()) == [(None, first), (first, last.parent), (last.parent, last), (last, link)]
    assert first.graph == {first: [last.parent], last.parent: [last], last: [link], link: []}


def test_it_leads_to_what_its_call_gave(mode: str) -> None:
    handle = starts.delay(1)
    found = dict(handle.collect(timeout=60))
    assert found == {handle: handle.get(), handle.get(): 2}
    several = dict(starts_group.delay(1).collect(timeout=60))
    assert [value for value in several.values() if isinstance(value, int)] == [2, 3]


def test_what_has_not_ended_ends_the_way() -> None:
    with app.testing.eager():
        handle = AsyncResult[int](app.client, "not-there", "default")
        found = handle.iterdeps()
        assert next(found) == (None, handle)
        with pytest.raises(ResultTimeout):
            next(found)
        assert list(handle.iterdeps(intermediate=True)) == [(None, handle)]


def test_a_set_is_filled_and_read_as_with_celery(mode: str) -> None:
    one, two, three = (add.delay(n) for n in range(3))
    results: ResultSet[int] = ResultSet(app.client, [one])
    results.update([one, two, two, three])
    assert results.results == [one, two, three]
    results.remove(two)
    with pytest.raises(KeyError):
        results.remove(two)
    assert results.join_native(timeout=60) == [0, 2]
    told_of = dict(results.iter_native(timeout=60))
    assert told_of[three.id] == {"status": "SUCCESS", "result": 2, "traceback": None, "task_id": three.id}
    assert results != ResultSet[int](app.client, [one])
    assert results == ResultSet[int](app.client, [one, three])
    assert str(one) == one.id
    results.clear()
    assert len(results) == 0

    async def run() -> list[Any]:
        several: Any = await group(add.s(1), add.s(2)).adelay()
        await several.aget(timeout=60)
        seen = [await several.acompleted_count(), await several.awaiting(), await several.asuccessful()]
        seen += [await several.afailed(), await one.asuccessful()]
        await several.aforget()
        return seen

    assert asyncio.run(run()) == [2, False, True, False, True]


def test_all_are_known_by_name() -> None:
    assert rsq.result_from_tuple is result_from_tuple
    assert issubclass(MemberResult, AsyncResult)
    assert Client(app.settings).home is None
