"""Who starts flows, cancels some of them, and sends again what died in others."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing

from rsq import AsyncResult, BrokerUnavailable
from rsq.broker.connection import Endpoint, Link
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.broker.queue import Queue
from rsq.errors import BrokerError, FlowGone
from rsq.settings import Settings
from tests.chaos import tasks
from tests.chaos.senders.canvases import Canvas, call_id
from tests.chaos.senders.sender import TRIES, Handle, Sender
from tests.clusters import AnyServer

BREAKS = (0.0, 0.0, 0.1, 0.3)
"""Share of a flow's calls that die until they are healed."""

CANCELLED = 0.15
"""Share of the flows without such that are cancelled, soon after their start."""

LINK_S = 10.0


class Flows:
    """Starts flows as one producer does; `redrive` is for another thread."""

    def __init__(self, sender: Sender, server: AnyServer) -> None:
        self._sender = sender
        self._server = server
        self._broken: list[int] = []
        self._left = 0
        self._lock = threading.Lock()

    def act(self, rng: random.Random) -> None:
        """Start one, again and again with the same ids where the server is away."""
        canvas = Canvas(self._sender.number, rng, rng.choice(BREAKS)).drawn()
        journal = self._sender.journal
        for serial, kind in canvas.kinds.items():
            journal.write("sent", kind=kind, serials=[serial])
        journal.write("flow", id=canvas.id, needs=list(canvas.needs.items()), errbacks=list(canvas.errbacks.items()))
        handle = self._start(canvas)
        if handle is None:
            return
        for serial, queue in canvas.queues.items():
            journal.write("accepted", serial=serial, id=call_id(serial), queue=queue, duplicate=False)
        with self._lock:
            self._broken += canvas.breaking
        if not canvas.breaking and rng.random() < CANCELLED:
            time.sleep(rng.choice((0.0, 0.02, 0.2)))
            self._cancel(canvas, rng.random() < 0.5)

    def _start(self, canvas: Canvas) -> Handle | None:
        assert canvas.signature is not None
        serials = list(canvas.kinds)
        for _ in range(TRIES):
            began = time.monotonic()
            answer: AsyncResult[None] | BrokerUnavailable
            try:
                answer = canvas.signature.apply_async()
            except BrokerUnavailable as error:
                answer = error
            self._sender.tried(serials, began, answer)
            if not isinstance(answer, BrokerUnavailable):
                return answer
        self._sender.journal.write("problem", text=f"flow {canvas.id} could not be started: {answer}")
        return None

    def _cancel(self, canvas: Canvas, terminate: bool) -> None:
        began, answer = time.monotonic(), None
        for _ in range(TRIES):
            try:
                answer = "marked" if tasks.app.client.flows.cancel(canvas.id, terminate) else "unknown"
                break
            except BrokerUnavailable:
                pass
        self._sender.journal.write(
            "cancelled", at=began, until=time.monotonic(), id=canvas.id, terminate=terminate, answer=answer
        )

    def redrive(self, rng: random.Random) -> None:
        """Heal what has died by now, and send it again.

        What a lost master had been told alone comes again: then it is sent again once more.
        """
        with self._lock:
            broken = {call_id(serial): serial for serial in self._broken}
        try:
            with closing(Link(Endpoint(self._server.url), LINK_S)) as link:
                queue = Queue("default", Settings(url=self._server.url))
                letters = [letter for letter in dead_letters(link, queue) if letter.id in broken]
                for letter in letters:
                    # The file first: once it is sent again it must succeed.
                    tasks.healed(broken[letter.id], self._sender.journal.path).touch()
                    try:
                        redrive(link, queue, letter)
                    except FlowGone as error:
                        self._sender.journal.write("problem", text=str(error))
            well = (tasks.healed(serial, self._sender.journal.path).exists() for serial in broken.values())
            self._left = len(letters) + sum(not each for each in well)
        except BrokerError:
            self._left = len(broken)  # another time

    def finish(self, patience_s: float) -> None:
        """Until all that died was sent again, or none of it for so long: what follows those dies in its turn."""
        self.redrive(random.Random(0))
        left, since = self._left, time.monotonic()
        while self._left and time.monotonic() < since + patience_s:
            time.sleep(0.05)
            self.redrive(random.Random(0))
            if self._left < left:
                left, since = self._left, time.monotonic()
        if self._left:
            text = f"after {patience_s:g} s {self._left} have not died and been sent again"
            self._sender.journal.write("problem", text=text)
