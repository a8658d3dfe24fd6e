"""Tasks with rules about when they start. They write down what they did, as the other ones do."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from rsq import App, Task
from tests.integration.tasks import journal

app = App("rules", task_defaults={"retry_backoff": 0.02, "retry_jitter": False})


@app.task
def free(word: object) -> object:
    journal("ran", word)
    return word


@app.task(rate_limit="40/s")
def paced(word: object) -> object:
    journal("ran", word)
    return word


@app.task(rate_limit="1/h", rate_burst=2, rate_limit_key="{tenant}")
def rare(tenant: str) -> None:
    journal("ran", tenant)


@app.task(rate_limit="1/h", acks_late=False)
def rare_once(word: str) -> None:
    journal("ran", word)


@app.task(rate_limit="1/h", max_retries=1)
def rare_and_failing(word: str) -> None:
    journal("ran", word)
    raise ValueError(word)


@app.task(max_concurrency=2)
def crowded(word: object) -> None:
    journal("began", word)
    time.sleep(0.02)
    journal("ended", word)


@app.task(max_concurrency=2)
async def acrowded(word: object) -> None:
    journal("began", word)
    await asyncio.sleep(0.02)
    journal("ended", word)


@app.task(max_concurrency=1, max_concurrency_key=lambda path, tenant: f"of {tenant}")
def one_each(path: str, tenant: str) -> None:
    """Runs until the file is there."""
    journal("began", tenant)
    while not os.path.exists(path):
        time.sleep(0.01)
    journal("ended", tenant)


@app.task(rate_limit="10/s", rate_limit_key=lambda word: word.tenant)
def unlike(word: Any) -> None:
    """Its key is never to be had."""


@app.task(dedupe_key="{key}", dedupe_until="done")
def until_done(path: str, key: str) -> None:
    journal("began", key)
    while not os.path.exists(path):
        time.sleep(0.01)


@app.task(dedupe_key="{key}", dedupe_until="started")
def until_started(path: str, key: str) -> None:
    journal("began", key)
    while not os.path.exists(path):
        time.sleep(0.01)


@app.task(dedupe_key="{key}", on_duplicate="replace", dedupe_until="done")
def newest(key: str, value: int) -> int:
    journal("ran", key, value)
    return value


@app.task(dedupe_key="{key}", on_duplicate="raise")
def unwelcome(key: str) -> None:
    pass


@app.task(dedupe_key="{key}", debounce=0.3)
def settled_down(key: str, value: int) -> int:
    journal("ran", key, value)
    return value


def _fail(path: str, key: str, value: int) -> int:
    """Fails until the file is there."""
    journal("ran", key, value)
    if not os.path.exists(path):
        raise ValueError(value)
    return value


failing = {
    "replace": app.task(
        name="failing.replace", dedupe_key="{key}", on_duplicate="replace", dedupe_until="done", max_retries=1
    )(_fail),
    "debounce": app.task(
        name="failing.debounce", dedupe_key="{key}", debounce=0.05, dedupe_until="done", max_retries=1
    )(_fail),
}


@app.task(bind=True, dedupe_key="{product}", max_retries=3)
def price(self: Task[..., Any], product: str, cents: int, path: str = "") -> int:
    """With a path it fails until the file is there."""
    journal("tried", cents)
    if path and not os.path.exists(path):
        self.retry(countdown=0.05, max_retries=1000)
    journal("set", cents)
    return cents


@app.task(max_length=1)
def narrow(word: str) -> str:
    return word
