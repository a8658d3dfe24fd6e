"""Callers that wait for what they sent, each with a time that it is ready to wait; in threads, by `get`."""

from __future__ import annotations

import random
import time
from typing import Any

from rsq import AsyncResult, BrokerUnavailable, ResultTimeout, TaskRevoked
from tests.chaos import tasks
from tests.chaos.senders.producers import SHORT_S, revoke
from tests.chaos.senders.sender import AnyTask, Sender

TIMEOUTS_S = (0.0, 0.3, 2.0, 15.0, 15.0, 15.0, 15.0, None)
"""Most wait for longer than the server is away."""

BODIES_S = ((0.0, 0.05), (0.0, 0.05), (1.0, 6.0))
"""Ranges of how long the bodies run that they wait for; the long ones hold a child, so few wait for them."""


class Waiter:
    """Sends one call and waits for it. For any number of threads."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def act(self, rng: random.Random) -> None:
        handle = self._send(rng)
        if handle is None:
            return
        self.wait(handle, rng.choice(TIMEOUTS_S))
        if rng.random() < 0.3:
            # Who asks anew, in whatever process, learns the same.
            self.wait(tasks.app.AsyncResult(handle.id, handle.queue), rng.choice((0.0, 0.0, 15.0)))

    def _send(self, rng: random.Random) -> AsyncResult[Any] | None:
        kind = rng.choices(("short", "slow", "fails", "revoked"), weights=(6, 1, 1, 2))[0]
        if kind == "revoked":
            handle = self._sender.send(tasks.revocable, 0.0, False, countdown=2.0)
            if handle is not None:
                revoke(self._sender, handle, False)
            return handle
        task, arguments = draw_call(rng, kind)
        return self._sender.send(task, *arguments)

    def wait(self, handle: AsyncResult[Any], timeout: float | None) -> None:
        began, value, how = time.monotonic(), None, "error"
        try:
            value, how = serial_of(handle.get(timeout=timeout)), "value"
        except Exception as error:
            how = told(error)
        finally:
            tell(self._sender, handle, began, timeout, how, value)


def draw_call(rng: random.Random, kind: str) -> tuple[AnyTask, tuple[Any, ...]]:
    if kind == "fails":
        return tasks.fails, ()
    return tasks.plain, (rng.uniform(1.0, 6.0) if kind == "slow" else rng.choice(SHORT_S),)


def serial_of(value: Any) -> Any:
    """What the bodies of `tests.chaos.tasks` give holds it in front."""
    return value[0]


def told(error: BaseException) -> str:
    """In a word; what no caller may be told is raised again."""
    for kind, word in (
        (TaskRevoked, "revoked"),
        (ResultTimeout, "timeout"),
        (BrokerUnavailable, "unavailable"),
        (ValueError, "failure"),
    ):
        if isinstance(error, kind):
            return word
    raise error


def tell(
    sender: Sender, handle: AsyncResult[Any], began: float, timeout: float | None, how: str, value: Any = None
) -> None:
    sender.journal.write(
        "waited", at=began, until=time.monotonic(), id=handle.id, timeout=timeout, how=how, value=value
    )
