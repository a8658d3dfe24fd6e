"""`ResultListener` for coroutines: subscribed connections of each event loop, which the loop reads itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any

from rsq.broker.aio import AsyncLink, PerLoop, open_channel
from rsq.broker.channel import AsyncChannel
from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.faults import FAULTS, translated
from rsq.broker.waiting import (
    LAST_LOOK_S,
    RECONNECT_S,
    SILENCE_S,
    Awaited,
    Channels,
    InFlow,
    R,
    Silence,
    Waiting,
    Wanted,
    looking,
)
from rsq.errors import BrokerError, BrokerRefused, BrokerUnavailable


class AsyncResultListener:
    """Waits for results. For any number of event loops."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._loops = PerLoop(lambda: _OfLoop(endpoint, timeout_s))

    async def wait(self, keys: Sequence[str], timeout_s: float | None, place: InFlow | None = None) -> bytes | None:
        """The value at the first of `keys` that has one, or None after `timeout_s`; see `ResultListener.wait`."""
        async with aclosing(self.arrivals([keys], timeout_s, [place])) as arrivals:
            async for _, data in arrivals:
                return data
        return None

    def arrivals(
        self, wanted: Sequence[Sequence[str]], timeout_s: float | None, places: Sequence[InFlow | None] = ()
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Several values, each as soon as it is there, with its number; see `ResultListener.arrivals`."""
        return self.arriving(Wanted(wanted, places), timeout_s)

    def arriving(self, awaited: Awaited[R], timeout_s: float | None) -> AsyncGenerator[R, None]:
        """The same for whatever one waits for."""
        return self._loops.here().arriving(awaited, timeout_s)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self._loops.aclose()

    def close(self) -> None:
        """Drop the connections of all loops. Those who still wait reconnect."""
        self._loops.close()


class _Waiter:
    """One coroutine that waits. `patient`: it has a timeout, and outlasts a server that is away.

    unconfirmed  channels whose subscription has not been answered yet
    """

    __slots__ = ("future", "patient", "unconfirmed", "wanted")

    def __init__(self, wanted: Awaited[Any], patient: bool) -> None:
        self.wanted = wanted
        self.unconfirmed: set[bytes] = set()
        self.patient = patient
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, left_s: float | None) -> None:
        """Until something has come. Raises what ended the waiting."""
        await asyncio.wait([self.future], timeout=left_s)
        if self.future.done():
            future, self.future = self.future, asyncio.get_running_loop().create_future()
            future.result()

    def wake(self, error: Exception | None = None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)
                self.future.exception()  # whoever waited may be gone: nobody is to be told that it was never looked at


class _OfLoop:
    """The subscribed connections of one loop: one, in a cluster one for each shard whose results are waited for."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._link = AsyncLink(endpoint)  # its own: a look that is given up must not end the sends beside it
        self._timeout_s = timeout_s
        self._subscriptions: dict[str | None, _Subscription] = {}

    async def arriving(self, wanted: Awaited[R], timeout_s: float | None) -> AsyncGenerator[R, None]:
        if timeout_s is None or timeout_s > 0:
            deadline = Deadline(float("inf") if timeout_s is None else timeout_s)
            waiter = _Waiter(wanted, patient=timeout_s is not None)
            by_shard = self._endpoint.by_shard(wanted.keys)
            parts = {self._subscription(shard): some for shard, some in by_shard.items()}
            try:
                for subscription, some in parts.items():
                    subscription.join(waiter, some)
                while (wanted or wanted.arrived) and (left_s := deadline.left_s()) > 0:
                    if wanted.arrived:
                        yield wanted.arrived.popleft()
                        if wanted.renews and timeout_s is not None:
                            deadline = Deadline(timeout_s)
                    else:
                        if wanted.behind:
                            next(iter(parts)).look([waiter])
                        await waiter.wait(None if timeout_s is None else left_s)
            finally:
                for subscription, some in parts.items():
                    subscription.leave(waiter, some)
        if wanted:
            limit_s = self._timeout_s if timeout_s is not None and timeout_s <= 0 else min(LAST_LOOK_S, self._timeout_s)
            await self._link.follow(looking([wanted], Deadline(limit_s)))
        while wanted.arrived:
            yield wanted.arrived.popleft()
            if wanted.behind and not wanted.arrived:
                await self._link.follow(looking([wanted], Deadline(self._timeout_s)))

    def _subscription(self, shard: str | None) -> _Subscription:
        found = self._subscriptions.get(shard)
        if found is None:
            made = _Subscription(self._endpoint, shard, self._link, self._timeout_s)
            found = self._subscriptions[shard] = made
        return found

    async def aclose(self) -> None:
        """Drop the connections. Those who still wait are told that nothing will come."""
        for subscription in self._subscriptions.values():
            await subscription.aclose()
        await self._link.aclose()

    def drop(self) -> None:
        self._link.drop()
        for subscription in self._subscriptions.values():
            subscription.drop()

    def abandon(self) -> None:
        self._link.abandon()
        for subscription in self._subscriptions.values():
            subscription.abandon()


class _Subscription:
    """The subscribed connection of one loop and shard. Connected means subscribed for everybody who waits."""

    def __init__(self, endpoint: Endpoint, shard: str | None, link: AsyncLink, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._shard = shard
        self._link = link
        self._timeout_s = timeout_s
        self._waiting: Waiting[_Waiter] = Waiting()
        self._channel: AsyncChannel | None = None
        self._channels = Channels(sharded=False)
        self._silence = Silence()
        self._watch: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unseen: set[_Waiter] = set()  # subscribed, and to look: what came before is pushed to nobody
        self._looking: asyncio.Task[None] | None = None
        self._connected_at = 0.0

    def join(self, waiter: _Waiter, keys: list[bytes]) -> None:
        fresh = self._waiting.join(waiter, keys)
        if self._channel is None:
            self._connect()
        else:
            self._silence_watched()
            if fresh:
                waiter.unconfirmed.update(fresh)
                self._channel.send([self._channels.subscribe(fresh)])
            if len(fresh) < len(keys):
                self.look([waiter])

    def leave(self, waiter: _Waiter, keys: list[bytes]) -> None:
        idle = self._waiting.leave(waiter, keys)
        self._unseen.discard(waiter)
        if idle and self._channel is not None:
            self._channel.send([self._channels.unsubscribe(idle)])

    async def aclose(self) -> None:
        """Drop the connection. Those who still wait are told that nothing will come."""
        self._fail(BrokerUnavailable("the connection was closed while a result was waited for"))
        for task in (self._connecting, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._watch is not None:
            self._watch.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def drop(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def abandon(self) -> None:
        if self._channel is not None:
            self._channel.abandon()
        self._channel = self._connecting = self._looking = self._watch = None

    # -- the connection

    def _connect(self) -> None:
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect_for_all())

    async def _connect_for_all(self) -> None:
        """Try until it succeeds, or until nobody waits any more."""
        away_since = monotonic()
        # A node may be found, and lose its slot, until all know who serves it.
        await asyncio.sleep(max(0.0, self._connected_at + RECONNECT_S - away_since))
        while self._waiting:
            deadline = Deadline(self._timeout_s)
            try:
                channel, _ = await open_channel(self._endpoint, deadline, self._pushed, self._ended, self._shard)
            except (BrokerError, *FAULTS) as error:
                fault = translated(error, self._endpoint.url)
                if isinstance(fault, BrokerRefused):
                    self._fail(fault)
                elif monotonic() - away_since > self._timeout_s:
                    self._fail(fault, patient_too=False)
                await asyncio.sleep(RECONNECT_S)
            except Exception as error:
                self._fail(error)
                raise
            else:
                if channel.fault is not None:
                    continue  # it has ended meanwhile
                self._channel, self._channels = channel, Channels(self._endpoint.sharded)
                self._connected_at = monotonic()
                self._silence.heard()
                self._silence_watched()
                if keys := self._waiting.keys():
                    for key in keys:
                        for waiter in self._waiting.of(key):
                            waiter.unconfirmed.add(key)
                    channel.send([self._channels.subscribe(keys)])
                return

    def _ended(self, channel: AsyncChannel, _: bool) -> None:
        if channel is self._channel:
            self._channel = None
            self._endpoint.broke(None)
            if self._waiting:
                self._connect()

    def _pushed(self, reply: Any) -> None:
        self._silence.heard()
        try:
            kind, key, payload = self._channels.heard(reply)
        except FAULTS as error:
            fault = translated(error, self._endpoint.url)
            if isinstance(fault, BrokerRefused):
                self._fail(fault)
            elif self._channel is not None:
                self._channel.close()  # it is made anew, perhaps to another node
            return
        if kind == b"message":
            self._settle(key, payload)
        elif kind == b"subscribe":
            for waiter in self._waiting.of(key):
                waiter.unconfirmed.discard(key)
                if not waiter.unconfirmed:
                    self.look([waiter])  # once for all of them

    def _silence_watched(self) -> None:
        """A peer that is gone without a word must not keep anybody waiting for what it will never push."""
        if self._watch is None:
            self._silence.heard()
            self._watch = asyncio.get_running_loop().call_later(SILENCE_S, self._listen)

    def _listen(self) -> None:
        self._watch = None
        if self._channel is None or not self._waiting:
            return
        if self._silence.lost:
            self._channel.close()
            return
        if self._silence.asks():
            self._channel.send([self._channels.subscribe(self._waiting.keys()[:1])])
        self._watch = asyncio.get_running_loop().call_later(SILENCE_S, self._listen)

    # -- those who wait

    def look(self, waiters: Iterable[_Waiter]) -> None:
        """Have these see what is there, soon."""
        self._unseen.update(waiters)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_all())

    async def _look_for_all(self) -> None:
        while self._unseen:
            waiters, self._unseen = self._unseen, set()
            try:
                await self._link.follow(looking([each.wanted for each in waiters], Deadline(self._timeout_s)))
            except BrokerUnavailable:
                self._unseen.update(waiters)
                await asyncio.sleep(RECONNECT_S)
            except BrokerError as error:
                self._fail(error)
            else:
                for waiter in waiters:
                    if waiter.wanted.arrived or waiter.wanted.behind or not waiter.wanted:
                        waiter.wake()

    def _settle(self, key: bytes, data: bytes) -> None:
        for waiter in self._waiting.of(key):
            waiter.wanted.came(key, data)
            waiter.wake()

    def _fail(self, error: Exception, patient_too: bool = True) -> None:
        for waiter in self._waiting.all():
            if patient_too or not waiter.patient:
                waiter.wake(error)
