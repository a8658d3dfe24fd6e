"""A runner: in it one delivery at a time goes from its start to its verdict; and what all executors share."""

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
from typing import NamedTuple, TypeVar

from rsq.broker.connection import Link
from rsq.broker.pool import LinkPool
from rsq.broker.worker_queue import Rules, WorkerQueue
from rsq.calls.inputs import takes_of
from rsq.calls.message import Delivery
from rsq.calls.outcome import Released, Retried, Verdict
from rsq.calls.retry import bury_unusable
from rsq.errors import BrokerError, BrokerRefused, DecodeError, FlowGone, LeaseLost, MessageTooLarge
from rsq.worker.attempt import Attempts
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import Wear
from rsq.worker.committer import Committer
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.interrupt import Interrupt
from rsq.worker.lanes import Committers, Inboxes
from rsq.worker.permits import bring_newer
from rsq.worker.time_limits import Limits
from rsq.worker.watch import Watch

T = TypeVar("T")

log = logging.getLogger("rsq.worker")

ASK_PAUSE_S = 0.2
"""Wait before a question that has to be answered before the start is put again, when there was no answer."""

REFUSED_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
"""The same where the server refused it, before it is given up."""

REFUSED_DELAY_MS = 10_000
"""A call comes back after this long whose start the server refused."""


class Source(NamedTuple):
    """Where a delivery comes from.

    place     of its queue in the order of the child's queues
    identity  under which it was fetched, whose lease covers it
    """

    place: int
    queue: WorkerQueue
    identity: Identity


@dataclass(frozen=True)
class Surroundings:
    """What the runners of one child share.

    sources    by the name of the queue
    attempts   makes what runs bodies, with the way to a plain function and with its time limits
    watch      throws what is due into bodies
    serving    makes the way to a plain function in the thread that serves
    hand_back  gives back what has not begun: called by an executor that ends by itself
    """

    inbox: Inbox | Inboxes
    committer: Committer | Committers
    board: ChildBoard
    sources: Mapping[str, Source]
    links: LinkPool
    attempts: Callable[[Interrupt, Limits], Attempts]
    watch: Watch
    serving: Callable[[], Interrupt]
    wear: Wear
    hand_back: Callable[[], None]


class Runner:
    """A slot of the board, and what runs in it.

    running   the delivery, and since when (monotonic); set by the executor before it leaves the inbox
    done      bodies that ran to their end
    busy_s    how long they took, summed
    """

    def __init__(self, surroundings: Surroundings, number: int, interrupt: Interrupt) -> None:
        self.running: tuple[Delivery, float] | None = None
        self.done = 0
        self.busy_s = 0.0
        self._committer = surroundings.committer
        self._slot = surroundings.board.slots[number]
        self._watch = surroundings.watch
        self.attempts = surroundings.attempts(interrupt, Limits(surroundings.watch, self._slot))
        self._sources = surroundings.sources
        self._links = surroundings.links

    def run(self, delivery: Delivery, now: float) -> None:
        """Run it in this thread, unless it may not be started here. Raises nothing, whatever becomes of it."""
        began = False
        try:
            if not (self._starts_plainly(delivery, now) or self._prepare(delivery, now)):
                return
            began = True
            # In a context of its own: what a body sets there is not seen by the next one.
            verdict = copy_context().run(self.attempts.run, delivery)
        except BaseException as error:
            verdict = _given_up(delivery, error, began)
        self._end(delivery, verdict, began)

    async def arun(self, delivery: Delivery, now: float, pool: Pool) -> None:
        """Run it on the loop of this thread if it is a coroutine, else in a thread of `pool`. In a `RunnerTask`."""
        began = False
        try:
            loop = asyncio.get_running_loop()
            if not (
                self._starts_plainly(delivery, now) or await loop.run_in_executor(pool, self._prepare, delivery, now)
            ):
                return
            began = True
            if self.attempts.is_async(delivery):
                verdict = await self.attempts.arun(delivery)
            else:
                verdict = await loop.run_in_executor(pool, copy_context().run, self.attempts.run, delivery)
        except BaseException as error:  # see above
            verdict = _given_up(delivery, error, began)
        self._end(delivery, verdict, began)

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, as soon as it can be reached and as long as it runs here."""

        def runs() -> bool:
            running = self.running
            return running is not None and running[0] is delivery

        if runs():
            self._watch.throw(self.attempts.throw, delivery, error, runs)

    def _end(self, delivery: Delivery, verdict: Verdict, began: bool) -> None:
        self._committer.put(verdict)
        self._slot.end()
        if began:
            self.done += 1
            self.busy_s += delivery.runtime_s

    def _starts_plainly(self, delivery: Delivery, now: float) -> bool:
        """Mark it, if it starts without a word to the server."""
        if now < self._sources[delivery.queue].identity.board.lease_until and self.attempts.is_plain(delivery):
            self._mark(delivery, now)
            return True
        return False

    def _mark(self, delivery: Delivery, now: float) -> None:
        """Tell on the board what runs here from now on."""
        self._slot.start(
            now,
            self._sources[delivery.queue].place,
            delivery.priority,
            delivery.taken,
            delivery.entry_id,
            delivery.id.encode(),
            delivery.task.encode(),
        )

    def _prepare(self, delivery: Delivery, now: float) -> bool:
        """Ask the server what has to be asked before the start, and mark it. False: it must not be started here."""
        _, queue, identity = self._sources[delivery.queue]
        if now >= identity.board.lease_until:
            # Others may have it by now; the fence decides whether it is still ours to hand back.
            self._committer.put(Released(delivery))
            return False
        try:
            verdict = self._bring_inputs(queue, delivery) or self._permission(queue, delivery)
            if verdict is None:
                # Marked first: of a call that is taken and on no board nobody could tell that it is lost.
                self._mark(delivery, now)
                if not self.attempts.is_early(delivery):
                    return True
                if self._take(queue, delivery):
                    self._mark(delivery, now)
                    return True
                self._slot.end()
                return False
        except LeaseLost:
            self._slot.end()
            return False
        except BrokerRefused as error:
            self._slot.end()
            verdict = Retried(delivery, "deferred", delivery.meta, REFUSED_DELAY_MS, f"it may not start: {error}")
        self._committer.put(verdict)
        return False

    def _permission(self, queue: WorkerQueue, delivery: Delivery) -> Verdict | None:
        """A verdict without a run, or None: it starts. Raises LeaseLost and BrokerRefused."""
        revision = 0
        while isinstance(rules := self.attempts.rules(delivery), Rules):
            ask = partial(queue.begin, consumer=delivery.consumer, delivery=delivery, rules=rules, revision=revision)
            answer = self._insist(delivery, ask)
            if answer.newer is None:
                return self.attempts.permission(delivery, rules, answer)
            # Other arguments, other rules: what has the old ones asks for nothing.
            revision = bring_newer(delivery, answer.newer)
        return rules

    def _bring_inputs(self, queue: WorkerQueue, delivery: Delivery) -> Verdict | None:
        """Read the values that it takes from others of its flow. A verdict where it cannot be given them."""
        if takes_of(delivery) is None or delivery.revoked:
            return None
        try:
            delivery.inputs = self._insist(delivery, lambda link: queue.flow_values(link, delivery))
        except (FlowGone, DecodeError, MessageTooLarge) as error:
            return self.attempts.unbound(delivery, error)
        return None

    def _take(self, queue: WorkerQueue, delivery: Delivery) -> bool:
        """Acknowledge before the start (`acks_late=False`). False: it has ended. Raises LeaseLost and BrokerRefused."""
        # Where the first try arrived and its reply did not, the script knows that by its token.
        delivery.taken = bool(self._insist(delivery, lambda link: queue.take(link, delivery.consumer, delivery)))
        return delivery.taken

    def _insist(self, delivery: Delivery, ask: Callable[[Link], T]) -> T:
        """Ask until there is an answer. Raises LeaseLost (nobody is to start it here), and BrokerRefused in the end."""
        link = self._links.take()
        pauses_s = [*REFUSED_PAUSES_S]
        try:
            while self._sources[delivery.queue].identity.lease_holds():
                try:
                    return ask(link)
                except BrokerError as error:
                    refused = isinstance(error, BrokerRefused)
                    if isinstance(error, LeaseLost) or (refused and not pauses_s):
                        raise
                    log.warning("the server must be asked before %s starts, trying again: %s", delivery.id, error)
                time.sleep(pauses_s.pop(0) if refused else ASK_PAUSE_S)
            raise LeaseLost(f"the lease of {delivery.consumer} ran out before {delivery.id} could start")
        finally:
            self._links.give_back(link)


def _given_up(delivery: Delivery, error: BaseException, began: bool) -> Verdict:
    """What becomes of a call when something failed beside its body."""
    if not began and not isinstance(error, Exception):
        # Raised by a signal handler of the app, say: not this call's fault, and nothing has run.
        log.error("%s was raised before %s started, which is handed back", type(error).__name__, delivery.id)
        return Released(delivery)
    log.error("rsq failed at %s[%s]; it is kept as a dead letter", delivery.task, delivery.id, exc_info=error)
    return bury_unusable(delivery, error)


class Executor(ABC):
    """The way in which the bodies of one child run, in a runner for each that runs at once.

    slots  runners: as many as the board has slots
    ways   makes the way to a plain function in one runner
    """

    def __init__(self, surroundings: Surroundings, slots: int, ways: Callable[[], Interrupt]) -> None:
        self.slots = slots
        self._inbox = surroundings.inbox
        self._wear = surroundings.wear
        self._links = surroundings.links
        self._runners = [Runner(surroundings, number, ways()) for number in range(slots)]

    @property
    def done(self) -> int:
        """Bodies that ran to their end."""
        return sum(runner.done for runner in self._runners)

    @property
    def busy_s(self) -> float:
        """How long they took, summed."""
        return sum(runner.busy_s for runner in self._runners)

    def install(self) -> None:  # noqa: B027 - most need nothing for it
        """Let bodies be interrupted. Called in the thread that will serve, when it is the main one."""

    def running(self) -> list[tuple[Delivery, float]]:
        """What runs now, and since when (monotonic)."""
        return [running for runner in self._runners if (running := runner.running) is not None]

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        """Raise `error` in the body of this delivery, as soon as it can be reached and as long as it runs."""
        for runner in self._runners:
            runner.interrupt(delivery, error)

    @abstractmethod
    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough. Raises what ended it."""
