"""Keeps the inbox filled: fetches, blocks when there is nothing, and puts things right after a fault.

One step at a time; the thread around it owns the loop. While a slot is free it blocks in one read on all its streams.
With none free it never blocks in Redis: what a blocked read is given would wait behind the running tasks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rsq.broker.connection import Link
from rsq.broker.reads import BlockingRead
from rsq.broker.replies import Fetched
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.calls.outcome import Released
from rsq.clock import ServerClock
from rsq.errors import BrokerError, LeaseLost
from rsq.worker.board import ChildBoard
from rsq.worker.committer import Committer
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.outlook import SWEEP_S, Outlook
from rsq.worker.prefetch import Prefetch
from rsq.worker.revocations import Revocations
from rsq.worker.strays import Strays
from rsq.worker.turns import Turns

log = logging.getLogger("rsq.worker")

PAUSE_S = (0.1, 2.0)
"""First and longest wait before the server is tried again."""

PATIENCE_S = 0.1
"""Tasks that all run longer than this keep nobody waiting behind them: what waits is handed back."""

PLAIN_ROOM = 50
"""With less room a fetch costs little more than a plain read, and lets urgent messages overtake at once. Of large
messages half a page is enough: a script copies each byte several times."""

HAND_OVER_S = 0.01
"""An idle executor goes first with what came: for so long the fetcher keeps out of its way, or until that is hungry."""

STAND_BY_S = 0.1
"""Pause between two looks whether a lease that ran out by this host's clock was renewed after all, or is lost."""


class Workload(Protocol):
    """What the fetcher must know of the executor."""

    slots: int

    @property
    def done(self) -> int:
        """Bodies that ran to their end."""
        ...

    @property
    def busy_s(self) -> float:
        """How long they took, summed."""
        ...

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        ...

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs and can be reached."""
        ...


class Fetcher:
    """The reading side of one lane of a child."""

    def __init__(
        self,
        link: Link,
        turns: Turns,
        identity: Identity,
        board: ChildBoard,
        inbox: Inbox,
        workload: Workload,
        committer: Committer,
        prefetch: Prefetch,
        clock: ServerClock,
        make_link: Callable[[], Link],
    ) -> None:
        self._link = link
        self._make_link = make_link
        self._unblocker = make_link()
        self._turns = turns
        self._queues = turns.queues
        self._names = {queue.name for queue in turns.queues}
        self._identity = identity
        self._board = identity.board
        self._child = board
        self._inbox = inbox
        self._workload = workload
        self._committer = committer
        self._revocations = Revocations(turns.queues, inbox, workload.interrupt)
        self._prefetch = prefetch
        self._clock = clock
        self._settings = turns.queues[0].settings
        self._outlook = Outlook()
        self._read_on: BlockingRead | None = None
        self._strays = Strays(link, turns.queues, self._held)
        self._lost_name = ""
        self._stop = threading.Event()
        self._pause_s = PAUSE_S[0]
        self._client_id: int | None = None
        self._blocked = False
        self._thread = threading.Thread(target=self.run, name="rsq-fetcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Read no more. What was fetched and has not begun goes back at once."""
        self._stop.set()
        self._inbox.hungry.set()
        self._hand_back(self._inbox.drain())
        client_id = self._client_id
        if self._blocked and client_id is not None:
            # The read ends at once instead of within its second; what it was given meanwhile is handed back.
            link = self._make_link()
            self._unblock(link)
            link.close()
        if self._thread.ident is not None:  # else `start` comes after this, and its thread ends at once
            self._thread.join(2 * SWEEP_S + self._link.timeout_s)
        self._hand_back(self._inbox.drain())
        self._link.close()
        self._unblocker.close()

    def fence(self, consumer: str) -> None:
        """The lease of this consumer name is lost, as somebody else found out."""
        self._lost_name = consumer
        self._inbox.hungry.set()

    def run(self) -> None:
        """The thread: one step after the other until `stop`."""
        while not self._stop.is_set():
            try:
                self.step()
                self._pause_s = PAUSE_S[0]
            except LeaseLost:
                self._lost_name = self._identity.consumer
            except BrokerError as error:
                self._after_fault(error)
            except Exception as error:
                # A child that fetches no more would be worse than any error: rebuild everything and go on.
                log.exception("the fetcher failed")
                self._after_fault(error)

    def step(self) -> None:
        """Do what is most urgent, then wait for the next thing at most."""
        now = self._board.beat = time.monotonic()
        if self._lost_name == self._identity.consumer or self._board.is_fenced:
            self._take_new_name()
        elif not self._identity.lease_holds():
            self._stand_by()
            return
        if self._strays.expected():
            self._adopt()
        else:
            self._strays.look(self._identity.consumer, self._outlook.in_use, now)
        running = self._workload.running()
        self._revocations.listen(self._link, running, now)
        room = self._room(running, now)
        plain_room = max(1, min(PLAIN_ROOM, self._prefetch.page // 2))
        if room >= plain_room and self._outlook.allows_plain_read(now):
            self._read(room)
        elif room > 0 and self._outlook.wants_fetch(now):
            self._fetch(room)
        elif room > 0 and not self._is_busy(running) and not self._outlook.paused:
            self._block(room, now, bool(running))
        else:
            self._wait_for_room(room, running, now)

    def _is_busy(self, running: list[tuple[Delivery, float]]) -> bool:
        """What a blocking read brings would have to wait here."""
        return len(running) >= self._workload.slots or len(self._inbox) > 0

    def _room(self, running: list[tuple[Delivery, float]], now: float) -> int:
        """How many messages may be fetched now; 0 while enough is there, or while long tasks have all slots."""
        done = self._child.done = self._workload.done
        ahead = self._prefetch.update(done, self._workload.busy_s)
        held = len(self._inbox)
        low_water = self._inbox.low_water = self._prefetch.low_water(ahead)
        if held > low_water or self._committer.is_behind or self._patience(running, now) <= 0:
            return 0
        return min(self._prefetch.page, self._workload.slots - len(running) + ahead - held)

    def _patience(self, running: list[tuple[Delivery, float]], now: float) -> float:
        """How much longer something may wait for a slot; endless while one is free."""
        if len(running) < self._workload.slots:
            return float("inf")
        return max(started for _, started in running) + PATIENCE_S - now

    def _fetch(self, room: int) -> None:
        """One fetch from each queue whose turn it is, as far as there is room."""
        self._outlook.fetching(time.monotonic())
        paused, cut = 0, False
        for queue, count in self._turns.share_out(room):
            fetched = queue.fetch(self._link, self._identity.consumer, count)
            self._took(queue, fetched)
            self._turns.gave(len(fetched.deliveries), fetched.cut)
            paused += fetched.paused
            cut = cut or fetched.cut
            if fetched.unfinished:
                cut = self._link.run_one(queue.go_on_call()) > 0 or cut
            room -= len(fetched.deliveries)
        plain = all(self._outlook.in_use.get(queue.name) == [0] for queue in self._turns.first)
        self._outlook.fetched(time.monotonic(), room <= 0 or cut, paused == len(self._queues), plain)

    def _read(self, room: int) -> None:
        """There is a backlog, and it is plain."""
        for queue, count in self._turns.share_out(room):
            deliveries, wakes, plain = queue.read(self._link, self._identity.consumer, count)
            self._accept(queue, deliveries, wakes, self._identity.consumer)
            self._turns.gave(len(deliveries))
            if not plain or len(deliveries) < count:
                self._outlook.read_up()
                return

    def _took(self, queue: WorkerQueue, fetched: Fetched) -> None:
        self._clock.set(fetched.now_ms)
        in_use = [] if fetched.paused else fetched.priorities
        if self._outlook.saw(queue.name, in_use, fetched.next_due_ms is not None):
            self._read_on = None
        self._be_there(fetched.next_due_ms)
        self._accept(queue, fetched.deliveries, fetched.wakes, self._identity.consumer)

    def _be_there(self, due_ms: int | None) -> None:
        """When this delayed message is due."""
        if due_ms is not None:
            self._outlook.due(time.monotonic() + (due_ms - self._clock.now_ms()) / 1000)

    def _accept(self, queue: WorkerQueue, deliveries: list[Delivery], wakes: list[bytes], consumer: str) -> None:
        if wakes:
            self._committer.drop_wakes(queue.name, wakes, consumer)
            self._outlook.woken()
        if not deliveries:
            return
        self._prefetch.saw(len(deliveries), sum([len(delivery.body) for delivery in deliveries]))
        for delivery in deliveries:
            delivery.consumer = consumer
        if self._stop.is_set() or not self._identity.lease_holds():
            self._hand_back(deliveries)
        else:
            self._inbox.put(deliveries)

    def _block(self, room: int, now: float, running: bool) -> None:
        """Idle: one blocking read on everything until the next look is due, and no longer than the lease."""
        block_ms = int((min(self._outlook.sweep_at, self._board.lease_until) - now) * 1000)
        if block_ms <= 0:
            self._outlook.woken()
            return
        if running:
            block_ms = int(self._revocations.wait_s(block_ms / 1000) * 1000) + 1
        if self._client_id is None or not self._link.connected:
            self._client_id = int(self._link.call("CLIENT", "ID"))
        if self._read_on is None:
            in_use = [(queue, self._outlook.in_use.get(queue.name, [0])) for queue in self._queues]
            self._read_on = BlockingRead(self._identity.consumer, in_use, self._outlook.delayed)
        self._blocked = True
        try:
            if self._stop.is_set():
                return
            # A server ends a read that found nothing up to 0.1 s late: too late for a message that is due.
            on_time = (lambda: self._unblock(self._unblocker)) if self._outlook.waits_for_due else None
            waited = self._read_on(self._link, room, block_ms, on_time)
        finally:
            self._blocked = False
        if waited.calm:
            # Of a process that stood still meanwhile the look is old.
            self._outlook.calm(min(time.monotonic(), now + block_ms / 1000))
            self._be_there(waited.next_due_ms)
        self._inbox.hungry.clear()
        for queue, deliveries, wakes in waited.got:
            self._accept(queue, deliveries, wakes, self._identity.consumer)
            if len(deliveries) >= room:
                self._outlook.backlog = True
        if len(self._inbox):
            self._inbox.hungry.wait(HAND_OVER_S)

    def _unblock(self, link: Link) -> None:
        try:
            link.call("CLIENT", "UNBLOCK", self._client_id or 0)
        except BrokerError:
            pass  # then the read ends by itself, a little later

    def _wait_for_room(self, room: int, running: list[tuple[Delivery, float]], now: float) -> None:
        """Until the inbox wants more, or the committer does; meanwhile nothing is to wait behind a long task."""
        seconds = SWEEP_S if room <= 0 else self._outlook.sweep_at - now
        if len(self._inbox):
            patience = self._patience(running, now)
            if patience <= 0:
                self._prefetch.stuck()
                self._hand_back(self._inbox.drain())
                return
            seconds = min(seconds, patience)
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and not self._stop.is_set():
            self._inbox.hungry.wait(self._revocations.wait_s(seconds))

    def _hand_back(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._committer.put(Released(delivery))

    # -- after something went wrong

    def _after_fault(self, error: Exception) -> None:
        """Everything about the connection is made anew, and what was delivered meanwhile is looked for."""
        log.warning("%s; trying again in %.1f s", error, self._pause_s)
        self._link.close()
        self._client_id = None
        self._begin_anew()
        self._strays.lost_replies = True
        self._stop.wait(self._pause_s)
        self._pause_s = min(PAUSE_S[1], self._pause_s * 2)

    def _begin_anew(self) -> None:
        self._outlook = Outlook()
        self._read_on = None
        self._strays.lost_replies = False

    def _stand_by(self) -> None:
        """By this host's clock the lease has run out. The server says whether it is lost; until it is renewed, or
        another name is taken, nothing is read: what is read without a lease lies until somebody finds it.
        """
        for queue in self._queues:
            queue.fetch(self._link, self._identity.consumer, 0)
        self._wait(STAND_BY_S)

    def _held(self) -> list[Delivery]:
        # In the order in which a delivery moves on, so that none is missed.
        return [*self._inbox.held(), *(delivery for delivery, _ in self._workload.running()), *self._committer.held()]

    def _adopt(self) -> None:
        """What is ours by the word of the server, though we know nothing of it."""
        consumer, priorities = self._identity.consumer, dict[str, Sequence[int]]()
        for queue in self._queues:
            # Also makes the groups again where a flush or a failover took them.
            fetched = queue.fetch(self._link, consumer, 0)
            self._took(queue, fetched)
            priorities[queue.name] = fetched.priorities
        self._client_id = None
        for queue, deliveries, wakes in self._strays.adopting(consumer, priorities):
            self._accept(queue, deliveries, wakes, consumer)
            # A line on which a page comes through is no server that is away, though the next one may be lost.
            self._pause_s = PAUSE_S[0]

    def _take_new_name(self) -> None:
        """Fenced: nothing that was fetched under the old name is ours any more. Begin again under a new one."""
        old = self._identity.consumer
        dropped = self._inbox.drain()
        # What was acknowledged early has its token, and runs on: nobody else will run it.
        # And who has been told already is not told again when the next name is lost, too.
        mine = [each for each, _ in self._workload.running() if each.queue in self._names]
        for delivery in [each for each in mine if not (each.taken or each.lease_lost)]:
            delivery.lease_lost = True
            text = (
                f"{delivery.task}[{delivery.id}] belongs to another worker now: nothing of this run will be committed"
            )
            self._workload.interrupt(delivery, LeaseLost(text))
        for delivery in self._committer.held():
            delivery.lease_lost = not delivery.taken
        # On another queue the lease may still hold; there they go back at once.
        self._hand_back(dropped)
        name, asked_at = self._identity.next_name(), time.monotonic()
        for queue in self._queues:
            queue.register(self._link, name, old)
        self._identity.change(asked_at + self._settings.lease_s)
        self._begin_anew()
        log.warning(
            "lost the lease of %s: dropped %d messages that had not begun; going on as %s", old, len(dropped), name
        )
