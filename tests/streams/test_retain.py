"""Streams that the workers of an app keep short: none goes unread, by whatever way they are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from rsq import App
from rsq.cli.main import main
from rsq.streams import retain as retain_module
from tests.cluster_client import holder_of
from tests.helpers import wait_until
from tests.servers import Server

pytestmark = pytest.mark.leaves("{events}")

STREAM = "{events}"

ran: list[int] = []

app = App("retaining")


@app.on(STREAM, group="g", queue="retained")
def on_event(event: Any) -> None:
    ran.append(int(event["n"]))


app.stream(STREAM, retain=100)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[None]:
    monkeypatch.setattr(retain_module, "EVERY_S", 0.01)
    ran.clear()
    app.configure(url=url)
    yield
    app.close()


def add(redis: Any, first: int, last: int) -> None:
    with holder_of(redis, STREAM).pipeline(transaction=False) as pipe:
        for number in range(first, last):
            pipe.xadd(STREAM, {"n": number})
        pipe.execute()


def test_a_worker_keeps_it_short_and_loses_nothing(server: Server, redis: Any) -> None:
    add(redis, 0, 3000)
    with app.testing.worker(queues=["retained"], url=server.url):
        for first in range(3000, 6000, 500):
            add(redis, first, first + 500)
        wait_until(lambda: len(ran) >= 6000, 60)
        wait_until(lambda: redis.xlen(STREAM) < 200, 30)
    assert sorted(ran) == [*range(6000)]


def test_who_holds_it_back_is_said(server: Server, redis: Any, url: str, caplog: pytest.LogCaptureFixture) -> None:
    redis.xgroup_create(STREAM, "audit", "0", mkstream=True)
    add(redis, 0, 1000)
    said = "is held back from 100 entries by group audit, which has not read them"
    with caplog.at_level(logging.WARNING, "rsq.worker"), app.testing.worker(queues=["retained"], url=server.url):
        wait_until(lambda: said in caplog.text, 30)
        assert len(ran) == 1000 or wait_until(lambda: len(ran) == 1000, 30)
    assert redis.xlen(STREAM) == 1000
    assert caplog.text.count(said) == 1

    def status(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["-A", __name__, "--url", url, "status", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    (short,) = json.loads(status("--json"))["trimmed"]
    assert (short["stream"], short["length"], short["held_by"], short["why"]) == (STREAM, 1000, "audit", "unread")
    assert f"stream {STREAM} is held back by group audit, which has not read them" in status()


def test_what_cannot_be_trimmed_is_said(server: Server, redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    redis.set(STREAM, "no stream")
    with caplog.at_level(logging.WARNING, "rsq.worker"), app.testing.worker(queues=["retained"], url=server.url):
        wait_until(lambda: f"stream {STREAM} is not trimmed" in caplog.text and "WRONGTYPE" in caplog.text, 30)
