"""Group commit: while one commit is on its way to the server the next verdicts gather, and go together.

No timers: at low load each verdict goes at once, from the thread that brings it if that has nothing else to do; at high
load one script call settles hundreds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from rsq import codec
from rsq.broker.connection import Link, ScriptCall
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Released, Retried, Verdict
from rsq.calls.retry import error_of
from rsq.errors import BrokerUnavailable, DecodeError, LeaseLost
from rsq.worker.wakeup import Bell

log = logging.getLogger("rsq.task")
broker_log = logging.getLogger("rsq.worker")

MOST_VERDICTS = 500
MOST_BYTES = 8 * 1024 * 1024
"""Bounds of one commit: neither the server nor this process should hang over one for long."""

MOST_WAITING = 4 * MOST_VERDICTS
"""With more outcomes than this still to be written nothing new is begun: each runs again if the lease is lost."""

PAUSE_S = (0.05, 1.0)
"""First and longest wait before a commit is repeated."""


class Committer:
    """Writes verdicts, in its own thread. A commit whose reply was lost is repeated: the scripts recognise it."""

    def __init__(
        self,
        link: Link,
        queues: Mapping[str, WorkerQueue],
        on_lease_lost: Callable[[str], None],
        on_failure: Callable[[], None],
        on_caught_up: Callable[[], None],
        log_arguments: bool = False,
    ) -> None:
        self._link = link
        self._queues = queues
        self._on_lease_lost = on_lease_lost
        self._on_failure = on_failure
        self._on_caught_up = on_caught_up
        self._log_arguments = log_arguments
        self._verdicts = deque[Verdict]()
        self._wakes = deque[tuple[str, str, bytes]]()
        self._in_flight: list[Verdict] = []
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

    def drop_wakes(self, queue: str, entry_ids: list[bytes], consumer: str) -> None:
        """Settle entries that carried no call."""
        self._wakes.extend((consumer, queue, entry_id) for entry_id in entry_ids)
        if self._sleeping:
            self._wakeup.set()

    @property
    def is_behind(self) -> bool:
        """Whether too many verdicts wait to be written: the server is slower than the bodies, or away."""
        return len(self._verdicts) > MOST_WAITING

    def held(self) -> list[Delivery]:
        """Deliveries whose verdict is not known to be written."""
        # In this order: a verdict only moves from the first list to the second.
        waiting = list(self._verdicts)
        return [verdict.delivery for verdict in (*waiting, *self._in_flight)]

    def close(self, timeout_s: float) -> bool:
        """Write what is left, then end. False when it could not be written in time."""
        self._closed = True
        self._wakeup.set()
        self._thread.join(timeout_s)
        self._link.close()
        return not self._thread.is_alive() and not self._gave_up

    def _run(self) -> None:
        while True:
            self._sleeping = True
            if not self._verdicts and not self._wakes and not self._in_flight and not self._closed:
                self._wakeup.wait()
            self._sleeping = False
            try:
                while self._verdicts or self._wakes or self._in_flight:
                    with self._writing:
                        self._commit()
            except Exception:
                # Outcomes that cannot be written must not pile up unseen: what this child holds goes to others.
                broker_log.exception("the committer failed")
                self._on_failure()
                return
            if self._closed:
                return

    def _commit(self, patient: bool = True) -> None:
        batch, was_behind = self._in_flight, self.is_behind
        size = 0
        while self._verdicts and len(batch) < MOST_VERDICTS and size < MOST_BYTES:
            verdict = self._verdicts[0]
            batch.append(verdict)
            self._verdicts.popleft()
            size += len(verdict.result if type(verdict) is Completed else verdict.delivery.body)
        # Almost always one consumer: after a lost lease the old name's verdicts go under the old name, which is fenced.
        # What was acknowledged early is not: its token is its fence.
        verdicts: dict[tuple[str, bool], dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
        for verdict in batch:
            delivery = verdict.delivery
            verdicts[delivery.consumer, delivery.taken][delivery.queue].append(verdict)
        wakes: dict[tuple[str, bool], dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        while patient and self._wakes:
            consumer, name, entry_id = self._wakes.popleft()
            wakes[consumer, False][name].append(entry_id)
        for fence in {*verdicts, *wakes}:
            calls: list[ScriptCall] = []
            consumer = fence[0]
            for name, some in verdicts[fence].items():
                calls += self._queues[name].commit_calls(consumer, some)
            for name, entry_ids in wakes[fence].items():
                calls.append(self._queues[name].drop_wakes_call(consumer, entry_ids))
            mine = [verdict for some in verdicts[fence].values() for verdict in some]
            try:
                written = self._write(calls, consumer, patient)
            except LeaseLost:
                outcomes = sum(type(verdict) is not Released for verdict in mine)
                if outcomes:
                    broker_log.warning("%s lost its lease: %d outcomes are not committed", consumer, outcomes)
                self._on_lease_lost(consumer)
            else:
                if written:
                    self._report(mine)
                else:
                    self._gave_up = True
        self._in_flight = []
        if was_behind and not self.is_behind:
            self._on_caught_up()

    def _write(self, calls: list[ScriptCall], consumer: str, patient: bool) -> bool:
        """Until all is written, however long the server is away: the fence decides then whether it still counts.

        False when it gave up, as the worker ends.
        """
        pause_s = PAUSE_S[0]
        while calls:
            try:
                replies = self._link.run_many(calls)
            except BrokerUnavailable as error:
                replies = [error] * len(calls)
            if any(reply == -1 for reply in replies if isinstance(reply, int)):
                raise LeaseLost(consumer)
            failed = [(call, reply) for call, reply in zip(calls, replies, strict=True) if isinstance(reply, Exception)]
            calls = [call for call, _ in failed]
            if failed and not patient:
                raise failed[0][1]
            if failed:
                if self._closed and pause_s >= PAUSE_S[1]:
                    broker_log.error("%d outcomes could not be committed: %s", len(self._in_flight), failed[0][1])
                    return False
                level = logging.WARNING if isinstance(failed[0][1], BrokerUnavailable) else logging.ERROR
                broker_log.log(level, "commit failed, again in %.1f s: %s", pause_s, failed[0][1])
                time.sleep(pause_s)
                pause_s = min(PAUSE_S[1], pause_s * 2)
        return True

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


def _what(delivery: Delivery, verb: str) -> tuple[str, str, float]:
    return f"{delivery.task}[{delivery.id}]", verb, delivery.runtime_s


def _arguments(delivery: Delivery) -> Any:
    try:
        return codec.decode_call(delivery.body)
    except DecodeError:
        return delivery.body
