"""The parent of the children: spawns them, keeps their leases, and reacts to their deaths and to signals.

Single-threaded, and it runs no user code: the app is imported in the children. Whatever a task does to its process, the
supervisor goes on renewing leases, and hands on at once what a dead child held.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from rsq import codec
from rsq.broker.connection import Endpoint, Link
from rsq.broker.doorbell import Doorbell
from rsq.broker.server_check import check_server
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import BrokerError, BrokerUnavailable, RsqError, SettingsError
from rsq.settings import Settings
from rsq.worker.beat_beside import BesideBeat
from rsq.worker.children import Child, Children, WorkerOptions, how_it_ended
from rsq.worker.health import ChildHealth, Health, HealthFile
from rsq.worker.leases import RENEWALS, Leases, Retirement
from rsq.worker.overdue import Deadlines, overdue
from rsq.worker.portrait import Portrait, queues_line
from rsq.worker.reload import CodeWatch
from rsq.worker.remote_control import Contact

log = logging.getLogger("rsq.worker")

AGAIN_S = 0.5
"""Wait before the server is asked again after a fault."""

SAY_S = 10.0
"""While the server is away, it is said again after this long."""

LINK_TIMEOUT_S = 2.0
"""One answer may take this long, so that several tries fit into a lease."""

RESPAWN_S = (0.05, 10.0)
"""First and longest wait before a child that died young is replaced."""

YOUNG_S = 5.0
"""A child that dies within this time has died young."""


class Supervisor:
    """One worker. `run` returns its exit code."""

    def __init__(self, options: WorkerOptions, announce: Callable[[str], None] = lambda text: None) -> None:
        self._options = options
        self._announce = announce
        self._worker_id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        self._children = Children(options, self._worker_id)
        self._deadlines = Deadlines(self._children)
        self._beat = BesideBeat(options, self._children, announce)
        self._code: CodeWatch | None = None
        self._delays: dict[int, float] = {}
        self._respawn_at: dict[int, float] = {}
        self._retirements: list[Retirement] = []
        self._settings: Settings | None = None
        self._hello: dict[str, Any] = {}
        self._contact: Contact | None = None
        self._next_renewal = 0.0
        self._renewed = time.monotonic()
        self._say_at = 0.0
        self._health = HealthFile()
        self._signals_seen = 0
        self._stop_deadline: float | None = None
        self._failure: Exception | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()

    def run(self) -> int:
        """Until a signal says stop. Raises SettingsError, BrokerRefused and BrokerUnsuitable when it cannot begin."""
        self._catch_signals()
        if self._options.reload:
            self._code = CodeWatch()
            self._selector.register(self._code, selectors.EVENT_READ, self._code)
        for index in range(self._options.children):
            self._spawn(index)
        while self._children or self._beat or self._respawn_at or (self._retirements and not self._gives_up()):
            self._step()
        if self._contact is not None:
            try:
                self._contact.leases.leave()
            except BrokerError as error:
                log.warning("could not sign off: %s", error)
        self._health.remove()
        if self._code is not None:
            self._code.close()
        if self._failure is not None:
            raise self._failure
        return 0

    def _step(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            if key.data is None:
                self._read_signals()
            elif isinstance(key.data, CodeWatch):
                self._reload(key.data)
            elif isinstance(key.data, Doorbell):
                pause_s = 0.0 if key.data.rang() else AGAIN_S
                self._next_renewal = min(self._next_renewal, time.monotonic() + pause_s)
            else:
                self._listen(key.data)
        self._beat.tend(time.monotonic())
        for child, code in self._children.reap():
            self._mourn(child, code)
        now = time.monotonic()
        self._deadlines.tend(now)
        if self._keeps_leases and now >= self._next_renewal:
            self._keep_leases()
        for index, moment in list(self._respawn_at.items()):
            if now >= moment:
                del self._respawn_at[index]
                self._spawn(index)
        if self._stop_deadline is not None and now >= self._stop_deadline:
            self._kill("shutdown timeout reached")

    def _patience(self) -> float:
        moments = [*self._respawn_at.values()]
        if self._beat.spawn_at is not None:
            moments.append(self._beat.spawn_at)
        if self._keeps_leases:
            moments += (self._next_renewal, self._deadlines.look_at)
        if self._stop_deadline is not None:
            moments.append(self._stop_deadline)
        return max(0.0, min(moments) - time.monotonic()) if moments else 1.0

    # -- children

    def _spawn(self, index: int) -> None:
        if not self._stopping:
            child = self._children.spawn(index)
            assert child.hello is not None
            self._selector.register(child.hello, selectors.EVENT_READ, child)

    def _listen(self, child: Child) -> None:
        """Take in what a child says; with its whole hello it is let go."""
        hello = child.listen()
        if hello is None:
            return
        assert child.hello is not None
        self._selector.unregister(child.hello)
        child.hang_up()
        if "error" in hello and self._settings is None:
            self._fail(SettingsError(hello["error"]))
        elif "error" in hello:
            log.error("a new child cannot load the app: %s", hello["error"])
        elif hello:
            self._welcome(hello)

    def _welcome(self, hello: dict[str, Any]) -> None:
        """A child is ready: it is let go together with the next renewal, now. The first one tells the settings."""
        if self._settings is None:
            self._hello, self._settings = hello, Settings(**hello["settings"])
        elif self._contact is not None and hello["tasks"] != self._hello["tasks"]:
            self._hello["tasks"] = hello["tasks"]
            self._contact.leases.change(tasks=codec.encode(hello["tasks"]))
        self._next_renewal = time.monotonic()

    def _begin(self, settings: Settings) -> Contact:
        """Look at the server, and say what runs here."""
        names, tasks = self._hello["queues"], self._hello["tasks"]
        link = Link(Endpoint(settings.url), LINK_TIMEOUT_S)
        report = check_server(link, settings)
        some = ", ".join(tasks[:8]) + (", ..." if len(tasks) > 8 else "")
        self._announce(
            f"rsq worker {self._worker_id}\n"
            f"  app       {self._hello['app']}, {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}: {some}\n"
            f"  queues    {queues_line(names, self._hello['unread'])}\n"
            f"  children  {self._options}\n"
            f"  server    {report}"
        )
        self._beat.begin()
        if not tasks:
            log.warning("app %s has no tasks: every message will be put off and then given up", self._hello["app"])
        options = self._options
        portrait = Portrait(
            self._hello["app"], names, tasks, options.pool, options.slots, options.most_children, settings.lease_ms
        )
        queues = [WorkerQueue(name, settings) for name in names]
        return Contact(link, queues, self._worker_id, portrait, self._selector)

    def _let_go(self, child: Child, leases: Leases, settings: Settings) -> None:
        """Register the child's consumer and let it work."""
        if not child.registered and not self._stopping:
            leases.register(child.consumer)
            child.let_go(settings.lease_s)

    def _mourn(self, child: Child, code: int) -> None:
        """Hand on what a dead child held, and see to its successor."""
        now = time.monotonic()
        how = "" if code == 0 or child.cut_off else how_it_ended(code)
        # Of what we cut off ourselves nothing is a suspect; but a call that was taken early will not be run again, so
        # its caller must hear of it.
        late = overdue(child)
        running = [entry for entry in child.board.running() if entry not in late and (how or entry.taken)]
        while child.hello is not None:
            self._listen(child)
        if child.registered:
            self._retirements.append(Retirement(child.consumer, how, running, late))
            self._next_renewal = now
        if self._stopping:
            return
        if self._settings is None and code != 0:
            self._fail(SettingsError(f"the child died while it loaded the app ({how})"))
            return
        if how:
            what = f", while it ran {', '.join(entry.task_id for entry in running)}" if running else ""
            log.error("child %d (pid %d) died: %s%s", child.index, child.pid, how, what)
        if child.index not in self._children.places:
            return
        young = now - child.started < YOUNG_S and code != 0 and not running and not late
        delay = self._delays.get(child.index, RESPAWN_S[0]) if young else 0.0
        self._delays[child.index] = min(RESPAWN_S[1], delay * 2) if young else RESPAWN_S[0]
        self._respawn_at[child.index] = now + delay

    def _reload(self, code: CodeWatch) -> None:
        """The code has changed: all children make room for new ones, which load it as it is now."""
        changed = code.changed()
        if not changed:
            log.error("nobody watches the code any more: it is not loaded anew when it changes")
            self._selector.unregister(code)
            return
        if not changed[0]:
            log.info("watching the code in %s", os.getcwd())
        names = [name for name in changed if name]
        if not names or self._stopping or self._settings is None:
            return
        log.info("%s changed: loading the code anew", ", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))
        for index in self._respawn_at:
            self._respawn_at[index] = time.monotonic()
        for child in self._children:
            child.dismiss()
        self._beat.replace()

    # -- leases

    @property
    def _keeps_leases(self) -> bool:
        """From the first hello on; but one that stops before it has begun begins no more."""
        return self._settings is not None and (self._contact is not None or not self._stopping)

    def _keep_leases(self) -> None:
        assert self._settings is not None
        try:
            # A server that is away when the worker starts is waited for like one that goes away later.
            contact = self._contact = self._contact or self._begin(self._settings)
            leases = contact.leases
            while self._retirements:
                leases.retire(self._retirements[0])
                self._retirements.pop(0)
            for child in self._children:
                if child.hello is None:
                    self._let_go(child, leases, self._settings)
            # Read before the names, which a child may change at any moment: then only the old one is lost.
            generations = {child: child.board.generation for child in self._children if child.registered}
            living = {child.consumer: child for child in generations}
            members = [(child.pid, child.registered, child.board) for child in self._children]
            places, done = len(self._children.places), self._children.done
            until, lost = contact.renew(list(living), members, places, self._stopping, done)
            for name, child in living.items():
                if name in lost:
                    child.board.fence(generations[child])
                else:
                    child.board.lease_until = until
            self._renewed, self._say_at = time.monotonic(), 0.0
            self._next_renewal = self._renewed + leases.renew_every_s
            self._obey(contact)
        except RsqError as error:
            if self._contact is None and not isinstance(error, BrokerUnavailable):
                self._fail(error)
                return
            now = time.monotonic()
            if now >= self._say_at:
                log.warning("%s; trying again every %.1f s", error, AGAIN_S)
                self._say_at = now + SAY_S
            self._next_renewal = now + AGAIN_S
        self._replace_the_stuck()
        self._tell_health()

    def _replace_the_stuck(self) -> None:
        """A child that runs nothing and fetches nothing holds what it has fetched for ever: its lease is renewed."""
        assert self._settings is not None
        for child in self._children:
            standstill_s = time.monotonic() - child.board.beat
            if child.registered and standstill_s > self._settings.watchdog_s and not child.board.running():
                log.error("child %d (pid %d) took no step for %.0f s: replaced", child.index, child.pid, standstill_s)
                child.cut()

    def _tell_health(self) -> None:
        assert self._settings is not None
        children = [
            ChildHealth(child.pid, child.registered, child.board.beat, len(child.board.running()))
            for child in self._children
        ]
        every_s = self._settings.lease_s / RENEWALS + LINK_TIMEOUT_S
        now = time.monotonic()
        health = Health(
            self._worker_id, os.getpid(), now, every_s, self._renewed, self._settings.lease_s, self._stopping, children
        )
        try:
            self._health.write(health)
        except OSError as error:
            log.warning("health file: %s", error)

    def _obey(self, contact: Contact) -> None:
        """Do what `rsq control` asks for."""
        wish, places = contact.wish, self._children.places
        if contact.news:
            self._next_renewal = time.monotonic()
        if self._stopping:
            return
        if wish.stop:
            log.info("told to stop by rsq control")
            os.kill(os.getpid(), signal.SIGTERM)
        elif wish.children is not None and wish.children != len(places):
            before = len(places)
            for index in self._children.resize(wish.children):
                self._spawn(index)
            self._respawn_at = {index: at for index, at in self._respawn_at.items() if index in places}
            if len(places) != before:
                log.info("told by rsq control: %d children in place of %d", len(places), before)

    # -- the end

    @property
    def _stopping(self) -> bool:
        return self._signals_seen > 0 or self._failure is not None

    def _gives_up(self) -> bool:
        """All children are gone, and what they held cannot be handed on: their leases run out by themselves."""
        return self._contact is None or (self._stop_deadline is not None and time.monotonic() > self._stop_deadline)

    def _catch_signals(self) -> None:
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def _read_signals(self) -> None:
        for number in os.read(self._wake_read, 4096):
            if number == signal.SIGCHLD:
                continue
            self._signals_seen += 1
            if self._signals_seen == 1:
                self._stop(signal.Signals(number).name)
            else:
                self._kill("second signal")

    def _stop(self, why: str) -> None:
        grace_s = self._settings.shutdown_timeout_s if self._settings else 0.0
        self._respawn_at.clear()
        log.info("%s: stopping; running tasks have %.0f s to end", why, grace_s)
        self._next_renewal = time.monotonic()
        self._stop_deadline = time.monotonic() + grace_s
        self._beat.stop()
        for child in self._children:
            child.signal(signal.SIGTERM if child.registered else signal.SIGKILL)

    def _kill(self, why: str) -> None:
        """Cold: what still runs is cut off and handed back, with no attempt counted."""
        if self._children:
            log.warning("%s: handing back what still runs", why)
        self._beat.stop(signal.SIGKILL)
        for child in self._children:
            child.cut()
        # What is left to do is handing back; it gets a few tries and no more.
        self._stop_deadline = time.monotonic() + LINK_TIMEOUT_S

    def _fail(self, error: Exception) -> None:
        """It cannot begin: end the children, then raise."""
        self._failure = self._failure or error
        self._respawn_at.clear()
        self._beat.stop(signal.SIGKILL)
        for child in self._children:
            child.cut()
