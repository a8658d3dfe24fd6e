"""What users get wrong with flows: each is told in one line, in eager mode and with a worker alike."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rsq import App, Signature, Task, chain, chord, group, signature
from rsq.errors import EncodeError, MessageTooLarge, UnknownTask

app = App("mistakes", max_message_bytes=100_000, unknown_task_grace_s=0, task_defaults={"max_retries": 0})


@app.task
def make(size: int) -> str:
    return "x" * size


@app.task
def count(values: Any, more: Any = None) -> int:
    return len(values)


@app.task(bind=True)
def becomes(self: Task[..., Any], name: str) -> None:
    self.replace(signature(name, args=(1,), app=app))


def unknown() -> Signature[Any]:
    return signature("mistakes.cuont", app=app)


@pytest.mark.parametrize(
    "whole",
    [
        lambda: make.s(3) | unknown() | count.s(),
        lambda: chord([make.s(3), unknown()], count.s()),
        lambda: chord([make.s(3), make.s(3)], unknown()),
        lambda: becomes.s("mistakes.cuont") | count.s(),
    ],
    ids=["chain", "header", "body", "replace"],
)
def test_a_task_that_is_unknown(mode: str, whole: Any) -> None:
    with pytest.raises(UnknownTask, match=r"no task is registered as '(mistakes|tests\.test_flow_mistakes)\.cuont'"):
        whole().delay().get(timeout=60)


class Strange:
    pass


def in_a_batch() -> None:
    with app.batch() as batch:
        batch.add(make.s(3), make.s({"size": Strange()}))


def in_a_graph() -> None:
    flow = app.flow()
    flow.add(count.s(more={"size": Strange()}), after=flow.add(make.s(3)))
    flow.start()


@pytest.mark.parametrize(
    ("start", "place"),
    [
        (lambda: chain(make.s(3), count.s({"size": Strange()})).delay(), r"args\[0\]\['size'\]"),
        (lambda: group(make.s(3), make.s([1, Strange()])).delay(), r"args\[0\]\[1\]"),
        (lambda: chord([make.s(3)] * 2, count.s(more=Strange())).delay(), r"kwargs\['more'\]"),
        (lambda: make.s(3).on_error(count.s(more=Strange())).delay(), r"kwargs\['more'\]"),
        (in_a_batch, r"args\[0\]\['size'\]"),
        (in_a_graph, r"kwargs\['more'\]\['size'\]"),
    ],
    ids=["chain", "group", "body", "errback", "batch", "graph"],
)
def test_arguments_that_cannot_be_packed(mode: str, start: Any, place: str) -> None:
    with pytest.raises(
        EncodeError, match=rf"{place}: cannot serialise <class '[\w.]+Strange'>; pass something simpler"
    ):
        start()


def test_a_body_that_gets_too_much(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    body = count.s().set(task_id="the-body")
    text = r"count\[the-body\] takes 3 values of flow the-body, .* than 100000 bytes together: let its members store"
    with caplog.at_level(logging.ERROR), pytest.raises(MessageTooLarge, match=text):
        chord([make.s(60_000)] * 3, body).delay().get(timeout=60)
    assert "Traceback" not in caplog.text


def test_a_step_that_gets_too_much(mode: str) -> None:
    """Nobody has to be told twice: it is the call that gives it which fails."""
    with pytest.raises(MessageTooLarge, match=r"result: \d+ bytes packed, the limit is 100000; pass a reference"):
        (make.s(200_000) | count.s()).delay().get(timeout=60)
