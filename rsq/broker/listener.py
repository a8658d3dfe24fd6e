"""Reading results, and waiting for them: pushed by pub/sub, one connection a process and server, however many wait."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.forks import renew_in_child
from rsq.broker.pool import LinkPool
from rsq.broker.subscription import Subscription, Waiter
from rsq.broker.waiting import LAST_LOOK_S, RECONNECT_S, Awaited, InFlow, R, Wanted, looking
from rsq.errors import BrokerUnavailable

LONGEST_READ_S = 1.0
"""A leader looks up after this long even when nothing came, so that a silent peer cannot hold everybody."""

TURN_S = 0.05
"""The same for one who reads several connections, in turn."""


class ResultListener:
    """Waits for results on subscribed connections: one, in a cluster one for each shard with such results."""

    def __init__(self, endpoint: Endpoint, pool: LinkPool) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._subscriptions: dict[str | None, Subscription] = {}

    def wait(self, keys: Sequence[str], timeout_s: float | None, place: InFlow | None = None) -> bytes | None:
        """The value at the first of `keys` that has one, or at `place`, as soon as it is there; None after `timeout_s`.

        Raises as `arrivals`.
        """
        with closing(self.arrivals([keys], timeout_s, [place])) as arrivals:
            return next((data for _, data in arrivals), None)

    def arrivals(
        self, wanted: Sequence[Sequence[str]], timeout_s: float | None, places: Sequence[InFlow | None] = ()
    ) -> Generator[tuple[int, bytes], None, None]:
        """Several values, each as soon as it is there, with its number in `wanted`; ends after `timeout_s`.

        Subscribes before it looks, so nothing falls between, and looks once more at the end. Raises BrokerUnavailable
        when the server could not be reached at the end of the timeout, or, without a timeout, for `broker_timeout_s`
        on end; BrokerRefused.

        wanted  for each value the keys at one of which it will be
        places  for each value where else it may be found, or None
        """
        return self.arriving(Wanted(wanted, places), timeout_s)

    def arriving(self, awaited: Awaited[R], timeout_s: float | None) -> Generator[R, None, None]:
        """The same for whatever one waits for."""
        waiter = Waiter(awaited)
        arrived = awaited.arrived
        if timeout_s is not None and timeout_s <= 0:
            yield from self._last_look(waiter, self._pool.timeout_s)
            return
        deadline = Deadline(float("inf") if timeout_s is None else timeout_s)
        by_shard = self._endpoint.by_shard(waiter.wanted.keys)
        parts = {self._subscription(shard): some for shard, some in by_shard.items()}
        read_s = LONGEST_READ_S if len(parts) == 1 else TURN_S
        try:
            for subscription, some in parts.items():
                subscription.join(waiter, some)
            while waiter.wanted and (left_s := deadline.left_s()) > 0:
                if arrived:
                    for subscription in parts:
                        subscription.rest(waiter)
                    yield arrived.popleft()
                    if awaited.renews and timeout_s is not None:
                        deadline = Deadline(timeout_s)
                elif waiter.unseen or awaited.behind:
                    waiter.unseen = False
                    self._first_look(waiter, deadline)
                else:
                    leads = False
                    for subscription in parts:
                        if subscription.leads(waiter):
                            leads = True
                            subscription.read(min(read_s, left_s), deadline, waiter)
                    if not leads:
                        waiter.wakeup.wait(min(LONGEST_READ_S, left_s))
                if timeout_s is None:
                    for subscription in parts:
                        subscription.give_up_in_time()
        finally:
            for subscription, some in parts.items():
                subscription.leave(waiter, some)
        if awaited:
            yield from self._last_look(waiter, min(LAST_LOOK_S, self._pool.timeout_s))
        yield from arrived

    def close(self) -> None:
        """Drop the connections. Those who still wait reconnect."""
        for subscription in list(self._subscriptions.values()):
            subscription.close()

    def _subscription(self, shard: str | None) -> Subscription:
        found = self._subscriptions.get(shard)
        if found is None:
            made = Subscription(self._endpoint, shard, self._pool.timeout_s)
            found = self._subscriptions.setdefault(shard, made)
        return found

    def _first_look(self, waiter: Waiter, deadline: Deadline) -> None:
        try:
            self._look(waiter, deadline.within(self._pool.timeout_s))
        except BrokerUnavailable:
            waiter.unseen = True
            waiter.wakeup.wait(min(RECONNECT_S, max(0.0, deadline.left_s())))

    def _last_look(self, waiter: Waiter, limit_s: float) -> Generator[Any, None, None]:
        self._look(waiter, Deadline(limit_s))
        while waiter.wanted.arrived:
            yield waiter.wanted.arrived.popleft()
            if waiter.wanted.behind and not waiter.wanted.arrived:
                self._look(waiter, Deadline(limit_s))

    def _look(self, waiter: Waiter, deadline: Deadline) -> None:
        link = self._pool.take()
        try:
            link.follow(looking([waiter.wanted], deadline))
        finally:
            self._pool.give_back(link)
