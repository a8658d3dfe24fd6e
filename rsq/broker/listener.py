"""Reading results, and waiting for them: pushed by pub/sub, one connection a process, however many wait.

There is no thread behind it. Of those who wait, one reads the connection for all (the leader); when its own result is
there, it hands the reading over to another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rsq.broker.connection import Endpoint, Link, LinkPool, translated
from rsq.broker.wire import packed
from rsq.errors import BrokerError, BrokerUnavailable

RECONNECT_S = 0.2
"""Pause between two tries to reach a server that is away."""

LONGEST_READ_S = 1.0
"""A leader looks up after this long even when nothing came, so that a silent peer cannot hold everybody."""


SILENCE_S = 3
"""After so long without a word the server is asked for one; after as long again the connection is made anew."""


class _Waiter:
    """One caller that waits for the first of its keys; more than one where the call's queue is not known."""

    __slots__ = ("data", "keys", "recheck", "wakeup")

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = keys
        self.data: bytes | None = None
        self.recheck = False
        self.wakeup = threading.Event()


class ResultListener:
    """Waits for results on one subscribed connection."""

    def __init__(self, endpoint: Endpoint, pool: LinkPool) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._link = Link(self._endpoint, self._pool.timeout_s)
        self._waiters: dict[bytes, list[_Waiter]] = {}
        self._state = threading.Lock()  # guards _waiters and what is sent
        self._leader = threading.Lock()  # held by whoever reads
        self._silent_s = 0.0  # read without a word

    def wait(self, keys: Sequence[str], timeout_s: float | None) -> bytes | None:
        """The value at the first of `keys` that has one, as soon as it is there, or None after `timeout_s`.

        Subscribes before it looks, so nothing falls between. Raises BrokerUnavailable when the server could not be
        reached at the end of the timeout, or, without a timeout, for `broker_timeout_s` on end.
        """
        if self._pid != os.getpid():
            self._reset()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiter = _Waiter([key.encode() for key in keys])
        try:
            return self._wait(waiter, deadline)
        finally:
            self._leave(waiter)

    def _wait(self, waiter: _Waiter, deadline: float | None) -> bytes | None:
        away_since: float | None = None
        joined = False
        while True:
            try:
                if not joined:
                    self._join(waiter, deadline)
                    joined = True
                if waiter.recheck:
                    waiter.recheck = False
                    found = self._look(waiter, self._patience(deadline))
                    if found is not None:
                        return found
                left = LONGEST_READ_S if deadline is None else min(LONGEST_READ_S, deadline - time.monotonic())
                if waiter.data is not None:
                    return waiter.data
                if left <= 0:
                    return None
                self._read_or_follow(waiter, left)
                away_since = None
            except BrokerUnavailable:
                now = time.monotonic()
                away_since = away_since or now
                if (deadline is not None and now >= deadline) or (
                    deadline is None and now - away_since > self._pool.timeout_s
                ):
                    raise
                waiter.recheck = True
                waiter.wakeup.wait(RECONNECT_S)

    def _patience(self, deadline: float | None) -> float:
        """How long one look may take: a silent server must not outlast the caller's deadline."""
        if deadline is None:
            return self._pool.timeout_s
        return min(self._pool.timeout_s, max(0.001, deadline - time.monotonic()))

    def _look(self, waiter: _Waiter, patience_s: float) -> bytes | None:
        link = self._pool.take()
        # A handshake has the link's own timeout: where that is too long, this look gets a connection of its own.
        mine = link if link.connected or patience_s >= link.timeout_s else Link(self._endpoint, patience_s)
        try:
            replies = mine.pipeline_packed([packed("GET", key) for key in waiter.keys], patience_s)
        finally:
            if mine is not link:
                mine.close()
            self._pool.give_back(link)
        return first_value(replies)

    def _join(self, waiter: _Waiter, deadline: float | None) -> None:
        with self._state:
            fresh = [key for key in waiter.keys if key not in self._waiters]
            for key in waiter.keys:
                others = self._waiters.setdefault(key, [])
                if waiter not in others:
                    others.append(waiter)
            if not self._link.connected:
                self._link.timeout_s = self._patience(deadline)
                self._subscribe_all()
            elif fresh:
                self._send("SUBSCRIBE", *fresh)
            else:
                # The channel is subscribed already, or about to be: look at once, and the push comes to all.
                waiter.recheck = True

    def _leave(self, waiter: _Waiter) -> None:
        with self._state:
            idle = []
            for key in waiter.keys:
                others = self._waiters.get(key, [])
                if waiter in others:
                    others.remove(waiter)
                    if not others:
                        del self._waiters[key]
                        idle.append(key)
            if idle and self._link.connected:
                try:
                    self._send("UNSUBSCRIBE", *idle)
                except BrokerUnavailable:
                    pass  # nothing is subscribed any more
            self._call_a_follower()

    def _call_a_follower(self) -> None:
        """Whoever stops reading wakes another one, or nobody would read."""
        for waiters in self._waiters.values():
            waiters[0].wakeup.set()
            return

    def _read_or_follow(self, waiter: _Waiter, left: float) -> None:
        if not self._leader.acquire(blocking=False):
            waiter.wakeup.wait(left)
            waiter.wakeup.clear()
            return
        try:
            if waiter.data is None and not waiter.recheck:
                self._read(left)
        finally:
            self._leader.release()

    def _read(self, left: float) -> None:
        try:
            reply = self._link.connection().read_response(
                disable_decoding=True, timeout=left, disconnect_on_error=False
            )
        except RedisTimeoutError:
            self._hear_nothing(left)
            return
        except (RedisError, OSError) as error:
            self._reconnect()
            raise translated(error, self._endpoint.url) from None
        self._silent_s = 0.0
        self._dispatch(reply)

    def _hear_nothing(self, seconds: float) -> None:
        """A peer that is gone without a word must not keep anybody waiting for what it will never push."""
        before, self._silent_s = self._silent_s, self._silent_s + seconds
        if self._silent_s >= 2 * SILENCE_S:
            self._reconnect()
        elif before < SILENCE_S <= self._silent_s:
            with self._state:
                # Any subscription is answered, also one that stands already.
                if waited_for := next(iter(self._waiters), None):
                    self._send("SUBSCRIBE", waited_for)

    def _dispatch(self, reply: Any) -> None:
        kind, channel, payload = reply
        with self._state:
            for waiter in self._waiters.get(channel, ()):
                if kind == b"message":
                    waiter.data = payload
                elif kind == b"subscribe":
                    waiter.recheck = True
                waiter.wakeup.set()

    def _reconnect(self) -> None:
        with self._state:
            self._link.close()
            if self._waiters:
                self._subscribe_all()

    def _subscribe_all(self) -> None:
        """On a new connection. Everybody looks again, since messages may have been missed."""
        self._silent_s = 0.0
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.recheck = True
                waiter.wakeup.set()
        self._send("SUBSCRIBE", *self._waiters)

    def _send(self, *command: bytes | str) -> None:
        try:
            self._link.connection().send_command(*command, check_health=False)
        except (RedisError, OSError) as error:
            self._link.close()
            raise translated(error, self._endpoint.url) from None

    def close(self) -> None:
        """Drop the connection. Those who still wait reconnect."""
        self._link.close()


def first_value(replies: Sequence[Any]) -> bytes | None:
    """The first of several values that is there, or None. Raises the BrokerError that stands among them."""
    for reply in replies:
        if isinstance(reply, BrokerError):
            raise reply
        if reply is not None:
            return bytes(reply)
    return None
