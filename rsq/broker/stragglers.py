"""Requests that may still be under way on connections that broke: they must not arrive after their repeat.

A client that gave up waiting cannot know whether its request was carried out, is lost, or lies unread in a buffer of a
server that hangs. Repeating is safe in the first two cases: the scripts recognise what was done already. In the third
the old request would be carried out after the new one: a call twice in the stream, or entries delivered to nobody. So a
new connection first makes the server drop the old one, with all that it has not read of it.

Each connection gets a name of its own: ids begin anew when a server restarts, and may belong to somebody else then. A
user without the right to CLIENT KILL goes on without this.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from rsq.broker.wire import packed

Identity: TypeAlias = "tuple[int, bytes]"
"""Id and name of a connection, as the server knows it."""

Exchange: TypeAlias = "Generator[list[bytes], Sequence[Any], Identity | None]"
"""Yields requests, to be sent in one write; is sent their replies, refusals as exceptions."""

_CLIENT = re.compile(rb"^id=(\d+) .*? name=(\S*) ", re.MULTILINE)


class Stragglers:
    """The broken connections to one server. For any number of threads."""

    def __init__(self) -> None:
        self._broken: dict[int, bytes] = {}

    def add(self, identity: Identity | None) -> None:
        """A connection broke with a request under way."""
        if identity is not None:
            self._broken[identity[0]] = identity[1]

    def greeting(self, prefix: str | None) -> Exchange:
        """What a new connection says first: it learns its identity, and ends the broken ones before it is used.

        prefix  beginning of the connection's name, where the URL gives one
        """
        name = f"{prefix or 'rsq'}-{secrets.token_hex(6)}".encode()
        # They stay listed until the server has answered: another thread that connects meanwhile must not run ahead.
        broken = dict(self._broken)
        requests = [packed("CLIENT", "SETNAME", name), packed("CLIENT", "ID")]
        if broken:
            requests.append(packed("CLIENT", "LIST", "ID", *broken))
        replies = yield requests
        if broken and isinstance(replies[2], bytes):
            alive = {(int(each[1]), each[2]) for each in _CLIENT.finditer(replies[2])}
            kills = [packed("CLIENT", "KILL", "ID", identity[0]) for identity in broken.items() if identity in alive]
            if kills:
                yield kills
        for number in broken:
            self._broken.pop(number, None)
        named, number = replies[0] == b"OK", replies[1]
        return (number, name) if named and isinstance(number, int) else None
