"""Connections to the server: made from a URL, used by one thread at a time, with every Redis error translated here.

redis-py opens the socket, authenticates and parses; rsq sends and reads on it directly, with the client's own retries
off: a resent write that had arrived would count twice, so each caller repeats what it knows to be safe.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from rsq.broker import embedded
from rsq.broker.address import plain_options, redacted, sentinel_address
from rsq.broker.scripts import Script
from rsq.broker.sentinel import Sentinels
from rsq.broker.stragglers import Exchange, Identity, Stragglers
from rsq.broker.wire import Argument, Command, packed
from rsq.errors import BrokerError, BrokerRefused, BrokerUnavailable

if TYPE_CHECKING:
    from redis.asyncio import connection as aio

AsyncConnection: TypeAlias = "aio.AbstractConnection"

ScriptCall: TypeAlias = "tuple[Script, str, tuple[Argument, ...]]"
"""A script, the tag of the queue that it works on, and its arguments."""

CONNECT_TIMEOUT_S = 2.0

LOADS = 3
"""So often a script is loaded for one call: the server may forget it again before the call (SCRIPT FLUSH, failover)."""


# Answers that say "this node cannot do it now": reconnect and go on. By class where the client library takes the code
# off the text, and by text where they come out of a script or have no class.
_AWAY_CLASSES = (ReadOnlyError, ClusterDownError, TryAgainError)  # MASTERDOWN is a ClusterDownError
_AWAY = (
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",
    "BUSY ",
    "NOREPLICAS",
    "UNKILLABLE",
)

# How a missing right is told, also from inside a script, where the code is gone and the words differ by server.
_DENIED = ("NOPERM", "ACL failure in script", "The user executing the script can't")


def translated(error: Exception, url: str) -> BrokerError:
    """rsq's error for what redis-py or a socket raised, in the user's terms."""
    where, text = redacted(url), str(error).rstrip(".")
    if isinstance(error, (AuthenticationError, AuthorizationError)) or text.startswith(("NOAUTH", "WRONGPASS")):
        return BrokerRefused(f"{where} refused the credentials ({text}): check user and password in the URL")
    if isinstance(error, NoPermissionError) or any(mark in text for mark in _DENIED):
        return BrokerRefused(
            f"{where} denies a command that rsq needs ({text}): give the ACL user its rights; "
            "ACL LOG names the one that lacks"
        )
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM") or "-OOM " in text:
        return BrokerRefused(
            f"{where} is out of memory (maxmemory reached): nothing was written; free memory or raise the limit"
        )
    if isinstance(error, ResponseError):
        if isinstance(error, _AWAY_CLASSES) or any(mark in text for mark in _AWAY):
            return BrokerUnavailable(f"{where} cannot serve now: {text}")
        return BrokerRefused(f"{where} answered: {text}")
    return BrokerUnavailable(
        f"{where} cannot be reached ({text or type(error).__name__}): check that it runs, and its URL"
    )


class Endpoint:
    """Where the server is. Makes connections; knows nothing of queues."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stragglers = Stragglers()
        self.embedded = embedded.from_url(url) if url.startswith("embedded:") else None
        self._kind, self._sentinels = "unix", None
        self._options: dict[str, Any] = {}
        if url.partition("://")[0].endswith("+sentinel"):
            address = sentinel_address(url)
            self._kind, self._sentinels, self._options = address.kind, Sentinels(address), address.node
        elif self.embedded is None:
            self._kind, self._options = url.partition("://")[0], plain_options(url)

    def __str__(self) -> str:
        return self.embedded.describe() if self.embedded else redacted(self.url)

    def forgetful(self) -> BrokerUnavailable:
        """The error where no script stays on the server for long enough to be called."""
        return BrokerUnavailable(
            f"{redacted(self.url)} cannot serve now: it forgets scripts as soon as they are loaded"
        )

    def connection(self, timeout_s: float) -> AbstractConnection:
        """A new connection, not connected yet. `timeout_s` bounds each wait for the server, connecting included.

        With sentinels it leads to the node that is the master now, and connects only if that node says so, too.
        """
        path = self.embedded.ensure() if self.embedded else None
        options = self._made_of(path, timeout_s)
        options["retry"] = Retry(NoBackoff(), 0)
        if self._sentinels is not None:
            options |= self._sentinels.master(timeout_s)
        if self._kind == "unix":
            return UnixDomainSocketConnection(**options)  # type: ignore[abstract]  # it has no host
        return SSLConnection(**options) if self._kind == "rediss" else Connection(**options)

    async def async_connection(self, timeout_s: float) -> AsyncConnection:
        """`connection` for coroutines."""
        from redis.asyncio import connection as aio
        from redis.asyncio.retry import Retry as AsyncRetry

        path = self.embedded.ensure() if self.embedded else None
        options = self._made_of(path, timeout_s)
        options["retry"] = AsyncRetry(NoBackoff(), 0)
        if self._sentinels is not None:
            options |= await self._sentinels.async_master(timeout_s)
        if self._kind == "unix":
            return aio.UnixDomainSocketConnection(**options)
        return aio.SSLConnection(**options) if self._kind == "rediss" else aio.Connection(**options)

    def _made_of(self, socket_path: Path | None, timeout_s: float) -> dict[str, Any]:
        """The arguments to make a connection."""
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
            "protocol": 2,
        }
        if socket_path is not None:
            return options | {"path": str(socket_path)}
        if self._kind != "unix":
            options |= {"socket_keepalive": True, "socket_keepalive_options": _keepalive()}
        return self._options | options


def _keepalive() -> dict[int, int]:
    """A peer that vanished without a word is noticed within 15 s, whatever the system's defaults."""
    wanted = (("TCP_KEEPIDLE", 5), ("TCP_KEEPALIVE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))
    return {getattr(socket, name): value for name, value in wanted if hasattr(socket, name)}


class Link:
    """One connection, for one thread at a time. Connects at the first call and again after any fault.

    Every method raises BrokerUnavailable after a fault of the connection (the call may or may not have been carried
    out) and BrokerRefused when the server said no.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        self._identity: Identity | None = None

    def call(self, *command: Argument) -> Any:
        """Send one command and give its reply."""
        return self.call_packed(packed(*command))

    def call_packed(
        self, request: bytes, timeout_s: float | None = None, on_late: tuple[float, Callable[[], None]] | None = None
    ) -> Any:
        """Send one command that is packed already and give its reply, waiting for `timeout_s` at most.

        on_late  seconds, and what is called when there is no reply by then; the wait goes on after it
        """
        try:
            connection = self._connected()
            connection.send_packed_command([request], check_health=False)
            if on_late is not None and not connection.can_read(on_late[0]):
                on_late[1]()
            if timeout_s is None:
                return connection.read_response(disable_decoding=True)
            return connection.read_response(disable_decoding=True, timeout=timeout_s)
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise self._fault(error) from None
        except BaseException:
            # Interrupted between request and reply: the next reply would answer the wrong call.
            self._break()
            raise

    def pipeline(self, commands: Iterable[Command]) -> list[Any]:
        """Send many commands in one write; give their replies in order, a refused command as its exception."""
        return self.pipeline_packed([packed(*command) for command in commands])

    def pipeline_packed(
        self,
        requests: Sequence[bytes],
        timeout_s: float | None = None,
        on_late: tuple[float, Callable[[], None]] | None = None,
    ) -> list[Any]:
        """`pipeline` for commands that are packed already; each reply may take `timeout_s`. `on_late` as above."""
        wait = {} if timeout_s is None else {"timeout": timeout_s}
        try:
            connection = self._connected()
            connection.send_packed_command([b"".join(requests)], check_health=False)
            if on_late is not None and not connection.can_read(on_late[0]):
                on_late[1]()
            replies: list[Any] = []
            for _ in requests:
                try:
                    replies.append(connection.read_response(disable_decoding=True, **wait))
                except ResponseError as error:
                    replies.append(error if isinstance(error, NoScriptError) else translated(error, self.endpoint.url))
            if any(isinstance(reply, BrokerUnavailable) for reply in replies):
                self.close()
            return replies
        except (RedisError, OSError) as error:
            raise self._fault(error) from None
        except BaseException:
            self._break()
            raise

    def run(self, script: Script, tag: str, *arguments: Argument) -> Any:
        """Call a script on the queue with this tag. Loads it first where the server does not know it yet."""
        try:
            return self.call_packed(packed("EVALSHA", script.sha, 1, tag, *arguments))
        except NoScriptError:
            (reply,) = self.run_many([(script, tag, arguments)])
            if isinstance(reply, BrokerError):
                raise reply from None
            return reply

    def run_one(self, call: ScriptCall) -> Any:
        """`run` for a call that is put together already."""
        script, tag, arguments = call
        return self.run(script, tag, *arguments)

    def run_many(self, calls: Sequence[ScriptCall], then: Sequence[bytes] = ()) -> list[Any]:
        """Call several scripts in one write, and after them the packed commands `then`.

        Replies in order, a refused one as its exception. `then` also follows scripts that had to be loaded first.
        """
        requests = [packed("EVALSHA", script.sha, 1, tag, *arguments) for script, tag, arguments in calls]
        replies = self.pipeline_packed([*requests, *then])
        for _ in range(LOADS):
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if not missing:
                return replies
            for source in {calls[i][0].source for i in missing}:
                self.call("SCRIPT", "LOAD", source)
            again = self.pipeline_packed([*(requests[i] for i in missing), *then])
            for i, reply in zip([*missing, *range(len(calls), len(replies))], again, strict=True):
                replies[i] = reply
        return [self.endpoint.forgetful() if isinstance(reply, NoScriptError) else reply for reply in replies]

    @property
    def connected(self) -> bool:
        """Whether the last call left a connection behind."""
        return self._connection is not None

    def connection(self) -> AbstractConnection:
        """The connection itself, connected, for a caller that reads on its own (pub/sub)."""
        try:
            return self._connected()
        except (RedisError, OSError) as error:
            raise self._fault(error) from None

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            connection.disconnect()

    def _connected(self) -> AbstractConnection:
        if self._connection is None:
            self._connection = connection = self.endpoint.connection(self.timeout_s)
            connection.connect()
            self._identity = _exchange(connection, self.endpoint.stragglers.greeting(connection.client_name))
        return self._connection

    def _break(self) -> None:
        """Drop the connection while a request may be under way on it."""
        self.endpoint.stragglers.add(self._identity)
        self.close()

    def _fault(self, error: Exception) -> BrokerError:
        fault = translated(error, self.endpoint.url)
        if isinstance(fault, BrokerUnavailable):
            self._break()
        return fault


def _exchange(connection: AbstractConnection, exchange: Exchange) -> Identity | None:
    """Carry out an exchange on a connection."""
    try:
        requests = next(exchange)
        while True:
            connection.send_packed_command([b"".join(requests)], check_health=False)
            requests = exchange.send([_reply(connection) for _ in requests])
    except StopIteration as end:
        identity: Identity | None = end.value
        return identity


def _reply(connection: AbstractConnection) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as refusal:
        return refusal


class LinkPool:
    """Links for any number of threads: each call borrows one. After a fork the child starts with none."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._free: list[Link] = []
        self._pid = os.getpid()

    def take(self) -> Link:
        if self._pid != os.getpid():
            # The parent's sockets are shared with it: leave them alone, without even a goodbye.
            self._free, self._pid = [], os.getpid()
        try:
            return self._free.pop()
        except IndexError:
            return Link(self.endpoint, self.timeout_s)

    def give_back(self, link: Link) -> None:
        if self._pid == os.getpid():
            self._free.append(link)

    def close(self) -> None:
        """Close the links that are not in use."""
        free, self._free = self._free, []
        for link in free:
            link.close()
