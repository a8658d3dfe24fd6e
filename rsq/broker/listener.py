"""Reading results, and waiting for them: pushed by pub/sub, one connection a process, however many wait.

There is no thread behind it. Of those who wait, one reads the connection for all (the leader); when its own result is
there, it hands the reading over to another.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Any

from rsq.broker.channel import Channel
from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.faults import FAULTS, Refusal, translated
from rsq.broker.forks import renew_in_child
from rsq.broker.pool import LinkPool
from rsq.broker.waiting import LAST_LOOK_S, RECONNECT_S, Silence, Waiting, looking
from rsq.broker.wire import packed_texts
from rsq.errors import BrokerError, BrokerRefused, BrokerUnavailable

LONGEST_READ_S = 1.0
"""A leader looks up after this long even when nothing came, so that a silent peer cannot hold everybody."""


class _Waiter:
    """One caller that waits for the first of its keys."""

    __slots__ = ("data", "keys", "unseen", "wakeup")

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = keys
        self.data: bytes | None = None
        self.unseen = False  # what came before its channel was subscribed is to be looked for
        self.wakeup = threading.Event()


class ResultListener:
    """Waits for results on one subscribed connection. Connected means subscribed for everybody who waits."""

    def __init__(self, endpoint: Endpoint, pool: LinkPool) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._waiting: Waiting[_Waiter] = Waiting()
        self._lock = threading.Lock()  # guards all of these, and what is sent
        self._leader: _Waiter | None = None
        self._channel: Channel | None = None
        self._silence = Silence()
        self._fault: BrokerError | None = None  # of the last try to connect, since when it has failed
        self._away_since = 0.0

    def wait(self, keys: Sequence[str], timeout_s: float | None) -> bytes | None:
        """The value at the first of `keys` that has one, as soon as it is there, or None after `timeout_s`.

        Subscribes before it looks, so nothing falls between, and looks once more at the end. Raises BrokerUnavailable
        when the server could not be reached at the end of the timeout, or, without a timeout, for `broker_timeout_s`
        on end; BrokerRefused.
        """
        waiter = _Waiter([key.encode() for key in keys])
        if timeout_s is not None and timeout_s <= 0:
            return self._look(waiter, Deadline(self._pool.timeout_s))
        deadline = Deadline(float("inf") if timeout_s is None else timeout_s)
        try:
            self._join(waiter)
            while waiter.data is None and (left_s := deadline.left_s()) > 0:
                if waiter.unseen:
                    waiter.unseen = False
                    waiter.data = self._first_look(waiter, deadline)
                elif self._leads(waiter):
                    self._read(min(LONGEST_READ_S, left_s), deadline, waiter)
                else:
                    waiter.wakeup.wait(min(LONGEST_READ_S, left_s))
                    waiter.wakeup.clear()
                if timeout_s is None:
                    self._give_up_in_time()
        finally:
            self._leave(waiter)
        if waiter.data is None:
            return self._look(waiter, Deadline(min(LAST_LOOK_S, self._pool.timeout_s)))
        return waiter.data

    def close(self) -> None:
        """Drop the connection. Those who still wait reconnect."""
        with self._lock:
            self._drop()

    # -- those who wait

    def _join(self, waiter: _Waiter) -> None:
        with self._lock:
            fresh = self._waiting.join(waiter, waiter.keys)
            # Of a channel that is subscribed the push comes to all; what came before is found by looking.
            waiter.unseen = not fresh
            if fresh:
                self._send("SUBSCRIBE", fresh)

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            idle = self._waiting.leave(waiter, waiter.keys)
            if idle:
                self._send("UNSUBSCRIBE", idle)
            if not self._waiting:
                self._fault = None  # nobody tries any more
            if self._leader is waiter:
                self._leader = None
            if self._leader is None:
                # Whoever stops reading wakes another one, or nobody would read.
                for each in self._waiting.all():
                    each.wakeup.set()
                    break

    def _leads(self, waiter: _Waiter) -> bool:
        with self._lock:
            if self._leader is None:
                self._leader = waiter
            return self._leader is waiter

    def _first_look(self, waiter: _Waiter, deadline: Deadline) -> bytes | None:
        try:
            return self._look(waiter, deadline.within(self._pool.timeout_s))
        except BrokerUnavailable:
            waiter.unseen = True
            waiter.wakeup.wait(min(RECONNECT_S, max(0.0, deadline.left_s())))
            return None

    def _look(self, waiter: _Waiter, deadline: Deadline) -> bytes | None:
        link = self._pool.take()
        try:
            return link.follow(looking(waiter.keys, deadline))
        finally:
            self._pool.give_back(link)

    def _give_up_in_time(self) -> None:
        with self._lock:
            fault, away_s = self._fault, monotonic() - self._away_since
        if fault is not None and away_s > self._pool.timeout_s:
            raise fault

    # -- the leader

    def _read(self, seconds: float, deadline: Deadline, waiter: _Waiter) -> None:
        try:
            channel = self._channel
            if channel is None:
                self._connect(deadline.within(self._pool.timeout_s))
                return
            reply = channel.push(seconds, self._lock)
            with self._lock:
                if reply is not None:
                    self._dispatch(reply)
                elif self._silence.lost:
                    self._drop()
                elif self._silence.asks():
                    self._send("SUBSCRIBE", self._waiting.keys()[:1])
        except (BrokerError, *FAULTS) as error:
            fault = translated(error, self._endpoint.url)
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
        channel, _ = self._endpoint.open(deadline)
        with self._lock:
            try:
                channel.send(packed_texts("SUBSCRIBE", *self._waiting.keys()), deadline)
            except BaseException:
                channel.close()
                raise
            self._channel, self._fault = channel, None
            self._silence.heard()

    def _dispatch(self, reply: Any) -> None:
        self._silence.heard()
        if isinstance(reply, Refusal):
            raise reply
        kind, channel, payload = reply
        for waiter in self._waiting.of(channel):
            if kind == b"message":
                waiter.data = payload
            elif kind == b"subscribe":
                waiter.unseen = True
            waiter.wakeup.set()

    def _send(self, command: str, keys: list[bytes]) -> None:
        """Where there is no connection, or it breaks now, the leader connects, for all."""
        if self._channel is not None:
            try:
                self._channel.send(packed_texts(command, *keys), Deadline(self._pool.timeout_s))
            except FAULTS:
                self._drop()

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
