"""Stamps: what is put on every call of a canvas, and calls that are revoked by it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from rsq import (
    App,
    AsyncResult,
    SettingsError,
    Signature,
    StampingVisitor,
    State,
    Task,
    TaskRevoked,
    chord,
    group,
)
from rsq.canvas.stamping import NAMES
from tests.helpers import wait_until

app = App("stamps", task_defaults={"max_retries": 1, "default_retry_delay": 0.01})
noted: list[Any] = []
running_now = threading.Event()
go_on = threading.Event()


@app.task(bind=True)
def stamps(self: Task[..., Any], *args: Any) -> dict[str, Any]:
    return dict(self.request.stamps)


@app.task(bind=True)
def at_second(self: Task[..., Any]) -> list[Any]:
    if self.request.attempt == 1:
        self.retry()
    return [dict(self.request.stamps), self.request.stamped_headers, dict(self.request.headers)]


@app.task(bind=True)
def notes(self: Task[..., Any], *args: Any) -> None:
    noted.append(dict(self.request.stamps))


@app.task(bind=True)
def becomes(self: Task[..., Any]) -> Any:
    self.replace(stamps.s().stamp(own=1, a=1) | stamps.si())


@app.task
def breaks() -> None:
    raise ValueError


@app.task
def waits() -> str:
    running_now.set()
    while not go_on.wait(0.01):
        pass
    return "went on"


@pytest.fixture(autouse=True)
def fresh() -> None:
    noted.clear()
    running_now.clear()
    go_on.clear()


class Trail(StampingVisitor):
    """Notes which hook was called with what, and stamps each part with its place."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _at(self, hook: str, headers: Mapping[str, Any], **given: Any) -> dict[str, Any]:
        self.seen.append(f"{hook} {' '.join(headers[NAMES])}".strip())
        return given

    def on_signature(self, sig: Any, /, **headers: Any) -> dict[str, Any]:
        return self._at(f"sig {sig.args[0] if sig.args else ''}".strip(), headers, own=True)

    def on_chain_start(self, chain: Any, /, **headers: Any) -> dict[str, Any]:
        return self._at("chain", headers, chain=True)

    def on_chain_end(self, chain: Any, /, **headers: Any) -> None:
        self._at("chain-end", headers)

    def on_group_start(self, group: Any, /, **headers: Any) -> dict[str, Any]:
        return self._at("group", headers, group=True)

    def on_group_end(self, group: Any, /, **headers: Any) -> None:
        self._at("group-end", headers)

    def on_chord_header_start(self, sig: Any, /, **headers: Any) -> dict[str, Any]:
        self._at("header", headers)
        return {**(super().on_chord_header_start(sig, **headers) or {}), "header": True}

    def on_chord_header_end(self, sig: Any, /, **headers: Any) -> None:
        self._at("header-end", headers)

    def on_chord_body(self, sig: Any, /, **headers: Any) -> dict[str, Any]:
        return self._at("body", headers, body=True)

    def on_callback(self, callback: Any, /, **headers: Any) -> dict[str, Any]:
        return self._at("callback", headers, callback=True)

    def on_errback(self, errback: Any, /, **headers: Any) -> dict[str, Any]:
        return self._at("errback", headers, errback=True)


def test_all_calls_of_a_canvas_are_stamped(mode: str) -> None:
    made = (stamps.s() | group(stamps.s(), stamps.s() | stamps.s()) | stamps.s()).stamp(run=7, by="me")
    handle: AsyncResult[Any] | None = made.delay()
    every = []
    while handle is not None:
        every.append(handle.get(timeout=60))
        handle = handle.parent
    stamped = {"run": 7, "by": "me"}
    assert every == [stamped, [stamped, stamped], stamped]


def test_callbacks_are_stamped(mode: str) -> None:
    stamps.s().set(link=notes.s(), link_error=notes.s(1)).stamp(a=1).delay().children[0].get(timeout=60)
    chord([stamps.s(), breaks.s()], stamps.s()).on_error(notes.s()).stamp(a=2).delay().get(timeout=60, propagate=False)
    wait_until(lambda: len(noted) == 2, 60, "the notes")
    assert noted == [{"a": 1}, {"a": 2}]


def test_they_stay_with_a_retry_and_beside_headers(mode: str) -> None:
    made = at_second.s().set(headers={"h": 1}).stamp(a=[1, 2])
    assert made.delay().get(timeout=60) == [{"a": [1, 2]}, ["a"], {"h": 1}]
    assert at_second.apply_async(stamps={"b": None}).get(timeout=60) == [{"b": None}, ["b"], {}]


def test_what_stands_for_a_call_has_its_stamps(mode: str) -> None:
    handle = becomes.s().stamp(a=1, b=2).delay()
    assert handle.get(timeout=60) == {"a": 1, "b": 2}
    handle = becomes.s().stamp(a=5).delay()
    assert handle.get(timeout=60) == {"a": 5}


def test_others_who_hold_the_parts_see_nothing_of_it() -> None:
    part, link = stamps.s(), notes.s()
    first = stamps.s().set(link=link)
    made = (first | group(part, part)).stamp(a=1)
    assert part == stamps.s()
    assert link == notes.s()
    assert first.links == (link,)
    assert Signature.from_dict(dict(made)) == made


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (lambda: stamps.s(1), ["sig 1 a"]),
        (
            lambda: stamps.s(1) | stamps.s(2),
            ["chain a", "sig 1 a chain", "sig 2 a chain", "chain-end a chain"],
        ),
        (lambda: group(stamps.s(1), stamps.s(2)), ["group a", "sig 1 a group", "sig 2 a group", "group-end a group"]),
        (
            lambda: chord([stamps.s(1)], stamps.s(2)),
            ["header a", "group a", "sig 1 a group header", "header-end a group header", "body a", "sig 2 a body"],
        ),
        (
            lambda: stamps.s(1) | group(stamps.s(2)) | stamps.s(3),
            [
                *("chain a", "sig 1 a chain", "header a chain", "group a chain", "sig 2 a chain group header"),
                *("header-end a chain group header", "body a chain", "sig 3 a chain body", "chain-end a chain"),
            ],
        ),
        (
            lambda: stamps.s(1).set(link=stamps.s(2), link_error=stamps.s(3)),
            ["sig 1 a", "callback a own", "sig 2 a own callback", "errback a own", "sig 3 a own errback"],
        ),
    ],
)
def test_a_visitor_is_led_through_all(made: Any, seen: list[str]) -> None:
    visitor = Trail()
    made().stamp(visitor, a=1)
    assert visitor.seen == seen


def test_what_a_visitor_gives_goes_on_what_is_inside(mode: str) -> None:
    handle = (stamps.s() | group(stamps.s()) | stamps.s()).stamp(Trail()).delay()
    assert handle.get(timeout=60) == {"chain": True, "body": True, "own": True}
    assert handle.parent is not None
    assert handle.parent.get(timeout=60) == [{"chain": True, "header": True, "group": True, "own": True}]


class Half(StampingVisitor):
    def on_signature(self, sig: Any, /, **headers: Any) -> dict[str, Any]:
        return {"stamp": 1, "other": 2, NAMES: ["stamp"]}


def test_only_what_is_named_is_a_stamp(mode: str) -> None:
    assert at_second.s().stamp(Half()).delay().get(timeout=60) == [{"stamp": 1}, ["stamp"], {"other": 2}]


def test_stamps_that_meet() -> None:
    made = stamps.s().stamp(a=1, b=1).stamp(a=2)
    assert made.options["stamps"] == {"a": 2, "b": 1}
    made = stamps.s().stamp(a=1).stamp(append_stamps=True, a=[2, 3])
    assert made.options["stamps"] == {"a": [2, 3, 1]}


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        (lambda: stamps.apply_async(stamps=[1]), "stamps takes"),
        (lambda: stamps.apply_async(stamps={1: 2}), "the name of a stamp takes"),
        (lambda: stamps.s().stamp(Bad(3)), "a hook of a StampingVisitor gives a map"),
        (lambda: stamps.s().stamp(Bad({NAMES: ["x"]})), "stamped_headers names 'x', for which the hook gives no value"),
        (lambda: stamps.apply_async(stamped_headers=["a"]), "stamped_headers: write stamps="),
        (lambda: app.control.revoke_by_stamped_headers([1]), "stamps takes"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(stamp: Any, text: str) -> None:
    with app.testing.eager(), pytest.raises(SettingsError, match=text):
        stamp()


class Bad(StampingVisitor):
    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def on_signature(self, sig: Any, /, **headers: Any) -> Any:
        return self.gives


def test_calls_are_revoked_by_a_stamp(url: str) -> None:
    with app.testing.isolated(url):
        stamps.delay().forget()  # the queue is known
        made = [stamps.s().stamp(run=run, by="me").apply_async(countdown=0.05 * (run == 3)) for run in range(5)]
        canvas: AsyncResult[Any] = (stamps.s() | stamps.s()).stamp(by="you").delay()
        app.control.revoke_by_stamped_headers({"run": [1, 3, "2"], "by": "you"})
        with app.testing.worker() as worker:
            states = [each.get(timeout=60, propagate=False) and each.state for each in made]
            with pytest.raises(TaskRevoked):
                canvas.get(timeout=60)
            late: AsyncResult[Any] = stamps.s().stamp(run=1).delay()
            with pytest.raises(TaskRevoked):
                late.get(timeout=60)
            worker.wait_idle(timeout=60)
        assert states == [State.SUCCESS, State.REVOKED, State.SUCCESS, State.REVOKED, State.SUCCESS]


@pytest.mark.parametrize("terminate", [True, False])
def test_what_runs_is_interrupted_where_that_is_asked_for(url: str, terminate: bool) -> None:
    with app.testing.worker(url=url):
        handle = waits.s().stamp(run=1).delay()
        assert running_now.wait(60)
        app.control.revoke_by_stamped_headers({"run": 1}, terminate=terminate)
        if terminate:
            with pytest.raises(TaskRevoked):
                handle.get(timeout=60)
        else:
            go_on.set()
            assert handle.get(timeout=60) == "went on"
