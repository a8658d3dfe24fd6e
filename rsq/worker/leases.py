"""Keeps the leases of a worker's consumers in one partition, and hands on what the dead held.

Used by the supervisor, and by a thread of a solo worker. Runs no user code, so however long a task holds the GIL of its
child, the lease goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsq.broker.connection import Link, ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange
from rsq.broker.rows import CutShort
from rsq.broker.worker_queue import LOST_TTL_MS, WorkerQueue
from rsq.calls.outcome import pack_failure
from rsq.errors import BrokerError, BrokerUnavailable, WorkerLost
from rsq.remote import encode_error
from rsq.states import State
from rsq.worker.board import Running
from rsq.worker.time_limits import exceeded

log = logging.getLogger("rsq.worker")

RENEWALS = 3
"""Renewals within the life of one lease: two may fail before it is lost."""


@dataclass(frozen=True)
class Retirement:
    """A consumer that left or died, and what it was running then.

    how      '' for an orderly end
    running  calls that died with it
    overdue  calls for whose time limit it was killed
    lane     in which it consumed
    """

    consumer: str
    how: str
    running: Sequence[Running] = field(default_factory=tuple)
    overdue: Sequence[Running] = field(default_factory=tuple)
    lane: int = 0


@dataclass(frozen=True)
class Renewal:
    """What a renewal brought.

    until  the moment, on this host's monotonic clock, until which the leases hold
    lost   consumers that have lost theirs
    """

    until: float
    lost: set[str]


class Leases:
    """The leases of one worker in one partition, on its queues there.

    places   the place of each queue in the order of all the worker's queues; default: there are no others
    answers  the server did when it was last asked
    """

    def __init__(self, link: Link, queues: Sequence[WorkerQueue], places: Sequence[int] | None = None) -> None:
        self.answers = True
        self._link = link
        self._queues = queues
        self._places = range(len(queues)) if places is None else places
        self._settings = queues[0].settings
        self._look_at = 0.0
        self._refused: set[str] = set()

    def register(self, consumer: str) -> float:
        """A consumer begins. Gives the moment until which its leases hold, see `Renewal`. Raises BrokerError."""
        asked_at = time.monotonic()
        for queue in self._queues:
            queue.register(self._link, consumer)
        return asked_at + self._settings.lease_s

    def renewing(self, consumers: Sequence[str], deadline: Deadline) -> Exchange[Renewal]:
        """Prolong the leases, by one try.

        Raises    BrokerError: nothing is known, the old moment stands
        """
        asked_at = time.monotonic()
        looks = asked_at >= self._look_at
        calls: list[ScriptCall] = [queue.renew_call(consumers) for queue in self._queues] if consumers else []
        renewals = len(calls)
        if looks:
            calls += [queue.reconcile_call() for queue in self._queues]
        looked = len(calls)
        if consumers:
            # Where all workers are busy or paused, nobody fetches; flows go on all the same.
            calls.append(self._queues[0].go_on_call())
        if not calls:
            return Renewal(asked_at, set())
        replies = yield from running(calls, deadline)
        self._note_refusals(replies[:renewals])
        if looks:
            self._look_at = asked_at + self._settings.lease_s
            self._warn(replies[renewals:looked])
        lost = {name.decode() for reply in replies[:renewals] if not isinstance(reply, Exception) for name in reply}
        return Renewal(asked_at + self._settings.lease_s, lost)

    def _warn(self, found: Sequence[Sequence[bytes]]) -> None:
        for queue, names in zip(self._queues, found, strict=True):
            for name in () if isinstance(names, Exception) else names:
                log.warning(
                    "consumer %s of queue %s has no lease: its messages go to others", name.decode(), queue.name
                )

    def _note_refusals(self, renewals: Sequence[Any]) -> None:
        """A queue that refuses costs itself alone: its consumers lose it, and the scripts' fences hold there.

        Raises BrokerError: the server is away, or no queue has renewed anything
        """
        errors = {
            q.name: reply for q, reply in zip(self._queues, renewals, strict=False) if isinstance(reply, Exception)
        }
        for name, error in errors.items():
            if isinstance(error, BrokerUnavailable) or len(errors) == len(self._queues):
                raise error
            if name not in self._refused:
                log.error("the leases on queue %s cannot be renewed: %s", name, error)
        for name in self._refused - set(errors):
            log.info("the leases on queue %s are renewed again", name)
        self._refused = set(errors)

    def retire(self, retirement: Retirement, only: Collection[str] = ()) -> dict[str, BrokerError]:
        """Hand on all that a consumer held, on these queues; none: on all. Repeating it is safe.

        Returns  what went wrong, by the name of the queue
        """
        how = retirement.how or "the worker was stopped"
        lost = WorkerLost(f"the process died while it ran this call: {how}")
        ended = [(each.queue, _cut_short(each, None, lost)) for each in retirement.running]
        ended += [(each.queue, _cut_short(each, each.limit_s, exceeded(each.limit_s))) for each in retirement.overdue]
        calls = []
        names = []
        for place, queue in zip(self._places, self._queues, strict=True):
            if only and queue.name not in only:
                continue
            names.append(queue.name)
            rows = [each for number, each in ended if number == place]
            calls.append(queue.retire_call(retirement.consumer, retirement.how, LOST_TTL_MS, rows))
        try:
            replies = self._link.run_many(calls)
        except BrokerError as error:
            replies = [error] * len(calls)
        failed = {name: reply for name, reply in zip(names, replies, strict=True) if isinstance(reply, BrokerError)}
        self.answers = not any(isinstance(error, BrokerUnavailable) for error in failed.values())
        return failed

    def close(self) -> None:
        """Drop the connection."""
        self._link.close()


def _cut_short(running: Running, limit_s: float | None, error: Exception) -> CutShort:
    result = pack_failure(State.FAILURE, 1, limit_s or 0.0, encode_error(error))
    limit = "" if limit_s is None else f"{limit_s:g}"
    return CutShort(running.priority, running.entry_id, running.task_id, int(running.taken), limit, result)
