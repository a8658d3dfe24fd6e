"""Schedules that fire a signature or a canvas."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rsq import App, AsyncResult, GroupResult, SettingsError, Signature, Task, chord, crontab, every, group
from rsq.beat import beat as beat_module
from rsq.beat.beat import Beat
from rsq.beat.entry import slot_id
from rsq.beat.store import Store
from rsq.broker.dead_letters import dead_letters
from rsq.errors import MessageTooLarge
from rsq.flow.stand_in import START
from tests.helpers import wait_until

noted: list[Any] = []


def add(a: int, b: int = 0) -> int:
    return a + b


def total(numbers: list[int]) -> int:
    noted.append(numbers)
    return sum(numbers)


def stamps(self: Task[..., Any]) -> dict[str, Any]:
    return dict(self.request.stamps)


@pytest.fixture
def app(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    """On a server of its own namespace, with a worker that runs when it is asked for."""
    monkeypatch.setattr(beat_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(beat_module, "VERIFY_EVERY_S", 0.0)
    noted.clear()
    app = App("nightly", task_defaults={"max_retries": 0})
    for function, options in ((add, {}), (total, {"queue": "sums"}), (stamps, {"bind": True})):
        app.task(name=function.__name__, **options)(function)
    with app.testing.isolated(url):
        yield app


def sig(app: App, name: str, *args: Any) -> Signature[Any]:
    return app.tasks[name].s(*args)


def summed(app: App) -> Signature[Any]:
    return chord([sig(app, "add", n, n) for n in range(3)], sig(app, "total"))


def test_a_slot_of_a_canvas_is_fired_once_however_many_beats_there_are(app: App) -> None:
    app.schedule = {"sums": {"task": summed(app), "schedule": 1}}
    beats = [Beat(app), Beat(app)]
    for beat in beats:
        beat.begin()

    def fired() -> int:
        for beat in beats:
            beat.step()
        return len(noted)

    with app.testing.worker() as worker:
        wait_until(lambda: fired() >= 2, 60, "two slots")
        (row,) = app.schedules.list()
        for beat in beats:
            beat.end()
        worker.wait_idle(timeout=60)
    assert noted == [[0, 2, 4]] * len(noted)
    assert row.last_id is not None
    assert app.AsyncResult(row.last_id, row.queue).get(timeout=60) == 6
    slots = {int(row.last_id.rpartition(":")[2]) - 1000 * n for n in range(len(noted))}
    ids = [slot_id("sums", slot) for slot in slots]
    assert [app.AsyncResult(each, "default").get(timeout=0) for each in ids] == [6] * len(noted)


def test_it_is_shown_and_triggered(app: App) -> None:
    app.schedules.add("sums", crontab("@yearly"), summed(app) | sig(app, "add", 4))
    app.schedules.add("many", every(hours=1), group(sig(app, "add", 1), sig(app, "add", 2)))
    app.schedules.add("none", every(hours=1), group([]))
    app.schedules.add("wide", every(hours=1), sig(app, "total", ["x" * 500]) | sig(app, "add"))
    app.schedules.add("large", every(hours=1), sig(app, "add", 1) | group(sig(app, "add", n) for n in range(1500)))
    shown = {each.name: each.task for each in app.schedules}
    assert shown["sums"] == "group(add(0, 0), add(1, 1), add(2, 2)) | total() | add(4)"
    assert shown["large"].endswith(", add(9), ... 1490 more)")
    assert shown["wide"].endswith("x...")
    assert len(shown["wide"]) == 200
    with app.testing.worker():
        assert app.schedules.trigger("sums").get(timeout=60) == 10
        assert app.schedules.trigger("many").get(timeout=60) == [1, 2]
        assert app.schedules.trigger("none").get(timeout=60) == []
        assert app.schedules.trigger("large").get(timeout=60) == [n + 1 for n in range(1500)]
        assert {each.name: each.outcome for each in app.schedules}["many"] == "SUCCESS"


def test_a_signature_of_one_call_is_that_call(app: App) -> None:
    app.schedules.add("one", every(hours=1), sig(app, "add", 1).set(queue="q", priority=3), (5,), priority=4)
    record = Store(app.client).read("one")
    assert record is not None
    assert (record.task, record.queue, record.priority) == ("add", "q", 4)
    (row,) = app.schedules.list()
    assert row.task == "add"
    with app.testing.worker(queues=["q"]):
        assert app.schedules.trigger("one").get(timeout=60) == 6


def test_what_it_is_made_of_counts_as_it_was(app: App) -> None:
    canvas = sig(app, "add", 1) | sig(app, "add", 2)
    canvas.freeze()
    app.schedules.add("sums", every(hours=1), canvas, (10,))
    canvas.set(queue="elsewhere")
    with app.testing.worker():
        handles: list[AsyncResult[Any]] = [app.schedules.trigger("sums") for _ in range(2)]
        assert [each.get(timeout=60) for each in handles] == [13, 13]


def test_it_starts_where_its_first_call_goes(app: App) -> None:
    app.schedules.add("sums", every(hours=1), sig(app, "total", [1]) | sig(app, "add", 2))
    app.schedules.add("mine", every(hours=1), summed(app), queue="mine")
    record, mine = (Store(app.client).read(name) for name in ("sums", "mine"))
    assert record is not None
    assert mine is not None
    assert (record.task, record.queue, mine.queue) == (START, "sums", "mine")
    with app.testing.worker():
        assert app.schedules.trigger("sums").get(timeout=60) == 3


def test_options_are_those_of_its_start(app: App) -> None:
    canvas = group(sig(app, "stamps"), sig(app, "stamps"))
    app.schedules.add("sums", every(hours=1), canvas, stamps={"by": "beat"}, dedupe_key="one")
    with app.testing.worker():
        assert app.schedules.trigger("sums").get(timeout=60) == [{"by": "beat"}] * 2
        assert app.schedules.trigger("sums").duplicate


@pytest.mark.parametrize(
    ("canvas", "error", "text"),
    [
        (lambda app: sig(app, "add") | sig(app, "add", 1), SettingsError, "'sums': add.* missing a required argument"),
        (lambda app: sig(app, "add", 1).set(task_id="x"), SettingsError, "'sums': task_id of add.1. is for one call"),
        (
            lambda app: group(sig(app, "add", 1), sig(app, "add", 1).set(link=sig(app, "add", 1).set(task_id="x"))),
            SettingsError,
            "'sums': task_id of add.1. is for one call",
        ),
        (lambda app: sig(app, "add", "x" * 2_000_000) | sig(app, "add"), MessageTooLarge, "the limit is"),
        (lambda app: GroupResult(app.client, "x", []), SettingsError, "task takes a task or its name"),
    ],
)
def test_what_cannot_be_fired_is_refused_where_it_is_written(app: App, canvas: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        app.schedules.add("sums", every(hours=1), canvas(app))
    assert app.schedules.list() == []


def test_a_beat_says_which_tasks_it_does_not_have(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    app.schedule = {"sums": {"task": group(Signature("add", (1,)), Signature("other")), "schedule": crontab("@yearly")}}
    beat = Beat(app)
    beat.begin()
    beat.end()
    assert [each.getMessage() for each in caplog.records] == [
        "schedule 'sums' calls other, a task that this app does not have"
    ]


def test_one_whose_canvas_fails_is_a_dead_letter_of_that_call(app: App) -> None:
    app.schedules.add("sums", every(hours=1), sig(app, "add", "x") | sig(app, "add", 2))
    with app.testing.worker() as worker:
        handle = app.schedules.trigger("sums")
        with pytest.raises(TypeError):
            handle.get(timeout=60)
        worker.wait_idle(timeout=60)
    with app.client.link() as link:
        assert [letter.task for letter in dead_letters(link, app.client.queue("default"))] == ["add"]
