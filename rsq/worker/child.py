"""One child process: loads the app, says hello, waits for its lease, and works until it is told to stop.

A thread of its own listens for SIGTERM and for the end of the supervisor, so that neither waits for a running body.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from rsq import codec
from rsq.broker.connection import Endpoint, Link
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import RsqError
from rsq.loader import load_app
from rsq.settings import Settings
from rsq.signals import child_exit, child_init, worker_ready, worker_shutdown
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import Wear
from rsq.worker.crew import Crew, share_the_interpreter
from rsq.worker.identity import Identity
from rsq.worker.leases import Leases, Retirement

log = logging.getLogger("rsq.worker")

EXIT_CANNOT_LOAD = 65
EXIT_ORPHANED = 66
EXIT_UNCOMMITTED = 67
EXIT_FAILED = 70


@dataclass(frozen=True)
class ChildPlace:
    """What a child is given at its birth.

    app          what -A named
    overrides    settings from the command line
    queues       names in order, or empty: those that the app's tasks name
    weights      of the queues, or empty: their order is strict
    hello        file descriptor to which it writes its hello
    go           file descriptor that brings one byte when its lease stands and another one when it is to end for a
                 successor, and ends with the supervisor
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


def run(place: ChildPlace) -> NoReturn:
    """The whole life of a child. Never returns: nothing of the supervisor's must run in it."""
    # Ctrl-C and hang-up reach the whole group; the supervisor decides what they mean.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stop_read, stop_write = os.pipe()
    os.set_blocking(stop_write, False)
    # By the wakeup descriptor the signal is heard even while a body holds the GIL in C; by the handler, even when user
    # code has put a wakeup descriptor of its own in place.
    signal.set_wakeup_fd(stop_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, _: os.write(stop_write, bytes((number,))))
    code = 1
    try:
        code = _work(place, stop_read)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        log.exception("the child failed")
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(code)


def _work(place: ChildPlace, stop_read: int) -> int:
    share_the_interpreter()
    try:
        app = load_app(place.app)
        app.configure(**place.overrides)
        settings, names = app.settings, list(place.queues or app.queues())
        for name in names:
            WorkerQueue(name, settings)
    except RsqError as error:
        _say(place.hello, {"error": str(error)})
        return EXIT_CANNOT_LOAD
    child_init.send(app, worker_id=place.worker_id, pid=os.getpid())
    says = {"app": app.name, "settings": asdict(settings), "queues": names, "tasks": sorted(app.tasks)}
    _say(place.hello, {**says, "unread": app.unread(names)})
    if not os.read(place.go, 1):
        return EXIT_ORPHANED
    identity = Identity(place.worker_id, place.index, place.incarnation, place.board)
    wear = Wear(place.max_tasks, place.max_memory_mib)
    crew = Crew(
        app.tasks,
        settings,
        names,
        identity,
        place.board,
        place.pool,
        wear,
        lambda: os._exit(EXIT_FAILED),
        place.weights,
    )
    crew.executor.install()
    stopping = threading.Event()

    def watch() -> None:
        while True:
            ready, _, _ = select.select([stop_read, place.go], [], [])
            # Until the end: the supervisor may still vanish while the last body runs.
            told = place.go in ready
            if told and not os.read(place.go, 64):
                _orphaned(identity, settings, names, place.board)
            if stop_read in ready and signal.SIGTERM in os.read(stop_read, 4096):
                stopping.set()
                told = True
            if told:
                crew.stop()

    threading.Thread(target=watch, name="rsq-watch", daemon=True).start()
    first = place.index == 0
    if first and place.incarnation == 1:
        worker_ready.send(app, worker_id=place.worker_id, queues=names)
    code = 0 if crew.serve() else EXIT_UNCOMMITTED
    if first and stopping.is_set():
        worker_shutdown.send(app, worker_id=place.worker_id)
    child_exit.send(app, worker_id=place.worker_id, pid=os.getpid(), exitcode=code)
    app.close()
    return code


def _orphaned(identity: Identity, settings: Settings, names: Sequence[str], board: ChildBoard) -> NoReturn:
    """The supervisor died, so nobody renews the lease: hand everything back unmarked, at once, and end."""
    link = Link(Endpoint(settings.url), 1.0)
    try:
        leases = Leases(link, [WorkerQueue(name, settings) for name in names], identity.consumer)
        leases.retire(Retirement(identity.consumer, "", board.running()))
        log.warning("the supervisor is gone: handed everything back as %s", identity.consumer)
    except RsqError as error:
        log.warning("the supervisor is gone; others take over when the lease runs out: %s", error)
    finally:
        os._exit(EXIT_ORPHANED)


def _say(fd: int, hello: dict[str, object]) -> None:
    """Write the hello and close: the supervisor reads until the end."""
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(codec.encode(hello))
