"""A producer whose first try arrived, and that learns it only long after: it sends the call again under its id."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from rsq import App, AsyncResult, Task
from tests.chaos import tasks
from tests.chaos.network import Wire
from tests.chaos.senders.sender import UNSURE, Answer, Sender
from tests.clusters import AnyServer

AWAY_S = (1.0, 40.0)
"""How long the server is out of its reach: shorter and longer than any window in which a repeat is known."""


class LateRepeats:
    """An app of its own, on a wire of its own."""

    def __init__(self, sender: Sender, server: AnyServer) -> None:
        self._sender = sender
        self._stop = threading.Event()
        self.wire = Wire(server)
        self._app = App("chaos", url=self.wire.url, wait_replicas=tasks.app.settings.wait_replicas)
        self._quiet: Task[[int], None] = self._app.task(name=tasks.quiet.name, ignore_result=True)(quiet)

    def act(self, rng: random.Random) -> None:
        """Send, lose the reply and the server, and send again."""
        self._sender.send(self._quiet)  # a connection that stands
        serial = self._sender.number()
        self._sender.journal.write("sent", kind="quiet", serials=[serial])
        self.wire.lose_reply_and_server(b"XADD")
        task_id = self._try(serial, None)
        if task_id is not None:
            self._stop.wait(rng.uniform(*AWAY_S))
        self.wire.heal()
        if task_id is not None:
            self._try(serial, task_id)

    def _try(self, serial: int, task_id: str | None) -> str | None:
        """The id under which it may be sent again; None where it was accepted."""
        began = time.monotonic()
        answer: Answer
        options: dict[str, Any] = {"task_id": task_id} if task_id else {}
        try:
            answer = self._quiet.apply_async((serial,), **options)
        except UNSURE as error:
            answer = error
        else:
            self._sender.accepted(serial, answer)
        self._sender.tried([serial], began, answer)
        return None if isinstance(answer, AsyncResult) else answer.task_id

    def stop(self) -> None:
        """Put off nothing any longer."""
        self._stop.set()

    def close(self) -> None:
        self.stop()
        self._app.close()
        self.wire.close()


def quiet(serial: int) -> None:
    """The body is in the workers."""
