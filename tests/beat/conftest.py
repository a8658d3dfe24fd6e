"""Schedules on the server of the test, without processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from rsq import App
from rsq.beat.entry import Entry, Record, record_of
from rsq.beat.store import Store
from rsq.calls.schedules import Every
from tests.servers import Server

SECOND_MS = 1000

MakeApp = Callable[..., App]


@pytest.fixture
def make_app(server: Server) -> Iterator[MakeApp]:
    """Makes apps of one server, each with the task `note`, as several releases of one program are."""
    made: list[App] = []

    def make(name: str = "shop", **schedule: Any) -> App:
        app = App(name, url=server.url)
        app.task(name="note")(note)
        app.schedule = {
            key: {"task": "note", "args": (key,), "schedule": 1, **value} for key, value in schedule.items()
        }
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def note(word: str) -> str:
    return word


@pytest.fixture
def app(make_app: MakeApp) -> App:
    return make_app()


@pytest.fixture
def store(app: App) -> Store:
    return Store(app.client)


def record(app: App, name: str = "s", **given: Any) -> Record:
    """A schedule of a slot a second, whose slots began a minute ago."""
    names = ("queue", "countdown", "max_length", "dedupe_key", "dedupe_until")
    options: dict[str, Any] = {key: given.pop(key) for key in names if key in given}
    entry = Entry(name, "note", Every(SECOND_MS), (name,), options=options, **given)
    now_ms = app.client.now_ms()
    made = record_of(app, entry, "", now_ms - 60 * SECOND_MS)
    return replace(made, due_ms=now_ms // SECOND_MS * SECOND_MS)


def written(store: Store, wanted: Record) -> Record:
    """The same once it is on the server."""
    there = store.change(wanted.name, lambda _: wanted)
    assert there is not None
    return there


def calls(app: App, queue: str = "default") -> list[str]:
    """Ids of the calls that wait in a queue, delayed ones last."""
    keys = app.client.queue(queue).keys
    with app.client.link() as link:
        entries = link.call("XRANGE", keys.stream(), "-", "+")
        delayed = link.call("ZRANGE", keys.delayed, 0, -1)
    return [fields[1].decode() for _, fields in entries] + [task_id.decode() for task_id in delayed]
