"""Sources, as the worker processes of these tests load them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from rsq import App, current_request
from tests.integration.tasks import journal

app = App("events", task_defaults={"retry_backoff": 0.05})

Event = Mapping[str, str]


@app.on("user_events", group="registration", max_retries=2)
def register(event: Event) -> None:
    request = current_request()
    assert request is not None
    journal("registration", event["user_id"], request.attempt)
    if event.get("fails") == "always" or (event.get("fails") == "once" and request.attempt == 1):
        raise ValueError(event["user_id"])
    if event.get("fails") == "kills":
        os.kill(os.getpid(), signal.SIGKILL)


app.stream("user_events", retain=100_000)


@app.on("user_events", group="mail")
async def mail(event: Event) -> None:
    journal("mail", event["user_id"])


@app.on("orders", group="shop", bind=True, decode="json:payload", ignore_result=False)
def order(self: Any, payload: Any) -> Any:
    journal("order", *self.request.event)
    return payload


@app.on("payments", group="ledger", id_field="message_id", max_retries=3)
def book(event: Event) -> None:
    request = current_request()
    assert request is not None
    if event.get("fails") and request.attempt == 1:
        raise ValueError(event["message_id"])
    journal("booked", event["message_id"])


@app.on("profiles", group="search", version_field="version", key_field="user_id")
def index(event: Event) -> None:
    journal("indexed", event["user_id"], event["version"])


@app.on("{visits}", group="in-order", queue="visits", order_by="user", max_retries=3)
def visit(event: Event) -> None:
    request = current_request()
    assert request is not None
    if event.get("fails") and request.attempt == 1:
        raise ValueError(event["n"])
    journal("visited", event["user"], event["n"])


@app.on("{visits}", group="count", queue="visits-2")
def count(event: Event) -> None:
    journal("counted", event["user"], event["n"])


@app.task(queue="notes")
def note(word: str) -> None:
    journal("noted", word)


@app.on("signups", group="notes", max_retries=1, queue="notes")
def sends(event: Event) -> None:
    request = current_request()
    assert request is not None
    words = ["a", "b", "b"] if request.attempt == 1 else ["b", "a", "b", "c"]
    for word in words:
        note.delay(word)
    note.map_async([("many",)])
    if request.attempt == 1:
        raise ValueError("after it has sent")


@app.on("gates", group="g", max_concurrency=1, max_concurrency_key="{event[room]}", queue="gates")
def enter(event: Event) -> None:
    journal("entered", event["room"])
    while not os.path.exists(event["path"]):
        pass
    journal("left", event["room"])
