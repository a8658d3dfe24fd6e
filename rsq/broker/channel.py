"""An open connection: packed requests out, replies in, each wait bounded by a deadline.

The client library opens the socket; from then on rsq sends and reads on it itself. Its own way of reading bounds each
piece that comes, so that a slow line outlasts every deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, cast

from hiredis import Reader
from redis.connection import AbstractConnection

from rsq.broker.deadline import Deadline
from rsq.broker.faults import CLOSED, SILENT, TURNED_AWAY, Refusal
from rsq.broker.forks import renew_in_child

TICK_S = 1.5
"""Timeout that sockets have. It is only changed where less than that is left: setting it is a call to the system. More
than an idle worker's read takes, which the server ends up to 0.1 s late."""

AT_ONCE = 65536

OnLate = tuple[float, Callable[[], None]]
"""Seconds, and what is called when there is no reply by then; the wait goes on after it."""


class Channel:
    """For one thread at a time. Raises OSError, or what hiredis raises: then it is good for nothing any more."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection  # closes the socket when it is dropped
        self.socket = cast("socket.socket", connection._sock)  # the library has no other way to hand it over
        self._tls = self.socket if isinstance(self.socket, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)
        self._timeout_s = TICK_S
        self.socket.settimeout(TICK_S)
        self._reader = Reader(replyError=Refusal)
        self._buffer = bytearray(AT_ONCE)
        renew_in_child(self)

    def after_fork(self) -> None:
        """The server is to see the end of the connection when its owner ends, however long a fork of it lives."""
        self.socket.close()  # the copy alone: nothing is shut down

    def ask(self, requests: Sequence[bytes], deadline: Deadline | float, on_late: OnLate | None = None) -> list[Any]:
        """Send requests in one write; give their replies, a refusal as the `Refusal` that it is.

        deadline  of all; a number of seconds bounds the write, and each reply, alone
        """
        gets = self._reader.gets
        data = requests[0] if len(requests) == 1 else b"".join(requests)
        sent = 0
        if (deadline.left_s() if isinstance(deadline, Deadline) else deadline) >= self._timeout_s:
            # Most often all is over within the timeout that the socket has: then nobody looks at the clock again.
            try:
                sent = self.socket.send(data)
                if sent == len(data) and on_late is None:
                    self._receive()
                    if len(requests) == 1 and (only := gets()) is not False:
                        return [only]
            except TimeoutError:
                pass
        if sent < len(data):
            self.send(memoryview(data)[sent:], deadline)
        if on_late is not None and not self.readable(on_late[0]):
            on_late[1]()
        replies: list[Any] = []
        try:
            for _ in requests:
                reply = gets()
                replies.append(self.read(_until(deadline)) if reply is False else reply)
        except OSError:
            if replies and isinstance(replies[0], Refusal) and str(replies[0]).startswith(TURNED_AWAY):
                raise replies[0] from None
            raise
        return replies

    def send(self, data: bytes | memoryview, deadline: Deadline | float) -> None:
        """Send all of it.

        deadline  or a number of seconds
        """
        sent = 0
        if (deadline.left_s() if isinstance(deadline, Deadline) else deadline) >= self._timeout_s:
            try:
                sent = self.socket.send(data)
            except TimeoutError:
                pass
        if sent < len(data):
            until = _until(deadline)
        while sent < len(data):
            self._bound(until)
            try:
                sent += self.socket.send(memoryview(data)[sent:])
            except TimeoutError:
                continue

    def read(self, deadline: Deadline) -> Any:
        """The next reply."""
        while (reply := self._reader.gets()) is False:
            self._bound(deadline)
            try:
                self._receive()
            except TimeoutError:
                continue
        return reply

    def pushes(self, seconds: float, lock: threading.Lock) -> list[Any]:
        """What has come, or comes within so many seconds. Other threads may send meanwhile, holding the lock."""
        gets, until = self._reader.gets, monotonic() + seconds
        while (reply := gets()) is False:
            if not self.readable(until - monotonic()):
                return []
            if not self._tls:
                self._receive()
                continue
            with lock:  # TLS forbids to read and write at once, and what is readable may be a part of a record
                self.socket.settimeout(0)
                try:
                    self._receive()
                except ssl.SSLWantReadError:
                    continue
                finally:
                    self.socket.settimeout(self._timeout_s)
        replies = [reply]
        while (reply := gets()) is not False:
            replies.append(reply)
        return replies

    def readable(self, seconds: float) -> bool:
        """Whether something comes within so many seconds."""
        if self._reader.has_data() or (self._tls and self._tls.pending()):
            return True
        if self.socket.fileno() < 0:
            raise ConnectionError(CLOSED)  # by another thread
        return bool(self._poll.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        self._connection.disconnect()

    def _bound(self, deadline: Deadline) -> None:
        """Let the next call on the socket end with the deadline."""
        left_s = deadline.left_s()
        if left_s <= 0:
            raise TimeoutError(SILENT)
        if left_s > TICK_S:
            left_s = TICK_S
        if left_s != self._timeout_s:
            self._timeout_s = left_s
            self.socket.settimeout(left_s)

    def _receive(self) -> None:
        size = self.socket.recv_into(self._buffer)
        if not size:
            raise ConnectionError(CLOSED)
        self._reader.feed(self._buffer, 0, size)  # type: ignore[arg-type]  # it takes any buffer


def _until(deadline: Deadline | float) -> Deadline:
    """A number of seconds begins anew with each wait."""
    return deadline if isinstance(deadline, Deadline) else Deadline(deadline)


class _Asked:
    """Requests of one write that have not all been answered."""

    __slots__ = ("answer", "heard", "missing", "replies")

    def __init__(self, count: int, answer: asyncio.Future[list[Any]], heard: int) -> None:
        self.missing = count
        self.answer = answer
        self.replies: list[Any] = []
        self.heard = heard


class AsyncChannel(asyncio.Protocol):
    """The same for any number of coroutines of one loop: they need not wait for each other, replies come in order.

    on_push  called with what comes though nobody has asked (pub/sub)
    on_end   called once, when it ends, with itself and whether requests were under way
    """

    def __init__(
        self, on_push: Callable[[Any], None] | None = None, on_end: Callable[[AsyncChannel, bool], None] | None = None
    ) -> None:
        self._on_push, self._on_end = on_push, on_end
        self._reader = Reader(replyError=Refusal)
        self._asked: deque[_Asked] = deque()
        self._transport: asyncio.Transport | None = None
        self._heard = 0
        self.fault: Exception | None = None

    async def ask(self, requests: Sequence[bytes], deadline: Deadline) -> list[Any]:
        """Send requests in one write; give their replies. Who is cancelled meanwhile leaves the rest in order.

        A server that says nothing to anybody until the deadline has lost this connection for everybody.
        """
        if self.fault is not None:
            raise self.fault
        loop = asyncio.get_running_loop()
        asked = _Asked(len(requests), loop.create_future(), self._heard)
        timer = loop.call_later(deadline.left_s(), self._late, asked)
        self._asked.append(asked)
        self.send(requests)
        try:
            return await asked.answer
        finally:
            timer.cancel()

    def send(self, requests: Sequence[bytes]) -> None:
        """Send requests whose answers are pushes."""
        if self._transport is not None:
            self._transport.write(requests[0] if len(requests) == 1 else b"".join(requests))

    def close(self, reason: Exception | None = None) -> None:
        """Drop the connection; whoever waits for a reply gets the reason."""
        if self.fault is not None:
            return
        self.fault = reason or ConnectionError("the connection was closed")
        if self._transport is not None:
            self._transport.abort()
        under_way = bool(self._asked)
        while self._asked:
            answer = self._asked.popleft().answer
            if not answer.done():
                answer.set_exception(self.fault)
        if self._on_end is not None:
            self._on_end(self, under_way)

    def abandon(self) -> None:
        """`close`, where the loop is closed, so that nothing can be called any more by which one closes a transport."""
        transport, self._transport = self._transport, None
        if transport is None or self.fault is not None:
            return
        self.fault = ConnectionError("its event loop is closed")
        self._asked.clear()
        held: socket.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)  # the server sees it at once, also where the rest waits to be collected
        lose: Callable[[None], None] | None = getattr(transport, "_call_connection_lost", None)
        if lose is not None:
            lose(None)

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.fault is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc if isinstance(exc, OSError) else ConnectionError(CLOSED))

    def data_received(self, data: bytes) -> None:
        self._heard += 1
        try:
            self._reader.feed(data)
            while self.fault is None and (reply := self._reader.gets()) is not False:
                self._deliver(reply)
        except Exception as error:
            self.close(error)

    def _deliver(self, reply: Any) -> None:
        if not self._asked:
            if self._on_push is not None:
                self._on_push(reply)
            return
        asked = self._asked[0]
        asked.replies.append(reply)
        asked.missing -= 1
        if not asked.missing:
            self._asked.popleft()
            if not asked.answer.done():
                asked.answer.set_result(asked.replies)

    def _late(self, asked: _Asked) -> None:
        late = TimeoutError(SILENT)
        if asked.heard == self._heard:
            self.close(late)
        elif not asked.answer.done():
            asked.answer.set_exception(late)
