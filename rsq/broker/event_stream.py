"""A stream of events that others write, as rsq reads it. Nothing is written into it but how far a group has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link
from rsq.broker.faults import checked
from rsq.broker.wire import Command
from rsq.errors import BrokerError

READ_TIMEOUT_S = 3.0
"""Beyond the time for which a read may block: then the peer is lost."""


KEPT_MS = 30 * 86_400_000
"""What is known of a stream is kept for so long; as in the scripts."""


@dataclass(frozen=True)
class StreamLook:
    """How a stream stands.

    last       id of the last entry that was ever added; None: there is no such stream
    length     entries in it
    delivered  how far the group has come by its own word; None: there is no such group
    foreign    whether the group has consumers; rsq needs none
    first      id of the first entry; None: there is none
    added      entries that were ever added; None: the server is older than 7.0 and does not count
    deleted    the highest id of those that were deleted; None: as `added`
    """

    last: str | None
    length: int
    delivered: str | None
    foreign: bool
    first: str | None = None
    added: int | None = None
    deleted: str | None = None


class EventStream:
    """One stream and the group that rsq reads it for, on a link of its own, for one thread at a time.

    Every method raises BrokerError.
    """

    def __init__(self, endpoint: Endpoint, stream: str, group: str, timeout_s: float = READ_TIMEOUT_S) -> None:
        self._stream = stream
        self._group = group
        self._link = Link(endpoint, timeout_s, keys.stream_tag(stream) if endpoint.cluster is not None else None)

    def look(self) -> StreamLook:
        """How it stands now."""
        about, groups = self._link.pipeline([("XINFO", "STREAM", self._stream), ("XINFO", "GROUPS", self._stream)])
        for reply in (about, groups):
            if isinstance(reply, BrokerError) and "no such key" not in str(reply).lower():
                raise reply
        if isinstance(about, BrokerError) or isinstance(groups, BrokerError):
            return StreamLook(None, 0, None, False)
        info = _pairs(about)
        group = next((each for each in map(_pairs, groups) if each[b"name"] == self._group.encode()), None)
        return StreamLook(
            info[b"last-generated-id"].decode(),
            info[b"length"],
            None if group is None else group[b"last-delivered-id"].decode(),
            group is not None and group[b"consumers"] > 0,
            info[b"first-entry"][0].decode() if info[b"first-entry"] else None,
            info.get(b"entries-added"),
            info[b"max-deleted-entry-id"].decode() if b"max-deleted-entry-id" in info else None,
        )

    def consumers(self) -> list[str]:
        """The consumers of the group, none of which is rsq's."""
        rows = self._link.call("XINFO", "CONSUMERS", self._stream, self._group)
        return [_pairs(row)[b"name"].decode("utf-8", "replace") for row in rows]

    def read(self, position: str, count: int, block_ms: int = 0) -> list[tuple[bytes, list[bytes]]]:
        """Up to `count` entries behind a position, as (id, fields).

        block_ms  wait for so long where there are none; 0 = not at all
        """
        wait: Command = ("BLOCK", block_ms) if block_ms else ()
        reply = self._link.call("XREAD", "COUNT", count, *wait, "STREAMS", self._stream, position)
        return [(number, fields) for number, fields in reply[0][1]] if reply else []

    def newest(self, count: int, end: str = "+") -> list[tuple[bytes, list[bytes]]]:
        """The last `count` entries up to `end`, the newest first."""
        return [
            (number, fields) for number, fields in self._link.call("XREVRANGE", self._stream, end, "-", "COUNT", count)
        ]

    def tell(self, position: str) -> None:
        """Have the group stand there, for others to see. Where there is no stream there is nobody to tell."""
        self._link.run(scripts.TELL, keys.beside(self._stream), self._stream, self._group, position)

    def count_lost(self, number: int) -> None:
        """So many events were deleted before the group had them."""
        about = keys.about(self._stream)
        self._link.pipeline([("HINCRBY", about, f"lost:{self._group}", number), ("PEXPIRE", about, KEPT_MS)])

    def lost(self) -> int:
        """How many that were."""
        return int(self._link.call("HGET", keys.about(self._stream), f"lost:{self._group}") or 0)

    def end(self, position: str) -> None:
        """The group has come so far, and goes."""
        about = keys.about(self._stream)
        checked(
            self._link.pipeline(
                [
                    ("HSET", about, f"replayed:{self._group}", position),
                    ("HDEL", about, f"read:{self._group}"),
                    ("PEXPIRE", about, KEPT_MS),
                    ("XGROUP", "DESTROY", self._stream, self._group),
                ]
            )
        )

    def ended(self) -> str:
        """How far the group had come when it ended; '' = it has not."""
        return (self._link.call("HGET", keys.about(self._stream), f"replayed:{self._group}") or b"").decode()

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        self._link.close()


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
