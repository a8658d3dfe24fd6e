"""A worker in one process, without forks: for debugging, and for the worker inside a test.

A thread keeps the lease in place of the supervisor. What prefork promises of crashes and of code that holds the GIL for
longer than a lease does not hold here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from rsq.app import BaseApp
from rsq.broker.connection import Endpoint, Link
from rsq.broker.forks import renew_in_child
from rsq.broker.server_check import check_server
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.loader import load_app, need_real_threads
from rsq.signals import child_exit, child_init, worker_ready, worker_shutdown
from rsq.worker.board import Board
from rsq.worker.child_limits import Wear
from rsq.worker.children import WorkerOptions
from rsq.worker.crew import Crew, share_the_interpreter
from rsq.worker.identity import Identity, new_worker_id
from rsq.worker.lease_keeper import AGAIN_S, LINK_TIMEOUT_S, what_runs
from rsq.worker.leases import Leases, Retirement
from rsq.worker.portrait import Portrait, queues_line
from rsq.worker.process import free_forks
from rsq.worker.remote_control import RemoteControl
from rsq.worker.stop import StopSignals

log = logging.getLogger("rsq.worker")


class SoloWorker:
    """One crew, and the thread that keeps its lease.

    on_shutdown  called in that thread when `rsq control` asks for the end; default: `stop`
    main_thread  it serves in the main one: that decides how bodies are interrupted
    """

    def __init__(
        self,
        app: BaseApp,
        queue_names: Sequence[str] = (),
        wear: Wear | None = None,
        weights: Mapping[str, int] | None = None,
        on_shutdown: Callable[[], None] | None = None,
        main_thread: bool = True,
    ) -> None:
        self._app = app
        self._settings = app.settings
        self.queue_names = list(queue_names) or list(app.queues())
        self.worker_id = new_worker_id()
        self._board = Board(1, slots=1).child(0)
        self._identity = Identity(self.worker_id, 0, 1, self._board)
        self._link = Link(Endpoint.of(self._settings), LINK_TIMEOUT_S)
        self._queues = [WorkerQueue(name, self._settings) for name in self.queue_names]
        portrait = Portrait(app.name, self.queue_names, sorted(app.tasks), "solo", 1, 1, self._settings.lease_ms)
        self._on_shutdown = on_shutdown or self.stop
        self._crew = Crew(
            app.tasks,
            self._settings,
            self.queue_names,
            self._identity,
            self._board,
            "solo",
            wear,
            weights=weights,
            main_thread=main_thread,
        )
        self._selector = selectors.DefaultSelector()
        self._prompter, self._prompt = socket.socketpair()
        renew_in_child(self)
        self._contact = RemoteControl(self._link, self._queues, self.worker_id, portrait, self._selector, self._rung)
        self._leases = self._contact.leases
        self._pause_s = 0.0
        self._stopping = False
        self._keeper: threading.Thread | None = None

    def begin(self) -> str:
        """Look at the server and take a lease; gives the line about the server. Raises BrokerError."""
        report = check_server(self._link, self._settings)
        self._board.lease_until = self._leases.register(self._identity.consumer)
        self._renew()
        self._keeper = threading.Thread(target=self._keep_lease, name="rsq-lease", daemon=True)
        self._keeper.start()
        queues = queues_line(self.queue_names, self._app.unread(self.queue_names))
        return what_runs(self.worker_id, self._app.name, sorted(self._app.tasks), queues, "none (solo)", report)

    def install(self) -> None:
        """Let bodies be interrupted. Called in the main thread, where that is the one which will serve."""
        self._crew.executor.install()

    def serve(self) -> bool:
        """Work in this thread until `stop`. False when outcomes could not be committed any more."""
        assert self._keeper is not None, "it has begun"
        try:
            return self._crew.serve()
        finally:
            self._prompter.close()
            self._keeper.join()
            self._sign_off(Retirement(self._identity.consumer, ""))

    def stop(self) -> None:
        """From any thread: hand back what has not begun, and let the running body end."""
        self._stopping = True
        with contextlib.suppress(OSError):  # it has ended already
            self._prompter.send(b"s")  # for a report that tells it
        self._crew.stop()

    def abandon(self) -> None:
        """From any thread: hand the running body back, too, with no attempt counted. The process must end then."""
        taken = [entry for entry in self._board.running() if entry.taken]
        self._sign_off(Retirement(self._identity.consumer, "", taken))

    @property
    def done(self) -> int:
        """Bodies that have run."""
        return self._crew.executor.done

    def unsettled(self) -> list[Delivery]:
        """Deliveries that run, or whose verdict is not known to be written."""
        return self._crew.unsettled()

    def after_fork(self) -> None:
        """A fork of a body that lives on must not hold up the end."""
        self._prompter.close()
        self._prompt.close()

    def _keep_lease(self) -> None:
        self._selector.register(self._prompt, selectors.EVENT_READ)
        self._pause_s = self._leases.renew_every_s
        while True:
            if ready := self._selector.select(self._pause_s):
                bell = ready[0][0].data
                if bell is not None:
                    bell.on_readable(ready[0][0].fd)
                elif self._prompt.recv(64):
                    self._pause_s = 0.0
                else:
                    break
                continue
            try:
                self._pause_s = 0.0 if self._renew() else self._leases.renew_every_s
            except BrokerError as error:
                log.warning("the lease could not be renewed, again in %.1f s: %s", AGAIN_S, error)
                self._pause_s = AGAIN_S
        self._contact.end()
        self._selector.close()
        self._prompt.close()

    def _rung(self, connected: bool) -> None:
        self._pause_s = 0.0 if connected else AGAIN_S

    def _renew(self) -> bool:
        """Renew the lease. True: something was heard that another report is to tell at once."""
        members = [(os.getpid(), True, self._board)]
        generation = self._board.generation  # read before the name, which may change at any moment
        until, lost = self._contact.renew([self._identity.consumer], members, 1, self._stopping)
        if lost:
            self._board.fence(generation)
        else:
            self._board.lease_until = until
        news = self._contact.news
        if news and self._contact.wish.stop and not self._stopping:
            self._on_shutdown()
        return news

    def _sign_off(self, retirement: Retirement) -> None:
        link = Link(self._link.endpoint, LINK_TIMEOUT_S)
        try:
            leases = Leases(link, self._queues, self.worker_id)
            failed = leases.retire(retirement).values()
            for error in failed:
                log.warning("goes to others when its lease has ended: %s", error)
            if not any(isinstance(error, BrokerUnavailable) for error in failed):
                leases.leave()
        except BrokerError as error:
            log.warning("could not sign off: %s", error)
        finally:
            link.close()
            self._link.close()


def run_solo(options: WorkerOptions, announce: Callable[[str], None]) -> int:
    """`rsq worker -P solo`: until a signal. Returns the exit code; raises what `Supervisor.run` does."""
    with StopSignals() as signals:
        return _run(options, announce, signals)


def _run(options: WorkerOptions, announce: Callable[[str], None], signals: StopSignals) -> int:
    share_the_interpreter()
    app = load_app(options.app)
    app.configure(**options.overrides)
    need_real_threads()
    free_forks()
    wear = Wear(options.max_tasks, options.max_memory_mib)
    worker = SoloWorker(app, options.queues, wear, options.weights, on_shutdown=signals.wish)
    child_init.send(app, worker_id=worker.worker_id, pid=os.getpid())
    signals.install()
    while True:
        try:
            report = worker.begin()
            break
        except BrokerUnavailable as error:
            log.warning("%s; trying again in %.1f s", error, AGAIN_S)
            time.sleep(AGAIN_S)
    worker.install()

    def obey() -> None:
        while not signals.wait():
            pass
        grace_s = app.settings.shutdown_timeout_s
        log.info("%s: stopping; the running task has %.0f s to end", signals.why, grace_s)
        until = signals.since + grace_s
        worker.stop()
        while not signals.second and (left_s := until - time.monotonic()) > 0:
            signals.wait(left_s)
        why = "second signal" if signals.second else "shutdown timeout reached"
        log.warning("%s: handing back what still runs", why)
        worker.abandon()
        os._exit(0)

    threading.Thread(target=obey, name="rsq-signals", daemon=True).start()
    signals.hold()
    announce(report)  # whoever has read it may send a signal, which is heard by now
    whose = {"worker_id": worker.worker_id}
    worker_ready.send(app, **whose, queues=worker.queue_names)
    code = 0 if worker.serve() else 1
    worker_shutdown.send(app, **whose)
    child_exit.send(app, **whose, pid=os.getpid(), exitcode=code)
    app.close()
    return code
