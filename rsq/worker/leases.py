"""Keeps the leases of a worker's consumers, hands on what the dead held, and reports that the worker lives.

Used by the supervisor, and by a thread of a solo worker. Runs no user code, so however long a task holds the GIL of its
child, the lease goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsq import keys
from rsq.broker.connection import Link, ScriptCall
from rsq.broker.rows import CutShort
from rsq.broker.wire import Argument, Command, packed
from rsq.broker.worker_queue import LOST_TTL_MS, WorkerQueue
from rsq.broker.worker_wishes import Wish, unpack_wish
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
    """

    consumer: str
    how: str
    running: Sequence[Running] = field(default_factory=tuple)
    overdue: Sequence[Running] = field(default_factory=tuple)


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
        self, link: Link, queues: Sequence[WorkerQueue], worker_id: str, constant: Mapping[str, Argument] | None = None
    ) -> None:
        self._link = link
        self._queues = queues
        self._worker_id = worker_id
        self._constant = dict(constant or {})
        self._settings = queues[0].settings
        self._knows_constant = False
        self._told: Mapping[str, Argument] = {}
        self._look_at = 0.0
        self._refused: set[str] = set()
        self._unlisted: set[str] = set()

    @property
    def renew_every_s(self) -> float:
        return self._settings.lease_s / RENEWALS

    def register(self, consumer: str) -> float:
        """A consumer begins. Gives the moment until which its leases hold, see `Renewal`. Raises BrokerError."""
        asked_at = time.monotonic()
        for queue in self._queues:
            queue.register(self._link, consumer)
        return asked_at + self._settings.lease_s

    def change(self, **constant: Argument) -> None:
        """Something has changed after all: it is told with the next renewal."""
        self._constant |= constant
        self._forgotten()

    def renew(self, consumers: Sequence[str], report: Mapping[str, Argument]) -> Renewal:
        """Prolong the leases, tell that the worker lives, and see what is wished of it.

        Raises  BrokerError: nothing is known, the old moment stands
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
        again = dict(report) == self._told and not looks
        tell = self._tell_again() if again else self._tell(report)
        replies = self._link.run_many(calls, [packed(*command) for command in tell])
        self._note_refusals(replies[:renewals])
        wish = self._heard(report, again, replies[len(calls) :], bool(renewals))
        if looks:
            self._look_at = asked_at + self._settings.lease_s
            self._warn(replies[renewals:looked])
        lost = {name.decode() for reply in replies[:renewals] if not isinstance(reply, Exception) for name in reply}
        return Renewal(asked_at + self._settings.lease_s, lost, wish)

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
        for index, queue in enumerate(self._queues):
            if only and queue.name not in only:
                continue
            names.append(queue.name)
            running = [each for number, each in ended if number == index]
            calls.append(queue.retire_call(retirement.consumer, retirement.how, LOST_TTL_MS, running))
        try:
            replies = self._link.run_many(calls)
        except BrokerError as error:
            return dict.fromkeys(names, error)
        return {name: reply for name, reply in zip(names, replies, strict=True) if isinstance(reply, BrokerError)}

    def leave(self) -> None:
        """The worker ends: it is listed no more. Raises BrokerError."""
        key, wish, everyone = self._keys
        self._link.pipeline([("DEL", key), ("DEL", wish), ("ZREM", everyone, self._worker_id)])

    # -- what the worker tells, and what is wished of it

    @property
    def _keys(self) -> tuple[str, str, str]:
        """Where this worker is described, where wishes stand, and where all workers are listed."""
        namespace = self._settings.namespace
        return keys.worker(namespace, self._worker_id), keys.wish(namespace, self._worker_id), keys.workers(namespace)

    def _tell(self, report: Mapping[str, Argument]) -> list[Command]:
        """Say what this worker is and does."""
        key, _, everyone = self._keys
        fields = report if self._knows_constant else {**self._constant, **report}
        ttl_ms, now_ms = self._report_ttl_ms, int(time.time() * 1000)
        return [
            ("HSET", key, *(value for pair in fields.items() for value in pair)),
            ("ZADD", everyone, now_ms, self._worker_id),
            # Those that vanished without a word.
            ("ZREMRANGEBYSCORE", everyone, "-inf", now_ms - 10 * ttl_ms),
            ("PEXPIRE", everyone, 20 * ttl_ms),
            *self._keep(),
        ]

    def _tell_again(self) -> list[Command]:
        """Say that it lives, and is and does what was told."""
        return [("ZADD", self._keys[2], "XX", int(time.time() * 1000), self._worker_id), *self._keep()]

    def _keep(self) -> list[Command]:
        key, wish, _ = self._keys
        return [
            # What is wished stays as long as the worker: a number that began anew would seem to be seen already.
            ("PEXPIRE", wish, self._report_ttl_ms),
            ("PEXPIRE", key, self._report_ttl_ms),
            ("HGETALL", wish),
        ]

    @property
    def _report_ttl_ms(self) -> int:
        return int(self._settings.lease_ms * 1.5)

    def _heard(self, report: Mapping[str, Argument], again: bool, replies: Sequence[Any], renewed: bool) -> Wish | None:
        """Take in the replies to what was told, or told again."""
        for reply in replies:
            if isinstance(reply, BrokerUnavailable) and not renewed:
                raise reply
            if isinstance(reply, BrokerError):
                # A full server takes no report, but it has renewed the leases: whoever empties it must go on. So must
                # a worker while the node of the cluster is away that knows the workers.
                if str(reply) not in self._unlisted:
                    log.warning("this worker cannot be listed: %s", reply)
                    self._unlisted.add(str(reply))
                self._forgotten()
                return None
        new_fields, kept = 0 if again else replies[0], replies[-2]
        if not kept or (self._knows_constant and new_fields):
            # It has vanished meanwhile, as with a flush: all is written anew.
            self._forgotten()
            return self._heard(report, False, self._link.pipeline(self._tell(report)), renewed)
        if self._unlisted:
            log.info("this worker is listed again")
            self._unlisted.clear()
        self._knows_constant, self._told = True, dict(report)
        return unpack_wish(replies[-1])

    def _forgotten(self) -> None:
        self._knows_constant, self._told = False, {}


def _cut_short(running: Running, limit_s: float | None, error: Exception) -> CutShort:
    result = pack_failure(State.FAILURE, 1, limit_s or 0.0, encode_error(error))
    limit = "" if limit_s is None else f"{limit_s:g}"
    return CutShort(running.priority, running.entry_id, running.task_id, int(running.taken), limit, result)
