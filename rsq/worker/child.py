"""One child process: loads the app, says hello, waits for its lease, and works until it is told to stop.

A thread of its own listens to the supervisor, and for its end, so that neither waits for a running body.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NoReturn

from rsq.broker.connection import Endpoint
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import RsqError
from rsq.flow.own_tasks import with_own_tasks
from rsq.loader import load_app, need_real_threads
from rsq.signals import child_exit, child_init, worker_ready, worker_shutdown
from rsq.streams.retain import retentions_of
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import Wear
from rsq.worker.crew import Crew, share_the_interpreter
from rsq.worker.identity import Identity
from rsq.worker.lanes import side_by_side
from rsq.worker.leases import Retirement
from rsq.worker.process import EXIT_CANNOT_BEGIN, EXIT_FAILED, EXIT_ORPHANED, EXIT_UNCOMMITTED, heed_no_group_signals
from rsq.worker.rounds import lanes_of
from rsq.worker.stop import BEGIN, STOP, Lifeline, StopSignals, SupervisorGone, framed

log = logging.getLogger("rsq.worker")


@dataclass(frozen=True)
class ChildPlace:
    """What a child is given at its birth.

    app          what -A named
    overrides    settings from the command line
    queues       names in order, or empty: those that the app's tasks name
    weights      of the queues, or empty: their order is strict
    hello        file descriptor to which it writes its hello
    go           file descriptor of its `Lifeline`
    pool         how bodies run
    max_tasks, max_memory_mib  after how much it ends to be replaced; None = never
    """

    app: str | None
    overrides: dict[str, object]
    queues: Sequence[str]
    weights: Mapping[str, int]
    worker_id: str
    index: int
    incarnation: int
    board: ChildBoard
    hello: int
    go: int
    pool: str
    max_tasks: int | None
    max_memory_mib: int | None


def run(place: ChildPlace) -> int:
    """The whole life of a child; gives its exit code."""
    signals = StopSignals(signal.SIGTERM)
    lifeline = Lifeline(place.go, signals)
    share_the_interpreter()
    try:
        app = load_app(place.app)
        app.configure(**place.overrides)
        settings, names = app.settings, list(place.queues or app.queues())
        for name in names:
            WorkerQueue(name, settings)
        need_real_threads()
    except RsqError as error:
        _say(place.hello, {"error": str(error)})
        return EXIT_CANNOT_BEGIN
    child_init.send(app, worker_id=place.worker_id, pid=os.getpid())
    signals.hold()
    heed_no_group_signals()
    says = {"app": app.name, "settings": asdict(settings), "queues": names, "tasks": sorted(app.tasks)}
    _say(place.hello, {**says, "unread": app.unread(names)})
    try:
        if lifeline.hear() != BEGIN:
            place.board.end()
            return 0
    except SupervisorGone:
        return EXIT_ORPHANED
    partitions = lifeline.read()
    app.client.queues.learn(partitions)
    queues = [WorkerQueue(name, settings, partitions[name]) for name in names if name in partitions]
    if len(queues) < len(names):
        log.warning("this worker began without the queues %s: restart it", ", ".join({*names} - partitions.keys()))
    identities = [Identity(place.worker_id, place.index, place.incarnation, lane) for lane in place.board.lanes]
    crew = Crew(
        with_own_tasks(app),
        settings,
        queues,
        identities,
        place.board,
        place.pool,
        Wear(place.max_tasks, place.max_memory_mib),
        lambda: os._exit(EXIT_FAILED),
        place.weights,
        retentions=retentions_of(app),
    )
    crew.executor.install()
    stopping = threading.Event()

    def listen() -> None:
        try:
            while True:
                # To the end: the supervisor may still vanish while the last body runs.
                if lifeline.hear() == STOP:
                    stopping.set()
                crew.stop()
        except SupervisorGone:
            _orphaned(identities, queues, place.board)
        except BaseException:
            # Deaf it would work on when all others have ended.
            log.exception("child %d hears its supervisor no more", os.getpid())
        finally:
            os._exit(EXIT_FAILED)

    threading.Thread(target=listen, name="rsq-listen", daemon=True).start()
    first = place.index == 0
    if first and place.incarnation == 1:
        worker_ready.send(app, worker_id=place.worker_id, queues=names)
    code = 0 if crew.serve() else EXIT_UNCOMMITTED
    place.board.end()
    if first and stopping.is_set():
        worker_shutdown.send(app, worker_id=place.worker_id)
    child_exit.send(app, worker_id=place.worker_id, pid=os.getpid(), exitcode=code)
    app.close()
    return code


def _orphaned(identities: Sequence[Identity], queues: Sequence[WorkerQueue], board: ChildBoard) -> NoReturn:
    """The supervisor died, so nobody renews the leases: hand everything back unmarked, at once, and end."""
    try:
        lanes = lanes_of(Endpoint.of(queues[0].settings), queues, queues[0].settings)
        retirements = [Retirement(identity.consumer, "", board.running()) for identity in identities]
        acts = [partial(leases.retire, each) for leases, each in zip(lanes, retirements, strict=True)]
        errors = [error for failed in side_by_side(acts) for error in failed.values()]
        if errors:
            raise errors[0]
        log.warning("the supervisor is gone: handed everything back as %s", identities[0].consumer)
    except RsqError as error:
        log.warning("the supervisor is gone; others take over when the lease runs out: %s", error)
    finally:
        os._exit(EXIT_ORPHANED)


def _say(fd: int, hello: dict[str, object]) -> None:
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(framed(hello))
