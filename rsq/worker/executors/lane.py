"""A lane: in it one delivery at a time goes from its start to its verdict; and what all executors share."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as Pool
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rsq.broker.connection import Link, LinkPool
from rsq.broker.worker_queue import Rules, WorkerQueue
from rsq.calls.message import Delivery
from rsq.calls.outcome import Released
from rsq.errors import BrokerError, LeaseLost
from rsq.worker.attempt import Attempts
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import Wear
from rsq.worker.committer import Committer
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.interrupt import Interrupt
from rsq.worker.permits import bring_newer
from rsq.worker.time_limits import Clock, Watch

T = TypeVar("T")

log = logging.getLogger("rsq.worker")

ASK_PAUSE_S = 0.2
"""Wait before a question that has to be answered before the start is put again."""


@dataclass(frozen=True)
class Surroundings:
    """What the lanes of one child share.

    queues     by name, with the place of each in the order of the child's queues
    attempts   makes what runs bodies, with the way in which they are interrupted and with their time limits
    watch      of the time limits
    interrupt  how a body is interrupted in the thread that serves
    hand_back  gives back what has not begun: called by an executor that ends by itself
    """

    inbox: Inbox
    committer: Committer
    identity: Identity
    board: ChildBoard
    queues: Mapping[str, tuple[int, WorkerQueue]]
    links: LinkPool
    attempts: Callable[[Interrupt, Clock], Attempts]
    watch: Watch
    interrupt: type[Interrupt]
    wear: Wear
    hand_back: Callable[[], None]


class Lane:
    """A slot of the board, and what runs in it.

    running   the delivery, and since when (monotonic); set by the executor before it leaves the inbox
    done      bodies that ran to their end
    busy_s    how long they took, summed
    """

    def __init__(self, surroundings: Surroundings, number: int, interrupt: Interrupt) -> None:
        self.running: tuple[Delivery, float] | None = None
        self.done = 0
        self.busy_s = 0.0
        self.interrupt = interrupt
        self._committer = surroundings.committer
        self._identity = surroundings.identity
        self._board = surroundings.board
        self._slot = surroundings.board.slots[number]
        self.attempts = surroundings.attempts(interrupt, Clock(surroundings.watch, interrupt, self._slot))
        self._queues = surroundings.queues
        self._links = surroundings.links

    def run(self, delivery: Delivery, now: float) -> None:
        """Run it in this thread, unless it may not be started here."""
        index, queue = self._queues[delivery.queue]
        if not self._may_start(delivery, now):
            return
        if not self.attempts.is_plain(delivery) and not self._prepare(queue, delivery):
            return
        self._mark(index, delivery, now)
        # In a context of its own: what a body sets there is not seen by the next one.
        verdict = copy_context().run(self.attempts.run, delivery)
        self._committer.put(verdict)
        self._slot.end()
        self.done += 1
        self.busy_s += delivery.runtime_s

    async def arun(self, delivery: Delivery, now: float, pool: Pool) -> None:
        """Run it on the loop of this thread if it is a coroutine, else in a thread of `pool`."""
        loop = asyncio.get_running_loop()
        index, queue = self._queues[delivery.queue]
        if not self._may_start(delivery, now):
            return
        is_plain = self.attempts.is_plain(delivery)
        if not is_plain and not await loop.run_in_executor(pool, self._prepare, queue, delivery):
            return
        self._mark(index, delivery, now)
        if self.attempts.is_async(delivery):
            verdict = await self.attempts.arun(delivery)
        else:
            verdict = await loop.run_in_executor(pool, copy_context().run, self.attempts.run, delivery)
        self._committer.put(verdict)
        self._slot.end()
        self.done += 1
        self.busy_s += delivery.runtime_s

    def _mark(self, index: int, delivery: Delivery, now: float) -> None:
        """Tell on the board what runs here from now on."""
        self._slot.start(
            now,
            index,
            delivery.priority,
            delivery.taken,
            delivery.entry_id,
            delivery.id.encode(),
            delivery.task.encode(),
        )

    def _may_start(self, delivery: Delivery, now: float) -> bool:
        if now < self._board.lease_until:
            return True
        # Others may have it by now; the fence decides whether it is still ours to hand back.
        self._committer.put(Released(delivery))
        return False

    def _prepare(self, queue: WorkerQueue, delivery: Delivery) -> bool:
        """Ask the server what has to be asked before the start. False: it must not be started here."""
        revision = 0
        while isinstance(rules := self.attempts.rules(delivery), Rules):
            ask = partial(queue.begin, consumer=delivery.consumer, delivery=delivery, rules=rules, revision=revision)
            answer = self._insist(delivery, ask)
            if answer is None:
                return False
            if answer.newer is None:
                verdict = self.attempts.permission(delivery, rules, answer)
                break
            # Other arguments, other rules: what has the old ones asks for nothing.
            revision = bring_newer(delivery, answer.newer)
        else:
            verdict = rules
        if verdict is not None:
            self._committer.put(verdict)
            return False
        return not self.attempts.is_early(delivery) or self._take(queue, delivery)

    def _take(self, queue: WorkerQueue, delivery: Delivery) -> bool:
        """Acknowledge before the start (`acks_late=False`). False: it must not be started here."""
        # Where the first try arrived and its reply did not, the script knows that by its token.
        delivery.taken = bool(self._insist(delivery, lambda link: queue.take(link, delivery.consumer, delivery)))
        return delivery.taken

    def _insist(self, delivery: Delivery, ask: Callable[[Link], T]) -> T | None:
        """Ask until there is an answer. None: the lease is lost, so nobody is to start it here."""
        link = self._links.take()
        try:
            while self._identity.lease_holds():
                try:
                    return ask(link)
                except LeaseLost:
                    return None
                except BrokerError as error:
                    log.warning("the server must be asked before %s starts, trying again: %s", delivery.id, error)
                    time.sleep(ASK_PAUSE_S)
            return None
        finally:
            self._links.give_back(link)


class Executor(ABC):
    """The way in which the bodies of one child run, in a lane for each that runs at once.

    slots       lanes: as many as the board has slots
    interrupts  makes the way in which the bodies of a lane are interrupted
    """

    def __init__(self, surroundings: Surroundings, slots: int, interrupts: Callable[[], Interrupt]) -> None:
        self.slots = slots
        self._inbox = surroundings.inbox
        self._wear = surroundings.wear
        self._links = surroundings.links
        self._lanes = [Lane(surroundings, number, interrupts()) for number in range(slots)]

    @property
    def done(self) -> int:
        """Bodies that ran to their end."""
        return sum(lane.done for lane in self._lanes)

    @property
    def busy_s(self) -> float:
        """How long they took, summed."""
        return sum(lane.busy_s for lane in self._lanes)

    def install(self) -> None:  # noqa: B027 - most need nothing for it
        """Let bodies be interrupted. Called in the thread that will serve, when it is the main one."""

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        return [running for lane in self._lanes if (running := lane.running) is not None]

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, if it still runs and can be reached."""
        for lane in self._lanes:
            running = lane.running
            if running is not None and running[0] is delivery:
                lane.interrupt.throw(delivery, error)

    @abstractmethod
    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough. Raises what ended it."""
