"""rsq's errors for what the server, a socket or the client library said, in the user's terms."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.exceptions import RedisError

from rsq.errors import BrokerError, BrokerRefused, BrokerUnavailable
from rsq.url import redacted

CLOSED = "Connection closed by server."
SILENT = "Timeout reading from socket"

TURNED_AWAY = ("ERR max number of clients", "DENIED ")
"""So begins what a server says to a connection that it does not take, and closes: it answers no command."""


class Refusal(Exception):
    """A reply that is an error, in the server's words."""


FAULTS = (Refusal, RedisError, OSError, hiredis.HiredisError, asyncio.TimeoutError)
"""What the end of a connection may look like. (asyncio's own timeout is a class of its own up to Python 3.10.)"""


class ScriptMissing(BrokerError):
    """The server does not know the script: it is to be loaded."""


class SlotMoved(BrokerUnavailable):
    """Nothing was done: another node of the cluster serves this slot now."""


def checked(replies: list[Any]) -> list[Any]:
    """Replies of which none may be a refusal. Raises the first one that is."""
    for reply in replies:
        if isinstance(reply, BrokerError):
            raise reply
    return replies


_CREDENTIALS = ("NOAUTH", "WRONGPASS", "without any password configured", "invalid password", "invalid username")

# How a missing right is told, also from inside a script, where the code is gone and the words differ by server.
_DENIED = ("NOPERM", "ACL failure in script", "The user executing the script can't", "no permissions to")

# Answers that say "this node cannot do it now": reconnect and go on.
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
    "WAIT cannot be used with replica",
    "max number of clients",
)


# A node of a cluster says so where a slot is not, or not wholly, its own.
_ELSEWHERE = ("MOVED", "ASK ", "CROSSSLOT")


def translated(error: BaseException, url: str) -> BrokerError:
    """rsq's error for this one."""
    if isinstance(error, BrokerError):
        return error
    # What a server that does not know a command was sent with it is the user's, and no matter of a log.
    text = str(error).partition(", with args beginning with")[0].rstrip(".")
    where = redacted(url)
    if any(mark in text for mark in _CREDENTIALS):
        return BrokerRefused(f"{where} refused the credentials ({text}): check user and password in the URL")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return BrokerRefused(
            f"{where} has a certificate that cannot be trusted ({text}): check the host name, and name the authority "
            "that signed it with ssl_ca_certs in the URL"
        )
    if not isinstance(error, Refusal):
        return BrokerUnavailable(
            f"{where} cannot be reached ({text or type(error).__name__}): check that it runs, and its URL"
        )
    if text.startswith("NOSCRIPT"):
        return ScriptMissing(f"{where} answered: {text}")
    if any(mark in text for mark in _DENIED):
        return BrokerRefused(
            f"{where} denies a command that rsq needs ({text}): give the ACL user its rights; "
            "ACL LOG names the one that lacks"
        )
    if text.startswith("OOM") or "-OOM " in text:
        return BrokerRefused(
            f"{where} is out of memory (maxmemory reached): nothing was written; free memory or raise the limit"
        )
    if text.startswith(_ELSEWHERE):
        if "+cluster" in url.partition("://")[0]:
            kind = SlotMoved if text.startswith("MOVED") else BrokerUnavailable
            return kind(f"{where} cannot serve now: {text}")
        scheme = "rediss+cluster" if url.startswith("rediss") else "redis+cluster"
        return BrokerRefused(f"{where} is a node of a cluster: its URL begins with {scheme}://")
    if text.startswith("ERR This instance has cluster support disabled"):
        return BrokerRefused(f"{where} is no cluster: its URL begins with redis:// or rediss://")
    if any(mark in text for mark in _AWAY):
        return BrokerUnavailable(f"{where} cannot serve now: {text}")
    return BrokerRefused(f"{where} answered: {text}")
