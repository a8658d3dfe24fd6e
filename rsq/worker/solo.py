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
from functools import partial

from rsq import keys
from rsq.app import BaseApp
from rsq.broker.connection import Endpoint, Link
from rsq.broker.forks import renew_in_child
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.flow.own_tasks import with_own_tasks
from rsq.loader import load_app, need_real_threads
from rsq.signals import child_exit, child_init, worker_ready, worker_shutdown
from rsq.streams.retain import retentions_of
from rsq.worker.board import Board, Running
from rsq.worker.child_limits import Wear
from rsq.worker.children import WorkerOptions
from rsq.worker.crew import Crew, share_the_interpreter
from rsq.worker.duty import Duty
from rsq.worker.identity import Identity, new_worker_id
from rsq.worker.lanes import side_by_side
from rsq.worker.lease_keeper import what_runs
from rsq.worker.leases import Retirement
from rsq.worker.listing import Listing
from rsq.worker.portrait import Portrait, queues_line
from rsq.worker.process import free_forks
from rsq.worker.rounds import AGAIN_S, LINK_TIMEOUT_S, again_at, lanes_of
from rsq.worker.stop import StopSignals

log = logging.getLogger("rsq.worker")


class SoloWorker:
    """One crew, and the thread that keeps its leases.

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
        for name in self.queue_names:
            keys.check_queue(name)
        self.worker_id = new_worker_id()
        self._endpoint = Endpoint.of(self._settings)
        self._board = Board(1, slots=1).child(0)
        self._wear = wear
        self._weights = weights
        self._main_thread = main_thread
        self._on_shutdown = on_shutdown or self.stop
        self._identities: list[Identity] = []
        self._duty: Duty
        self._crew: Crew
        self._selector = selectors.DefaultSelector()
        self._prompter: socket.socket
        self._prompt: socket.socket
        self._due_at = 0.0
        self._stopping = False
        self._keeper: threading.Thread | None = None

    def begin(self) -> str:
        """Look at the server and take leases; gives the line about the server. Raises BrokerError."""
        settings, names = self._settings, self.queue_names
        tasks = sorted(self._app.tasks)
        portrait = Portrait(self._app.name, names, tasks, "solo", 1, 1, settings.lease_ms)
        duty = self._duty = Duty(
            self._endpoint, names, settings, self.worker_id, portrait, self._selector, self._rung, self._heard
        )
        self._app.client.queues.learn(duty.partitions)
        self._board.divide(len(duty.rounds.lanes))
        self._identities = [Identity(self.worker_id, 0, 1, lane) for lane in self._board.lanes]
        self._crew = Crew(
            with_own_tasks(self._app),
            settings,
            duty.queues,
            self._identities,
            self._board,
            "solo",
            self._wear,
            weights=self._weights,
            main_thread=self._main_thread,
            retentions=retentions_of(self._app),
        )
        leases_until, errors = duty.rounds.register([identity.consumer for identity in self._identities])
        if not any(leases_until):
            raise errors[0]
        for lane, until in zip(self._board.lanes, leases_until, strict=True):
            lane.lease_until = until
        with contextlib.suppress(BrokerUnavailable):  # of one partition: it is tried again
            self._renew()
            duty.control.settle()
        self._prompter, self._prompt = socket.socketpair()
        renew_in_child(self)
        self._keeper = threading.Thread(target=self._keep_leases, name="rsq-lease", daemon=True)
        self._keeper.start()
        queues = queues_line(names, self._app.unread(names))
        return what_runs(self.worker_id, self._app.name, tasks, queues, "none (solo)", duty.server)

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
            self._sign_off([])

    def stop(self) -> None:
        """From any thread, once it has begun: hand back what has not begun, and let the running body end."""
        self._stopping = True
        with contextlib.suppress(OSError):  # it has ended already
            self._prompter.send(b"s")  # for a report that tells it
        self._crew.stop()

    def abandon(self) -> None:
        """From any thread: hand the running body back, too, with no attempt counted. The process must end then."""
        self._sign_off([entry for entry in self._board.running() if entry.taken])

    @property
    def queues(self) -> list[WorkerQueue]:
        """Those that it reads, once it has begun."""
        return self._duty.queues

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

    def _keep_leases(self) -> None:
        self._selector.register(self._prompt, selectors.EVENT_READ)
        duty, every_s = self._duty, self._duty.rounds.every_s
        self._due_at = time.monotonic() + every_s
        while True:
            due_at = min(self._due_at, duty.due_at)
            if ready := self._selector.select(max(0.0, due_at - time.monotonic())):
                link = ready[0][0].data
                if link is not None:
                    link.on_readable(ready[0][0].fd)
                elif self._prompt.recv(64):
                    self._due_at = 0.0
                else:
                    break
                continue
            began = time.monotonic()
            duty.tend(began)
            if began < self._due_at:
                continue
            self._due_at = began + every_s
            try:
                self._renew()
            except BrokerError as error:
                log.warning("the lease could not be renewed, trying again every %.1f s: %s", AGAIN_S, error)
                self._due_at = again_at(began)
        duty.end()
        self._selector.close()
        self._prompt.close()

    def _rung(self, connected: bool) -> None:
        self._due_at = min(self._due_at, time.monotonic() + (0.0 if connected else AGAIN_S))

    def _heard(self) -> None:
        """It is known what is wished."""
        control = self._duty.control
        if control.news:
            self._due_at = 0.0
        if control.news and control.wish.stop and not self._stopping:
            self._on_shutdown()

    def _renew(self) -> None:
        """Renew the leases, and begin to tell of it. Raises BrokerError: some could not be renewed."""
        members = [(os.getpid(), True, self._board)]
        # Read before the names, which may change at any moment.
        generations = [lane.generation for lane in self._board.lanes]
        renewals = self._duty.rounds.renew([[identity.consumer] for identity in self._identities])
        for lane, generation, renewal in zip(self._board.lanes, generations, renewals, strict=True):
            if isinstance(renewal, BrokerError):
                continue
            if renewal.lost:
                lane.fence(generation)
            else:
                lane.lease_until = renewal.until
        self._duty.control.tell(members, 1, self._stopping)
        for renewal in renewals:
            if isinstance(renewal, BrokerError):
                raise renewal

    def _sign_off(self, taken: Sequence[Running]) -> None:
        """Hand back what is held, and be listed no more. On links of its own: a thread may use the others."""
        lanes = lanes_of(self._endpoint, self._duty.queues, self._settings)
        retirements = [Retirement(identity.consumer, "", taken) for identity in self._identities]
        acts = [partial(lane.retire, each) for lane, each in zip(lanes, retirements, strict=True)]
        failed = [error for errors in side_by_side(acts) for error in errors.values()]
        for error in failed:
            log.warning("goes to others when its lease has ended: %s", error)
        for lane in lanes:
            lane.close()
        link = Link(self._endpoint.at(self._settings.namespace), LINK_TIMEOUT_S)
        try:
            if len(lanes) > 1 or not any(isinstance(error, BrokerUnavailable) for error in failed):
                link.follow(Listing(self._settings, self.worker_id, self._duty.partitions).leaving())
        except BrokerError as error:
            log.warning("could not sign off: %s", error)
        finally:
            link.close()


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
