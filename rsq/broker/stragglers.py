"""Requests that may still be under way on connections that broke: they must not arrive after their repeat.

A client that gave up waiting cannot know whether its request was carried out, is lost, or lies unread in a buffer of a
server that hangs. Repeating is safe in the first two cases: what was done already is recognised. In the third
the old request would be carried out after the new one: a call twice in the stream, or entries delivered to nobody. So a
new connection first makes the server drop the old one, with all that it has not read of it.

Each connection gets a name of its own: ids begin anew when a server restarts, and may belong to somebody else then. A
user without the right to CLIENT KILL goes on without this.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Opening
from rsq.broker.faults import Refusal
from rsq.broker.wire import packed


@dataclass(frozen=True)
class Identity:
    """A connection as the server knows it.

    server  the broken connections to that server: in a cluster ids are a node's own
    """

    number: int
    name: bytes
    server: Stragglers = field(repr=False)


_CLIENT = re.compile(rb"^id=(\d+) .*? name=(\S*) ", re.MULTILINE)


def entrance(options: dict[str, Any]) -> list[bytes]:
    """What opens the door: credentials and database, as the client library's arguments have them."""
    requests = []
    if options.get("password") is not None or options.get("username"):
        user = [options["username"]] if options.get("username") else []
        requests.append(packed("AUTH", *user, options.get("password") or ""))
    if options.get("db"):
        requests.append(packed("SELECT", options["db"]))
    return requests


class Stragglers:
    """The broken connections to one server. For any number of threads."""

    def __init__(self) -> None:
        self._broken: dict[int, bytes] = {}

    def add(self, identity: Identity) -> None:
        """A connection broke with a request under way."""
        self._broken[identity.number] = identity.name

    def greeting(
        self, options: dict[str, Any], deadline: Deadline, judge: Callable[[Any], None] | None = None
    ) -> Opening[Identity | None]:
        """What a new connection says first: it enters, learns its identity, and ends the broken ones before it is used.

        judge  is given the answer to ROLE, and raises where that is not the node that was meant
        """
        name = f"{options.get('client_name') or 'rsq'}-{secrets.token_hex(6)}".encode()
        # They stay listed until the server has answered: another thread that connects meanwhile must not run ahead.
        broken = dict(self._broken)
        enter = entrance(options)
        requests = [*enter, packed("CLIENT", "SETNAME", name), packed("CLIENT", "ID")]
        if judge is not None:
            requests.append(packed("ROLE"))
        if broken:
            requests.append(packed("CLIENT", "LIST", "ID", *broken))
        replies = yield requests, deadline
        for reply in replies[: len(enter)]:
            if isinstance(reply, Refusal):
                raise reply
        named, number, *others = replies[len(enter) :]
        if judge is not None:
            judge(others[0])
        if broken and isinstance(others[-1], bytes):
            alive = {(int(each[1]), each[2]) for each in _CLIENT.finditer(others[-1])}
            kills = [packed("CLIENT", "KILL", "ID", identity[0]) for identity in broken.items() if identity in alive]
            if kills:
                yield kills, deadline
        for old in broken:
            self._broken.pop(old, None)
        return Identity(number, name, self) if named == b"OK" and isinstance(number, int) else None
