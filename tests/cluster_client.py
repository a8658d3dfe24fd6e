"""A client of a whole cluster with the methods of a client of one server, for tests that look at keys on either."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import redis

from tests.servers import Server

SLOTS = 16384

_TAG = re.compile(rb"\{([^{}]+)\}")

Ranges: TypeAlias = "Sequence[tuple[int, int, Server]]"


def slot_of(tag: str | bytes) -> int:
    """The hash slot of a hash tag, written without its braces."""
    return crc_hqx(tag.encode() if isinstance(tag, str) else tag, 0) % SLOTS


def all_channels(node: Any, pattern: str = "*") -> list[bytes]:
    """The channels of a node of a cluster that somebody listens to, sharded ones too."""
    kinds = ("PUBSUB CHANNELS", "PUBSUB SHARDCHANNELS")
    return [name for kind in kinds for name in node.execute_command(kind, pattern)]


def holder_of(client: Any, key: str) -> Any:
    """The client of the server that has a key, for pipelines."""
    return client.of(key) if isinstance(client, ClusterClient) else client


class ClusterClient(redis.Redis):
    """Each command goes to the master of the first tag in it, or to the one of the home; some go to all masters.

    Pipelines, MONITOR and classic channels are those of the home.

    home    the master of what most tests look at
    ranges  first slot, last slot, and the master of these
    """

    def __init__(self, home: Server, ranges: Ranges, **options: Any) -> None:
        super().__init__(connection_pool=home.client(**options).connection_pool)
        self.auto_close_connection_pool = True
        self._home = home
        self._ranges = ranges
        self._options = options
        self._others: dict[Server, Any] = {}

    def masters(self) -> list[Any]:
        """A client of each master."""
        return [self._of(node) for node in dict.fromkeys(node for _, _, node in self._ranges)]

    def of(self, key: str) -> Any:
        """A client of the master that has a key."""
        return self._of(self._node((key,)))

    def execute_command(self, *words: Any, **options: Any) -> Any:
        node = self._node(words)
        if node is self._home:
            return super().execute_command(*words, **options)  # type: ignore[no-untyped-call]
        return self._of(node).execute_command(*words, **options)

    def flushall(self, *words: Any, **options: Any) -> Any:
        return [each.execute_command("FLUSHALL") for each in self.masters()]

    def script_flush(self, *words: Any) -> Any:
        return [each.execute_command("SCRIPT FLUSH") for each in self.masters()]

    def config_resetstat(self, **options: Any) -> Any:
        return [each.execute_command("CONFIG RESETSTAT") for each in self.masters()]

    def keys(self, pattern: Any = "*", **options: Any) -> Any:
        return [key for each in self.masters() for key in each.execute_command("KEYS", pattern)]

    def dbsize(self, **options: Any) -> Any:
        return sum(each.execute_command("DBSIZE") for each in self.masters())

    def scan_iter(
        self, match: Any = None, count: int | None = None, _type: str | None = None, **options: Any
    ) -> Iterator[Any]:
        for each in self.masters():
            yield from each.scan_iter(match, count, _type)

    def pubsub_channels(self, pattern: Any = "*", **options: Any) -> Any:
        """Sharded ones, too."""
        return [name for each in self.masters() for name in all_channels(each, pattern)]

    def client_list(self, _type: str | None = None, client_id: Any = (), **options: Any) -> Any:
        """Ids of connections are a node's own."""
        lists = enumerate(each.client_list(_type) for each in self.masters())
        return [{**row, "id": f"{row['id']} of {number}"} for number, rows in lists for row in rows]

    def client_kill_filter(self, _id: str | None = None, _type: str | None = None, *rest: Any, **options: Any) -> int:
        return sum(each.client_kill_filter(_id, _type, *rest, **options) for each in self.masters())

    def close(self) -> None:
        for each in self._others.values():
            each.close()
        super().close()

    def _node(self, words: Sequence[Any]) -> Server:
        # The text of a script may hold braces, too; behind it comes the number of keys.
        for word in words[2:] if words[0] == "EVAL" else words:
            found = _TAG.search(word.encode() if isinstance(word, str) else word if isinstance(word, bytes) else b"")
            if found:
                slot = slot_of(found[1])
                for first, last, node in self._ranges:
                    if first <= slot <= last:
                        return node
                raise LookupError(f"no master holds slot {slot}")
        return self._home

    def _of(self, node: Server) -> Any:
        if node not in self._others:
            self._others[node] = node.client(**self._options)
        return self._others[node]
