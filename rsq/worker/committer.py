"""Group commit: while one commit is on its way to the server the next verdicts gather, and go together.

No timers: at low load each verdict goes at once, from the thread that brings it if that has nothing else to do; at high
load one script call settles hundreds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from rsq import codec
from rsq.bell import Bell
from rsq.broker.connection import Link, ScriptCall
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Released, Replaced, Retried, Verdict
from rsq.calls.retry import bury_unusable, error_of
from rsq.errors import BrokerError, BrokerRefused, BrokerUnavailable, DecodeError, LeaseLost
from rsq.logs import guarded
from rsq.worker.identity import Identity
from rsq.worker.turnstile import Turnstile

log = guarded("rsq.task")
broker_log = guarded("rsq.worker")

MOST_VERDICTS = 500
MOST_BYTES = 8 * 1024 * 1024
"""Bounds of one commit: neither the server nor this process should hang over one for long."""

MOST_WAITING = 4 * MOST_VERDICTS
"""With more outcomes than this still to be written nothing new is begun: each runs again if the lease is lost."""

PAUSE_S = (0.05, 1.0)
"""First and longest wait before a commit is repeated."""


MOST_REFUSALS = 4
"""So often a commit is repeated that the server refuses, before each of its outcomes is written by itself."""

REFUSED_AGAIN_S = 10.0
"""Wait before an outcome is tried again that the server refuses in every form."""

ALL_PAUSE_S = 0.001
"""Wait between two looks whether all is written."""


class _GaveUp(Exception):
    """The worker ends, and the server is away."""


class Committer:
    """Writes verdicts, in its own thread. A commit whose reply was lost is repeated: the scripts recognise it.

    turnstile  of the committers of one child; default: there is no other
    """

    def __init__(
        self,
        link: Link,
        queues: Mapping[str, WorkerQueue],
        identity: Identity,
        on_lease_lost: Callable[[str], None],
        on_failure: Callable[[], None],
        on_caught_up: Callable[[], None],
        log_arguments: bool = False,
        turnstile: Turnstile | None = None,
    ) -> None:
        self._turn = nullcontext if turnstile is None else turnstile.turn
        self._link = link
        self._queues = queues
        self._identity = identity
        self._board = identity.board
        self._on_lease_lost = on_lease_lost
        self._on_failure = on_failure
        self._on_caught_up = on_caught_up
        self._log_arguments = log_arguments
        self._verdicts = deque[Verdict]()
        self._wakes = deque[tuple[str, str, bytes]]()
        self._in_flight: list[Verdict] = []
        self._refused: list[Verdict] = []
        self._refused_at = 0.0
        self._sleeping = False
        self._wakeup = Bell()
        self._writing = threading.Lock()
        self._brings = 0
        self.left = False
        """There is a verdict for whose writing nobody was woken."""
        self._closed = False
        self._gave_up = False
        self._thread = threading.Thread(target=self._run, name="rsq-committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, verdict: Verdict) -> None:
        """Have a verdict written as soon as possible."""
        self._verdicts.append(verdict)
        if not self._sleeping:
            return
        if threading.get_ident() == self._brings:
            self.left = True
        else:
            self._wakeup.set()

    def leave_to_me(self) -> None:
        """The thread that calls this looks at `left` after what it has put, and calls `write_left` then."""
        self._brings = threading.get_ident()

    def write_left(self, idle: bool) -> None:
        """Write at once, in the calling thread, if that is idle: no other one has to be woken for it. It tries once;
        what it cannot write is for the committer's own thread.
        """
        self.left = False
        if idle and self._writing.acquire(blocking=False):
            try:
                if self._verdicts and not self._in_flight:
                    self._commit(patient=False)
            except Exception as error:
                broker_log.debug("left to the committer: %s", error)
            finally:
                self._writing.release()
        if self._verdicts or self._in_flight:
            self._wakeup.set()

    def write_all(self) -> None:
        """Return when all outcomes are written that wait now, or the lease has run out."""
        while (self._verdicts or self._in_flight) and self._identity.lease_holds():
            self._wakeup.set()
            time.sleep(ALL_PAUSE_S)

    def drop_wakes(self, queue: str, entry_ids: list[bytes], consumer: str) -> None:
        """Settle entries that carried no call."""
        self._wakes.extend((consumer, queue, entry_id) for entry_id in entry_ids)
        if self._sleeping:
            self._wakeup.set()

    @property
    def is_behind(self) -> bool:
        """Whether too many verdicts wait to be written: the server is slower than the bodies, or away."""
        return len(self._verdicts) + len(self._refused) > MOST_WAITING

    def held(self) -> list[Delivery]:
        """Deliveries whose verdict is not known to be written."""
        # In this order: a verdict only moves from the first list to the second, and on to the third.
        waiting = list(self._verdicts)
        return [verdict.delivery for verdict in (*waiting, *self._in_flight, *self._refused)]

    def close(self, timeout_s: float) -> bool:
        """Write what is left, then end. False when it could not be written in time."""
        self._closed = True
        self._wakeup.set()
        self._thread.join(timeout_s)
        self._link.close()
        return not self._thread.is_alive() and not self._gave_up and not self._refused

    def _run(self) -> None:
        try:
            while not self._closed or self._has_work:
                self._sleeping = True
                if not self._has_work and not self._closed:
                    self._wakeup.wait(REFUSED_AGAIN_S if self._refused else -1)
                self._sleeping = False
                self._take_up_refused()
                while self._has_work:
                    with self._turn(), self._writing:
                        self._commit()
        except BaseException:
            # Outcomes that cannot be written must not pile up unseen: what this child holds goes to others.
            broker_log.exception("the committer failed")
            self._on_failure()

    @property
    def _has_work(self) -> bool:
        return bool(self._verdicts or self._wakes or self._in_flight)

    def _take_up_refused(self) -> None:
        """What the server has refused is tried again from time to time: somebody may have mended it."""
        if self._refused and (self._closed or time.monotonic() >= self._refused_at + REFUSED_AGAIN_S):
            self._verdicts.extend(self._refused)
            self._refused = []

    def _commit(self, patient: bool = True) -> None:
        batch, waiting, was_behind = self._in_flight, self._verdicts, self.is_behind
        size = 0
        # The list is made in one step: lanes add to these meanwhile, and a deque is not gone through while it grows.
        for verdict in list(waiting)[: MOST_VERDICTS - len(batch)]:
            batch.append(verdict)
            waiting.popleft()
            size += len(verdict.result if type(verdict) is Completed else verdict.delivery.body)
            if size >= MOST_BYTES:
                break
        # Almost always one consumer: after a lost lease the old name's verdicts go under the old name, which is fenced.
        # What was acknowledged early is not: its token is its fence.
        verdicts: dict[tuple[str, bool, bool], dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
        for verdict in batch:
            delivery = verdict.delivery
            emits = delivery.output is not None
            verdicts[delivery.consumer, delivery.taken, emits][delivery.queue].append(verdict)
        wakes: dict[tuple[str, bool, bool], dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        while patient and self._wakes:
            consumer, name, entry_id = self._wakes.popleft()
            wakes[consumer, False, False][name].append(entry_id)
        for fence in {*verdicts, *wakes}:
            (consumer, _, emits), mine = fence, verdicts[fence]
            try:
                doubtful = self._write(consumer, mine, wakes[fence], patient)
                for name in doubtful:
                    mine[name] = self._write_singly(consumer, name, mine[name])
            except LeaseLost:
                outcomes = sum(type(verdict) is not Released for some in mine.values() for verdict in some)
                if outcomes:
                    broker_log.warning("%s lost its lease: %d outcomes are not committed", consumer, outcomes)
                self._on_lease_lost(consumer)
                _drop_outputs(mine, emits)
            except _GaveUp as error:
                broker_log.error("%d outcomes could not be committed: %s", len(batch), error)
                self._gave_up = True
            else:
                for some in mine.values():
                    self._report(some)
                _drop_outputs(mine, emits)
        self._in_flight = []
        self._board.commit_beat = time.monotonic() if self._has_work else 0.0
        if was_behind and not self.is_behind:
            self._on_caught_up()

    def _write(
        self, consumer: str, verdicts: Mapping[str, list[Verdict]], wakes: Mapping[str, list[bytes]], patient: bool
    ) -> set[str]:
        """Until all is written, however long the server is away: the fence decides then whether it still counts.

        Gives the queues of which something can never be written like this: it cannot be packed, or is refused.
        """
        calls: list[tuple[str, ScriptCall]] = []
        doubtful: set[str] = set()
        for name, some in verdicts.items():
            try:
                calls += [(name, call) for call in self._queues[name].commit_calls(consumer, some)]
            except Exception:
                doubtful.add(name)
        for name, entry_ids in wakes.items():
            calls.append((name, self._queues[name].drop_wakes_call(consumer, entry_ids)))
        pauses_s, refusals = _pauses(), 0
        while calls:
            try:
                replies = self._ask([call for _, call in calls])
            except Exception:
                return doubtful | {name for name, _ in calls}
            failed = [
                (*call, reply) for call, reply in zip(calls, replies, strict=True) if isinstance(reply, Exception)
            ]
            calls = [(name, call) for name, call, _ in failed]
            if failed:
                refusals += all(isinstance(reply, BrokerRefused) for *_, reply in failed)
                if refusals > MOST_REFUSALS:
                    return doubtful | {name for name, _ in calls}
                self._pause(failed[0][2], pauses_s, patient)
        return doubtful

    def _write_singly(self, consumer: str, name: str, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """One after the other, so that none fails for another's sake. Gives them as they were written.

        One that cannot be written is given up in its place. Where the server refuses that, too, it keeps the outcome.
        """
        written: list[Verdict] = []
        for verdict in verdicts:
            error = self._write_one(consumer, name, verdict)
            if error is not None:
                verdict = bury_unusable(verdict.delivery, error)
                error = self._write_one(consumer, name, verdict)
            if error is None:
                written.append(verdict)
            else:
                broker_log.error("no outcome of %s can be written, it is kept: %s", verdict.delivery.id, error)
                self._refused.append(verdict)
                self._refused_at = time.monotonic()
        return written

    def _write_one(self, consumer: str, name: str, verdict: Verdict) -> Exception | None:
        """None when it is written, however long the server is away; else why it never will be."""
        pauses_s = _pauses()
        while True:
            try:
                replies = self._ask(self._queues[name].commit_calls(consumer, [verdict]))
            except LeaseLost:
                raise
            except Exception as error:
                return error
            failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
            if failed is None or not isinstance(failed, BrokerUnavailable):
                return failed
            self._pause(failed, pauses_s, True)

    def _ask(self, calls: list[ScriptCall]) -> list[Any]:
        """The replies, errors of the server among them. Raises LeaseLost, and whatever packing them raises."""
        self._board.commit_beat = time.monotonic()
        try:
            replies = self._link.run_many(calls)
        except BrokerError as error:
            return [error] * len(calls)
        if any(reply == -1 for reply in replies if isinstance(reply, int)):
            raise LeaseLost("the consumer is not registered any more")
        return replies

    def _pause(self, error: Exception, pauses_s: Iterator[float], patient: bool) -> None:
        """Before a commit is repeated. Raises the error where nobody waits for it, and _GaveUp at the worker's end."""
        if not patient:
            raise error
        pause_s = next(pauses_s)
        if self._closed and pause_s >= PAUSE_S[1]:
            raise _GaveUp(error)
        level = logging.WARNING if isinstance(error, BrokerUnavailable) else logging.ERROR
        broker_log.log(level, "commit failed, again in %.1f s: %s", pause_s, error)
        time.sleep(pause_s)

    def _report(self, batch: list[Verdict]) -> None:
        info = log.isEnabledFor(logging.INFO)
        for verdict in batch:
            if type(verdict) is Completed:
                if info:
                    log.info("%s %s in %.3f s %s", *_what(verdict.delivery, verdict.counter), self._where(verdict))
            elif type(verdict) is Retried:
                log.log(
                    logging.INFO if verdict.counter == "limited" else logging.WARNING,
                    "%s %s after %.3f s, again in %.3f s: %s %s",
                    *_what(verdict.delivery, verdict.counter),
                    verdict.delay_ms / 1000,
                    verdict.why,
                    self._where(verdict),
                )
            elif type(verdict) is Replaced:
                if info:
                    log.info("%s %s in %.3f s %s", *_what(verdict.delivery, "replaced"), self._where(verdict))
            elif type(verdict) is Buried:
                log.error(
                    "%s %s in %.3f s: %s %s\n%s",
                    *_what(verdict.delivery, f"dead ({verdict.reason})"),
                    error_of(verdict.error),
                    self._where(verdict),
                    str(verdict.error.get("traceback", "")).rstrip(),
                )

    def _where(self, verdict: Verdict) -> str:
        delivery = verdict.delivery
        text = f"queue={delivery.queue} attempt={delivery.attempt}"
        if self._log_arguments:
            text += f" arguments={_arguments(delivery)}"
        return text


def _drop_outputs(verdicts: Mapping[str, list[Verdict]], emits: bool) -> None:
    """What their bodies have emitted is written, or never will be."""
    for some in verdicts.values() if emits else ():
        for verdict in some:
            verdict.delivery.output.drop()


def _what(delivery: Delivery, verb: str) -> tuple[str, str, float]:
    return f"{delivery.task}[{delivery.id}]", verb, delivery.runtime_s


def _arguments(delivery: Delivery) -> Any:
    try:
        return codec.decode_call(delivery.body)
    except DecodeError:
        return delivery.body


def _pauses() -> Iterator[float]:
    """Waits before the repeats of one commit."""
    pause_s = PAUSE_S[0]
    while True:
        yield pause_s
        pause_s = min(PAUSE_S[1], pause_s * 2)
