"""How a socket is opened: by the client library, which is to do no more than that."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from rsq.broker.channel import Channel
from rsq.broker.exchange import Dial

CONNECT_TIMEOUT_S = 2.0


def dial(step: Dial) -> Channel:
    """Connect; nothing is said yet."""
    connection = blank(step)
    connection.connect()
    return Channel(connection)


def blank(step: Dial) -> AbstractConnection:
    """The client library's connection, not connected yet, which will do no more than that."""
    timeout_s = max(0.001, min(step.deadline.left_s(), CONNECT_TIMEOUT_S))
    options = step.options | {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        "redis_connect_func": _say_nothing,
    }
    if step.kind == "unix":
        return UnixDomainSocketConnection(**options)  # type: ignore[abstract]  # it has no host
    options |= {"socket_keepalive": True, "socket_keepalive_options": keepalive_options()}
    return SSLConnection(**options) if step.kind == "rediss" else Connection(**options)


def _say_nothing(connection: AbstractConnection) -> None:
    pass


def keepalive_options() -> dict[int, int]:
    """A peer that vanished without a word is noticed within 15 s, whatever the system's defaults."""
    wanted = (("TCP_KEEPIDLE", 5), ("TCP_KEEPALIVE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))
    return {getattr(socket, name): value for name, value in wanted if hasattr(socket, name)}


def tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    """What the client library makes of these of its arguments."""
    from redis.asyncio.connection import SSLConnection

    return SSLConnection(**options).ssl_context.get()
