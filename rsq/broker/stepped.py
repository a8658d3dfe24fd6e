"""A connection whose steps are taken when a selector says that they can be: its owner waits for no server.

For a process that has one thread and more to do. Only names of hosts are looked up in place.
"""

from __future__ import annotations

import errno
import math
import os
import select
import selectors
import socket
import ssl
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar

from hiredis import Reader

from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.dialling import CONNECT_TIMEOUT_S, keepalive_options, tls_context
from rsq.broker.exchange import Dial, Exchange
from rsq.broker.faults import CLOSED, FAULTS, SILENT, TURNED_AWAY, Refusal, translated
from rsq.broker.forks import renew_in_child
from rsq.broker.stragglers import Identity
from rsq.errors import BrokerError

T = TypeVar("T")

AT_ONCE = 65536


class SteppedLink:
    """Talks with the server of an endpoint's home, one after the other. Connects when there is none, and keeps that.

    It stands in `selector`, with itself as data, while it has a socket: `on_readable` is called when that is ready.

    unasked  is called when something comes that no talk asked for, with False when that is the end of the connection
    """

    def __init__(
        self, endpoint: Endpoint, selector: selectors.BaseSelector, unasked: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._endpoint = endpoint
        self._selector = selector
        self._unasked = unasked
        self._socket: socket.socket | None = None
        self._events = 0
        self._ready: Callable[[], None] = self._exchange
        self._reader = Reader(replyError=Refusal)
        self._identity: Identity | None = None
        self._greeted = False
        self._places: list[tuple[int, Any]] = []
        self._dial: Dial
        self._unsent = b""
        self._replies: list[Any] = []
        self._missing = 0
        self._steps: Generator[Any, Any, Any] | None = None
        self._then: Callable[[Any], None]
        self._to_tell: list[Callable[[], None]] = []
        self._deadline: Deadline
        self._step_ends: Deadline
        renew_in_child(self)

    @property
    def busy(self) -> bool:
        """A talk is under way."""
        return self._steps is not None

    @property
    def connected(self) -> bool:
        """A talk would need no new connection."""
        return self._greeted

    @property
    def due_at(self) -> float:
        """When `tend` is to be called (monotonic)."""
        return self._step_ends.began + self._step_ends.seconds if self.busy else math.inf

    def follow(self, talk: Exchange[T], deadline: Deadline, then: Callable[[T | BrokerError], None]) -> None:
        """Begin a talk, without pauses. `then` is called with what it gives, or with what went wrong."""
        assert not self.busy, "one talk at a time"
        self._deadline = self._step_ends = deadline
        self._then = then
        self._steps = steps = self._opened(talk)
        self._act(lambda: self._advance(lambda: next(steps)))

    def on_readable(self, fd: int) -> None:
        """The socket is ready for what is waited for."""
        if self._socket is not None:
            self._act(self._ready)

    def tend(self, now: float) -> None:
        """End a step that takes too long."""
        if self.busy and self._step_ends.left_s() <= 0:
            self._act(lambda: self._fail(TimeoutError(SILENT)))

    def wait(self) -> None:
        """Wait, after all, for the end of the talk that is under way."""
        while self.busy and self._socket is not None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._events & selectors.EVENT_WRITE else 0))
            if poll.poll(max(0.0, self._step_ends.left_s()) * 1000):
                self._act(self._ready)
            self.tend(0.0)

    def close(self) -> None:
        """Drop the connection, and the talk that is under way."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
        self._drop()

    def after_fork(self) -> None:
        """The copy is closed alone: nothing is shut down."""
        if self._socket is not None:
            self._socket.close()

    # -- what comes next

    def _act(self, act: Callable[[], None]) -> None:
        """Do this, then tell what came of it: an error of who is told is none of the connection."""
        self._attempt(act)
        to_tell, self._to_tell = self._to_tell, []
        for tell in to_tell:
            tell()

    def _opened(self, talk: Exchange[T]) -> Generator[Any, Any, T]:
        if not self._greeted:
            self._identity = yield from self._endpoint.opening(self._deadline)
            self._greeted = True
        return (yield from talk)

    def _advance(self, resume: Callable[[], Any]) -> None:
        """Go on to the next step, or to the end."""
        try:
            step = resume()
        except StopIteration as end:
            result = end.value
        except (BrokerError, *FAULTS) as error:
            result = translated(error, self._endpoint.url)
            if not self._greeted:
                self._drop()
        except BaseException:
            self._steps = None
            raise
        else:
            self._attempt(lambda: self._begin(step))
            return
        self._steps = None
        self._to_tell.append(partial(self._then, result))

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except FAULTS as fault:
            self._fail(fault)

    def _begin(self, step: Any) -> None:
        if isinstance(step, Dial):
            self._drop()
            self._dial, self._step_ends = step, step.deadline.within(CONNECT_TIMEOUT_S)
            self._places = places_of(step)
            self._connect()
            return
        if isinstance(step, list):
            self._advance(lambda: self._talk.send(self._endpoint.fitting(step)))
            return
        requests, own = step
        self._step_ends = own or self._deadline
        self._replies, self._missing = [], len(requests)
        self._unsent = b"".join(requests)
        self._exchange()

    @property
    def _talk(self) -> Generator[Any, Any, Any]:
        assert self._steps is not None, "a talk is under way"
        return self._steps

    def _resume(self, came: Any) -> None:
        talk = self._talk
        if self._greeted and self._endpoint.translate(came):
            self._drop()
        self._advance(lambda: talk.send(came))

    def _fail(self, fault: Exception) -> None:
        steps = self._steps
        if self._greeted and self.busy:
            self._endpoint.broke(self._identity)
            fault = translated(fault, self._endpoint.url)
        self._drop()
        if steps is None:
            self._to_tell.append(partial(self._unasked, False))
        else:
            self._advance(lambda: steps.throw(fault))

    # -- the socket

    def _connect(self) -> None:
        family, place = self._places.pop(0)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in keepalive_options().items():
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self._ready = self._connected
        self._watch(selectors.EVENT_WRITE)
        self._check(self._socket.connect_ex(place))

    def _connected(self) -> None:
        assert self._socket is not None, "it is watched"
        if not self._check(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) or not _has_peer(self._socket):
            return
        if self._dial.kind == "rediss":
            plain, name = self._socket, self._dial.options.get("host", "localhost")
            self._watch(0)
            self._socket = tls_context(self._dial.options).wrap_socket(
                plain, server_hostname=name, do_handshake_on_connect=False
            )
            self._ready = self._shake_hands
            self._shake_hands()
        else:
            self._stands()

    def _check(self, code: int) -> bool:
        """Whether it may still come to something with this address; else the next one is tried."""
        if code in (0, errno.EINPROGRESS):
            return True
        self._drop_socket()
        if not self._places:
            raise OSError(code, os.strerror(code))
        self._connect()
        return False

    def _shake_hands(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket), "it was wrapped"
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(selectors.EVENT_WRITE)
        else:
            self._stands()

    def _stands(self) -> None:
        self._ready = self._exchange
        self._watch(selectors.EVENT_READ)
        self._resume([])

    def _exchange(self) -> None:
        """Send what is left, and take what has come."""
        here = self._socket
        if here is None:
            raise ConnectionError(CLOSED)
        try:
            while self._unsent:
                self._unsent = self._unsent[here.send(self._unsent) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        ended, unasked = self._receive(here), False
        while (reply := self._reader.gets()) is not False:
            if self._missing:
                self._replies.append(reply)
                self._missing -= 1
            else:
                unasked = True
        if ended and (self._missing or not self.busy):
            first = self._replies[0] if self.busy and self._replies else None
            if isinstance(first, Refusal) and str(first).startswith(TURNED_AWAY):
                raise first
            raise ConnectionError(CLOSED)
        self._watch(selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0))
        if self.busy and not self._missing:
            self._resume(self._replies)
        if unasked:
            self._to_tell.append(partial(self._unasked, True))

    def _receive(self, here: socket.socket) -> bool:
        """Read what is there. Whether that was the end."""
        try:
            while data := here.recv(AT_ONCE):
                self._reader.feed(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def _watch(self, events: int) -> None:
        """Have the selector look for these."""
        assert self._socket is not None, "there is something to watch"
        if events == self._events:
            return
        if not events:
            self._selector.unregister(self._socket)
        elif self._events:
            self._selector.modify(self._socket, events, self)
        else:
            self._selector.register(self._socket, events, self)
        self._events = events

    def _drop(self) -> None:
        self._greeted = False
        self._identity = None
        self._unsent, self._missing = b"", 0
        self._reader = Reader(replyError=Refusal)
        self._drop_socket()

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._watch(0)
            self._socket.close()
            self._socket = None


def _has_peer(here: socket.socket) -> bool:
    try:
        here.getpeername()
    except OSError:
        return False
    return True


def places_of(dial: Dial) -> list[tuple[int, Any]]:
    """Address families and addresses to try, in order. Raises OSError where a name is not known."""
    options = dial.options
    if dial.kind == "unix":
        return [(socket.AF_UNIX, options["path"])]
    found = socket.getaddrinfo(options.get("host", "localhost"), options.get("port", 6379), type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
