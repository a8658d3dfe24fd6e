"""Keeps the leases of a worker's consumers, hands on what the dead held, and reports that the worker lives.

Used by the supervisor, and by a thread of a solo worker. Runs no user code, so however long a task holds the GIL of its
child, the lease goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rsq import keys
from rsq.broker.connection import Link, ScriptCall
from rsq.broker.queue import Queue
from rsq.broker.wire import Argument
from rsq.broker.wishes import Wish, unpack_wish
from rsq.errors import BrokerError, BrokerUnavailable, WorkerLost
from rsq.outcome import pack_failure
from rsq.remote import encode_error
from rsq.states import State
from rsq.worker.board import Running

log = logging.getLogger("rsq.worker")

RENEWALS = 3
"""Renewals within the life of one lease: two may fail before it is lost."""

LOST_RESULT_TTL_MS = 86_400_000
"""How long the failure of a call stays readable that was acknowledged early and died with its process."""


@dataclass(frozen=True)
class Retirement:
    """A consumer that left or died, and what it was running then. `how` is '' for an orderly end."""

    consumer: str
    how: str
    running: Sequence[Running] = field(default_factory=tuple)


@dataclass(frozen=True)
class Renewal:
    """What a renewal brought.

    until  the moment, on this host's monotonic clock, until which the leases hold
    lost   consumers that have lost theirs
    wish   what people wish of this worker, or None where that could not be read
    """

    until: float
    lost: set[str]
    wish: Wish | None


class Leases:
    """The leases of one worker, on all its queues.

    constant  what the reports of the worker say that does not change: told again only where the server has lost it
    """

    def __init__(
        self, link: Link, queues: Sequence[Queue], worker_id: str, constant: Mapping[str, Argument] | None = None
    ) -> None:
        self._link = link
        self._queues = queues
        self._worker_id = worker_id
        self._constant = dict(constant or {})
        self._told = False
        self._settings = queues[0].settings
        self._reconcile_at = 0.0

    @property
    def renew_every_s(self) -> float:
        return self._settings.lease_s / RENEWALS

    def register(self, consumer: str) -> None:
        """A consumer begins. Raises BrokerError."""
        for queue in self._queues:
            queue.register(self._link, consumer)

    def change(self, **constant: Argument) -> None:
        """Something has changed after all: it is told with the next renewal."""
        self._constant |= constant
        self._told = False

    def renew(self, consumers: Sequence[str], report: Mapping[str, Argument]) -> Renewal:
        """Prolong the leases, tell that the worker lives, and see what is wished of it.

        Raises  BrokerError: nothing is known, the old moment stands
        """
        asked_at = time.monotonic()
        calls: list[ScriptCall] = [queue.renew_call(consumers) for queue in self._queues] if consumers else []
        lost: set[str] = set()
        for reply in self._link.run_many(calls):
            if isinstance(reply, Exception):
                raise reply
            lost |= {name.decode() for name in reply}
        wish = self._report(report)
        if asked_at >= self._reconcile_at:
            self._reconcile_at = asked_at + self._settings.lease_s
            self._reconcile()
        return Renewal(asked_at + self._settings.lease_s, lost, wish)

    def _reconcile(self) -> None:
        for queue, reply in zip(
            self._queues, self._link.run_many([queue.reconcile_call() for queue in self._queues]), strict=True
        ):
            if isinstance(reply, Exception):
                raise reply
            for name in reply:
                log.warning(
                    "consumer %s of queue %s has no lease: its messages go to others", name.decode(), queue.name
                )

    def retire(self, retirement: Retirement) -> None:
        """Hand on all that a consumer held. Raises BrokerError; repeating it after that is safe."""
        how = retirement.how or "the worker was stopped"
        record = encode_error(WorkerLost(f"the process died while it ran this call: {how}"))
        result = pack_failure(State.FAILURE, 1, 0.0, record)
        calls = []
        for index, queue in enumerate(self._queues):
            running = [(r.priority, r.entry_id, r.task_id) for r in retirement.running if r.queue == index]
            calls.append(queue.retire_call(retirement.consumer, retirement.how, running, result, LOST_RESULT_TTL_MS))
        for reply in self._link.run_many(calls):
            if isinstance(reply, Exception):
                raise reply

    def leave(self) -> None:
        """The worker ends: it is listed no more. Raises BrokerError."""
        namespace, worker_id = self._settings.namespace, self._worker_id
        self._link.pipeline(
            [
                ("DEL", keys.worker(namespace, worker_id)),
                ("DEL", keys.wish(namespace, worker_id)),
                ("ZREM", keys.workers(namespace), worker_id),
            ]
        )

    def _report(self, report: Mapping[str, Argument]) -> Wish | None:
        namespace = self._settings.namespace
        key, wish = keys.worker(namespace, self._worker_id), keys.wish(namespace, self._worker_id)
        ttl_ms, now_ms = int(self._settings.lease_ms * 1.5), int(time.time() * 1000)
        fields = report if self._told else {**self._constant, **report}
        replies = self._link.pipeline(
            [
                ("HSET", key, *(value for pair in fields.items() for value in pair)),
                ("PEXPIRE", key, ttl_ms),
                # What is wished stays as long as the worker: a number that began anew would seem to be seen already.
                ("PEXPIRE", wish, ttl_ms),
                ("HGETALL", wish),
                ("ZADD", keys.workers(namespace), now_ms, self._worker_id),
                # Those that vanished without a word.
                ("ZREMRANGEBYSCORE", keys.workers(namespace), "-inf", now_ms - 10 * ttl_ms),
                ("PEXPIRE", keys.workers(namespace), 20 * ttl_ms),
            ]
        )
        for reply in replies:
            if isinstance(reply, BrokerUnavailable):
                raise reply
            if isinstance(reply, BrokerError):
                # A full server takes no report, but it has renewed the leases: whoever empties it must go on.
                log.warning("this worker cannot be listed: %s", reply)
                return None
        lost, self._told = self._told and replies[0] > 0, True
        if lost:
            self._told = False
            return self._report(report)
        return unpack_wish(replies[3])
