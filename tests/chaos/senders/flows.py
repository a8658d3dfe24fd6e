"""Who starts flows, cancels some of them, and sends again what died in others."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing

from rsq import BrokerUnavailable
from rsq.broker.connection import Endpoint, Link
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.broker.queue import Queue
from rsq.errors import BrokerError, FlowGone
from rsq.settings import Settings
from tests.chaos import tasks
from tests.chaos.senders.batches import DrawnBatch
from tests.chaos.senders.canvases import Canvas
from tests.chaos.senders.drawing import Drawing
from tests.chaos.senders.graphs import DrawnGraph
from tests.chaos.senders.sender import TRIES, UNSURE, Sender, Unsure
from tests.clusters import AnyServer

BREAKS = (0.0, 0.0, 0.1, 0.3)
"""Share of a flow's calls that die until they are healed."""

CANCELLED = 0.15
"""Share of the flows without such that are cancelled, soon after their start; some canvases by a stamp."""

KINDS: tuple[type[Drawing], ...] = (Canvas, DrawnGraph, DrawnBatch)
WEIGHTS = (6, 2, 3)

LINK_S = 10.0


class Flows:
    """Starts flows as one producer does; `redrive` is for another thread."""

    def __init__(self, sender: Sender, server: AnyServer) -> None:
        self._sender = sender
        self._server = server
        self._broken: dict[str, int] = {}
        self._stamped: list[str] = []
        self._left = 0
        self._lock = threading.Lock()

    def act(self, rng: random.Random) -> None:
        """Start one, again and again with the same ids where the server is away."""
        (kind,) = rng.choices(KINDS, WEIGHTS)
        drawing = kind(self._sender.number, rng, rng.choice(BREAKS))
        ends = not drawing.breaking and rng.random() < CANCELLED
        stamped = False
        if ends and isinstance(drawing, Canvas) and rng.random() < 0.4:
            stamped = True
            drawing.signature.stamp(flow=drawing.id)
        journal = self._sender.journal
        for serial, name in drawing.kinds.items():
            journal.write("sent", kind=name, serials=[serial])
        journal.write("flow", **drawing.record())
        if not self._start(drawing):
            return
        for serial, queue in drawing.queues.items():
            journal.write("accepted", serial=serial, id=drawing.ids[serial], queue=queue, duplicate=False)
        with self._lock:
            self._broken |= {drawing.ids[serial]: serial for serial in drawing.breaking}
        if ends:
            time.sleep(rng.choice((0.0, 0.02, 0.2)))
            self._end(drawing, rng.random() < 0.5, stamped)

    def _start(self, drawing: Drawing) -> bool:
        for _ in range(TRIES):
            began = time.monotonic()
            answer: Unsure | None = None
            try:
                drawing.start()
            except UNSURE as error:
                answer = error
            if not isinstance(drawing, DrawnBatch):  # that takes its time
                self._sender.tried(list(drawing.kinds), began, answer)
            if answer is None:
                return True
        self._sender.journal.write("problem", text=f"flow {drawing.id} could not be started: {answer}")
        return False

    def _end(self, drawing: Drawing, terminate: bool, stamped: bool) -> None:
        """Cancel it, or revoke what has its stamp: then what has failed by that is cancelled at the end."""
        began, answer = time.monotonic(), None
        for _ in range(TRIES):
            try:
                if stamped:
                    tasks.app.control.revoke_by_stamped_headers({"flow": drawing.id}, terminate)
                    answer = "marked"
                else:
                    answer = "marked" if tasks.app.client.cancel_flow(drawing.id, terminate) else "unknown"
                break
            except BrokerUnavailable:
                pass
        if stamped:
            with self._lock:
                self._stamped.append(drawing.id)
        self._sender.journal.write(
            "cancelled", at=began, until=time.monotonic(), id=drawing.id, terminate=terminate, answer=answer
        )

    def redrive(self, rng: random.Random) -> None:
        """Heal what has died by now, and send it again.

        What a lost master had been told alone comes again: then it is sent again once more.
        """
        with self._lock:
            broken = dict(self._broken)
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
        for flow_id in self._stamped:
            tasks.app.client.cancel_flow(flow_id, terminate=False)
        if self._left:
            text = f"after {patience_s:g} s {self._left} have not died and been sent again"
            self._sender.journal.write("problem", text=text)
