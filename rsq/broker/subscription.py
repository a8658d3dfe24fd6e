"""One subscribed connection for all threads that wait for results of one server, or of one shard of a cluster.

There is no thread behind it. Of those who wait, one reads the connection for all (the leader); when its own result is
there, it hands the reading over to another.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Any

from rsq.bell import Bell
from rsq.broker.channel import Channel
from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.faults import FAULTS, translated
from rsq.broker.waiting import RECONNECT_S, Awaited, Channels, Silence, Waiting
from rsq.errors import BrokerError, BrokerRefused


class Waiter:
    """One caller that waits.

    unconfirmed  channels whose subscription has not been answered yet
    unseen       what came before its channels were subscribed is to be looked for
    """

    __slots__ = ("unconfirmed", "unseen", "wakeup", "wanted")

    def __init__(self, wanted: Awaited[Any]) -> None:
        self.wanted = wanted
        self.unconfirmed: set[bytes] = set()
        self.unseen = False
        self.wakeup = Bell()


class Subscription:
    """For any number of threads. Connected means subscribed for everybody who waits.

    shard      whose connection it is; see `Endpoint.by_shard`
    timeout_s  for a try to connect, and without a word from the server, after which nobody waits without a timeout
    """

    def __init__(self, endpoint: Endpoint, shard: str | None, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._shard = shard
        self._timeout_s = timeout_s
        self._waiting: Waiting[Waiter] = Waiting()
        self._lock = threading.Lock()  # guards all of these, and what is sent
        self._leader: Waiter | None = None
        self._channel: Channel | None = None
        self._channels = Channels(sharded=False)
        self._silence = Silence()
        self._fault: BrokerError | None = None  # of the last try to connect, since when it has failed
        self._away_since = 0.0

    def close(self) -> None:
        """Drop the connection. Those who still wait reconnect."""
        with self._lock:
            self._drop()

    # -- those who wait

    def join(self, waiter: Waiter, keys: Sequence[bytes]) -> None:
        with self._lock:
            fresh = self._waiting.join(waiter, keys)
            # Of a channel that is subscribed the push comes to all; what came before is found by looking.
            waiter.unseen = waiter.unseen or len(fresh) < len(keys)
            waiter.unconfirmed.update(fresh)
            if fresh and self._channel is not None:
                self._send(self._channels.subscribe(fresh))

    def leave(self, waiter: Waiter, keys: Sequence[bytes]) -> None:
        with self._lock:
            idle = self._waiting.leave(waiter, keys)
            if idle and self._channel is not None:
                self._send(self._channels.unsubscribe(idle))
            if not self._waiting:
                self._fault = None  # nobody tries any more
            self._hand_over(waiter)

    def rest(self, waiter: Waiter) -> None:
        """Let another one read, while this one sees to what has come."""
        with self._lock:
            self._hand_over(waiter)

    def _hand_over(self, waiter: Waiter) -> None:
        if self._leader is waiter:
            self._leader = None
        if self._leader is None:
            # Whoever stops reading wakes another one, or nobody would read.
            heir = self._waiting.another(waiter)
            if heir is not None:
                heir.wakeup.set()

    def leads(self, waiter: Waiter) -> bool:
        """Whether this one is to read, for all."""
        with self._lock:
            if self._leader is None:
                self._leader = waiter
            return self._leader is waiter

    def give_up_in_time(self) -> None:
        """Raises BrokerUnavailable when the server has been away for too long."""
        with self._lock:
            fault, away_s = self._fault, monotonic() - self._away_since
        if fault is not None and away_s > self._timeout_s:
            raise fault

    # -- the leader

    def read(self, seconds: float, deadline: Deadline, waiter: Waiter) -> None:
        """Connect, or read what comes within so many seconds. Raises BrokerRefused."""
        try:
            channel = self._channel
            if channel is None:
                self._connect(deadline.within(self._timeout_s))
                return
            replies = channel.pushes(seconds, self._lock)
            with self._lock:
                if replies:
                    self._dispatch(replies)
                elif self._silence.lost:
                    self._drop()
                elif self._silence.asks():
                    self._send(self._channels.subscribe(self._waiting.keys()[:1]))
        except (BrokerError, *FAULTS) as error:
            fault = translated(error, self._endpoint.url)
            self._endpoint.broke(None)
            with self._lock:
                self._drop()
                if self._fault is None:
                    self._away_since = monotonic()
                self._fault = fault
            if isinstance(fault, BrokerRefused):
                raise fault from None
            waiter.wakeup.wait(min(RECONNECT_S, max(0.0, deadline.left_s())))

    def _connect(self, deadline: Deadline) -> None:
        """Make the connection, subscribed for everybody. All look again, since a push may have been missed."""
        channel, _ = self._endpoint.open(deadline, self._shard)
        channels = Channels(self._endpoint.sharded)
        with self._lock:
            try:
                keys = self._waiting.keys()
                for key in keys:
                    for waiter in self._waiting.of(key):
                        waiter.unconfirmed.add(key)
                channel.send(channels.subscribe(keys), deadline)
            except BaseException:
                channel.close()
                raise
            self._channel, self._channels, self._fault = channel, channels, None
            self._silence.heard()

    def _dispatch(self, replies: Sequence[Any]) -> None:
        self._silence.heard()
        for kind, channel, payload in map(self._channels.heard, replies):
            for waiter in self._waiting.of(channel):
                if kind == b"message":
                    waiter.wanted.came(channel, payload)
                elif kind == b"subscribe":
                    waiter.unconfirmed.discard(channel)
                    if waiter.unconfirmed:
                        continue  # one look for all of them
                    waiter.unseen = True
                if waiter is not self._leader:
                    waiter.wakeup.set()

    def _send(self, request: bytes) -> None:
        """Where it breaks now, the leader connects, for all."""
        if self._channel is not None:
            try:
                self._channel.send(request, self._timeout_s)
            except FAULTS:
                self._drop()

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
