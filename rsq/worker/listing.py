"""How a worker is listed: what it tells of itself stands in Redis while it lives, beside what is wished of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rsq import keys
from rsq.broker.exchange import Exchange
from rsq.broker.faults import checked
from rsq.broker.wire import Argument, Command, packed
from rsq.broker.worker_wishes import Wish, unpack_wish
from rsq.errors import BrokerError
from rsq.settings import Settings


class Listing:
    """Of one worker.

    partitions  of the queues that it makes known; where there is one alone, that is not written
    constant    what its reports say that does not change: told again only where the server has lost it
    """

    def __init__(
        self,
        settings: Settings,
        worker_id: str,
        partitions: Mapping[str, int],
        constant: Mapping[str, Argument] | None = None,
    ) -> None:
        namespace = settings.namespace
        self._worker_id = worker_id
        self._key, self._wish = keys.worker(namespace, worker_id), keys.wish(namespace, worker_id)
        self._everyone = keys.workers(namespace)
        self._introduction: list[Command] = [("SADD", keys.queues(namespace), *partitions)]
        if any(partitions.values()):
            # As long as somebody reads there, nobody who asks after a flush is told anything else.
            where = keys.partitions(namespace)
            self._introduction += [("HSETNX", where, name, number) for name, number in partitions.items()]
        self._constant = dict(constant or {})
        self._whole_every_s, self._ttl_ms = settings.lease_s, int(settings.lease_ms * 1.5)
        self._whole_at = 0.0
        self._knows_constant = False
        self._told: Mapping[str, Argument] = {}

    def change(self, **constant: Argument) -> None:
        """Something has changed that does not change otherwise: it is told with the next report."""
        self._constant |= constant
        self._forgotten()

    def telling(self, report: Mapping[str, Argument]) -> Exchange[Wish]:
        """Tell that the worker lives, and what it does; gives what is wished of it. Raises BrokerError."""
        now = time.monotonic()
        again = dict(report) == self._told and now < self._whole_at
        try:
            replies = yield from _checked(self._again() if again else self._whole(report))
            new_fields, kept = 0 if again else replies[0], replies[-2]
            if not kept or (self._knows_constant and new_fields):
                # It has vanished meanwhile, as with a flush: all is written anew.
                self._forgotten()
                again, replies = False, (yield from _checked(self._whole(report)))
        except BrokerError:
            self._forgotten()
            raise
        if not again:
            self._whole_at = now + self._whole_every_s
        self._knows_constant, self._told = True, dict(report)
        return unpack_wish(replies[-1])

    def leaving(self) -> Exchange[None]:
        """The worker ends: it is listed no more. Raises BrokerError."""
        yield from _checked([("DEL", self._key), ("DEL", self._wish), ("ZREM", self._everyone, self._worker_id)])

    def _whole(self, report: Mapping[str, Argument]) -> list[Command]:
        """Say what this worker is and does."""
        fields = report if self._knows_constant else {**self._constant, **report}
        now_ms = int(time.time() * 1000)
        return [
            ("HSET", self._key, *(value for pair in fields.items() for value in pair)),
            ("ZADD", self._everyone, now_ms, self._worker_id),
            # Those that vanished without a word.
            ("ZREMRANGEBYSCORE", self._everyone, "-inf", now_ms - 10 * self._ttl_ms),
            ("PEXPIRE", self._everyone, 20 * self._ttl_ms),
            *([] if self._knows_constant else self._introduction),
            *self._keep(),
        ]

    def _again(self) -> list[Command]:
        """Say that it lives, and is and does what was told."""
        return [("ZADD", self._everyone, "XX", int(time.time() * 1000), self._worker_id), *self._keep()]

    def _keep(self) -> list[Command]:
        return [
            # What is wished stays as long as the worker: a number that began anew would seem to be seen already.
            ("PEXPIRE", self._wish, self._ttl_ms),
            ("PEXPIRE", self._key, self._ttl_ms),
            ("HGETALL", self._wish),
        ]

    def _forgotten(self) -> None:
        self._knows_constant, self._told = False, {}


def _checked(commands: Sequence[Command]) -> Exchange[list[Any]]:
    return checked((yield [packed(*command) for command in commands], None))
