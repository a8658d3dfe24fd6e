"""The ways to send a call, mixed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from rsq import AsyncResult, BrokerUnavailable
from tests.chaos import tasks
from tests.chaos.senders.sender import TRIES, Sender

SHORT_S = (0.0, 0.01, 0.05)
"""How long most bodies run; some that do nothing, so that many are fetched ahead."""

SLOW_S = ((0.2, 0.8), (0.2, 0.8), (0.2, 0.8), (1.0, 5.0))
"""Ranges of the long ones; some outlast a lease."""

LONG_S = 8.0
"""How long a body runs that is to be interrupted: so long that it shows if it was not."""

BIG_BYTES = (200_000, 1_000_000)

Way: TypeAlias = "Callable[[Producer, random.Random], None]"


class Producer:
    """Sends something in one of its ways, drawn by weight.

    without   actors that take no part: ways of the same name are left out
    """

    def __init__(self, sender: Sender, without: Collection[str] = ()) -> None:
        self._sender = sender
        self._ways = {way: weight for way, weight in WAYS.items() if ACTOR_OF.get(way) not in without}

    def act(self, rng: random.Random) -> None:
        (way,) = rng.choices(list(self._ways), weights=list(self._ways.values()))
        way(self, rng)

    def _plain(self, rng: random.Random) -> None:
        self._sender.send(tasks.plain, rng.choice(SHORT_S))

    def _later(self, rng: random.Random) -> None:
        self._sender.send(tasks.plain, countdown=rng.uniform(0.05, 1.5))

    def _urgent(self, rng: random.Random) -> None:
        self._sender.send(tasks.plain, priority=rng.randint(1, 9))

    def _elsewhere(self, rng: random.Random) -> None:
        self._sender.send(tasks.bulk)

    def _quiet(self, rng: random.Random) -> None:
        self._sender.send(tasks.quiet)

    def _recovers(self, rng: random.Random) -> None:
        self._sender.send(tasks.recovers)

    def _fails(self, rng: random.Random) -> None:
        self._sender.send(tasks.fails)

    def _slow(self, rng: random.Random) -> None:
        self._sender.send(tasks.plain, rng.uniform(*rng.choice(SLOW_S)))

    def _once(self, rng: random.Random) -> None:
        self._sender.send(tasks.once, rng.choice((*SHORT_S, 0.3)))

    def _once_again(self, rng: random.Random) -> None:
        self._sender.send(tasks.once_again)

    def _once_quiet(self, rng: random.Random) -> None:
        self._sender.send(tasks.once_quiet)

    def _limited(self, rng: random.Random) -> None:
        self._sender.send(tasks.limited, rng.choice(SHORT_S))

    def _big(self, rng: random.Random) -> None:
        serial = self._sender.number()
        body = tasks.big_body(serial, rng.randint(*BIG_BYTES))
        self._sender.send(tasks.big, body, rng.random() < 0.2, serial=serial)

    def _twice_by_key(self, rng: random.Random) -> None:
        serial = self._sender.number()
        for _ in range(2):
            self._sender.send(tasks.plain, serial=serial, dedupe_key=f"key-{serial}")

    def _twice_by_id(self, rng: random.Random) -> None:
        serial = self._sender.number()
        for _ in range(2):
            self._sender.send(tasks.plain, serial=serial, task_id=f"own-{serial}")

    def _many(self, rng: random.Random) -> None:
        self._sender.send_many(tasks.plain, [(rng.choice(SHORT_S),) for _ in range(rng.randint(20, 60))])

    # -- and to take it back

    def _later_and_revoked(self, rng: random.Random) -> None:
        """Delayed at first; revoked before it is due, or at that moment."""
        due_s = rng.uniform(0.05, 1.0)
        self._send_and_revoke(rng, rng.choice((0.0, rng.uniform(0.0, due_s), due_s)), countdown=due_s)

    def _waiting_and_revoked(self, rng: random.Random) -> None:
        self._send_and_revoke(rng, rng.choice((0.0, 0.005, 0.05)), priority=rng.choice((0, 0, 5)))

    def _running_and_revoked(self, rng: random.Random) -> None:
        self._send_and_revoke(rng, rng.uniform(0.1, 0.8), seconds=LONG_S, terminate=True)

    def _retried_and_revoked(self, rng: random.Random) -> None:
        self._send_and_revoke(rng, rng.uniform(0.0, 0.4), fails=True)

    def _send_and_revoke(
        self,
        rng: random.Random,
        pause_s: float,
        seconds: float = 0.0,
        fails: bool = False,
        terminate: bool | None = None,
        **options: Any,
    ) -> None:
        handle = self._sender.send(tasks.revocable, seconds, fails, **options)
        if handle is None:
            return
        time.sleep(pause_s)
        revoke(self._sender, handle, rng.random() < 0.5 if terminate is None else terminate)


def revoke(sender: Sender, handle: AsyncResult[Any], terminate: bool) -> None:
    """Ask until somebody answers, and tell the journal."""
    began, answer = time.monotonic(), None
    for _ in range(TRIES):
        try:
            answer = tasks.app.revoke(handle.id, terminate=terminate, queue=handle.queue)[handle.id]
            break
        except BrokerUnavailable:
            pass
    sender.journal.write("revoked", at=began, until=time.monotonic(), id=handle.id, terminate=terminate, answer=answer)


WAYS: dict[Way, int] = {
    Producer._plain: 40,
    Producer._later: 10,
    Producer._urgent: 10,
    Producer._elsewhere: 8,
    Producer._quiet: 10,
    Producer._recovers: 5,
    Producer._fails: 3,
    Producer._slow: 2,
    Producer._once: 6,
    Producer._once_again: 3,
    Producer._once_quiet: 3,
    Producer._twice_by_key: 5,
    Producer._twice_by_id: 5,
    Producer._many: 2,
    Producer._big: 1,
    Producer._limited: 4,
    Producer._later_and_revoked: 4,
    Producer._waiting_and_revoked: 3,
    Producer._running_and_revoked: 1,
    Producer._retried_and_revoked: 3,
}

ACTOR_OF: dict[Way, str] = {
    Producer._once: "early",
    Producer._once_again: "early",
    Producer._once_quiet: "early",
    Producer._big: "big",
}
"""Ways that can be left out, by the actor that they belong to."""
