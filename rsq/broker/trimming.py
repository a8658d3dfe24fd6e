"""Trimming a stream of others where those who read it are done with it, and what became of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link
from rsq.broker.event_stream import READ_TIMEOUT_S
from rsq.broker.faults import checked
from rsq.calls.retention import Retention


class Trimmed(NamedTuple):
    """What one step has done.

    wait_ms  somebody else trims this stream: for so long
    gone, dropped  entries that went, and how many of them somebody had not read, or not acknowledged
    more     more can go at once
    held_by, why  group that holds back what is beyond ('' = none), for that is 'missing', 'unread' or 'pending'
    silent   groups that count no more
    """

    wait_ms: int = 0
    gone: int = 0
    dropped: int = 0
    more: bool = False
    held_by: str = ""
    why: str = ""
    silent: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrimInfo:
    """What was trimmed of a stream.

    trimmed, dropped  entries that went, and how many of them somebody had not read, or not acknowledged
    held_by, why  as in `Trimmed`
    """

    stream: str
    length: int
    trimmed: int
    dropped: int
    held_by: str
    why: str


class StreamTrimmer:
    """One stream that is kept short, on a link of its own, for one thread at a time. Raises BrokerError.

    groups  of sources that read it: they count, also where they are not there
    """

    def __init__(self, endpoint: Endpoint, kept: Retention, groups: Sequence[str], me: str) -> None:
        self.kept = kept
        self._groups = kept.groups or groups
        self._me = me
        tag = keys.stream_tag(kept.stream) if endpoint.cluster is not None else None
        self._link = Link(endpoint, READ_TIMEOUT_S, tag)

    def step(self, lease_ms: int) -> Trimmed:
        """Trim some; nobody else does for `lease_ms`."""
        kept = self.kept
        bounds = ("" if each is None else each for each in (kept.length, kept.age_ms, kept.silence_ms))
        how = int(kept.hard), int(kept.groups is not None)
        reply = self._link.run(
            scripts.TRIM, keys.beside(kept.stream), kept.stream, self._me, lease_ms, *bounds, *how, *self._groups
        )
        if reply[0] == b"other":
            return Trimmed(wait_ms=reply[1])
        _, gone, dropped, more, held_by, why, silent = reply
        return Trimmed(0, gone, dropped, bool(more), _text(held_by), why.decode(), tuple(map(_text, silent)))

    def close(self) -> None:
        """Drop the connection; the next step makes a new one."""
        self._link.close()


def trimmed(link: Link, streams: Sequence[str]) -> list[TrimInfo]:
    """What was trimmed of those of these streams that are. Raises BrokerError."""
    looks = [look for each in streams for look in (("HGETALL", keys.about(each)), ("XLEN", each))]
    replies, found = checked(link.pipeline(looks)) if looks else [], []
    for stream, flat, length in zip(streams, replies[::2], replies[1::2], strict=True):
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if not fields.keys() & {b"trimmed", b"held"}:
            continue
        why, _, held_by = _text(fields.get(b"held", b"")).partition(" ")
        gone, dropped = (int(fields.get(name, 0)) for name in (b"trimmed", b"dropped"))
        found.append(TrimInfo(stream, length, gone, dropped, held_by, why))
    return found


def _text(raw: Any) -> str:
    return bytes(raw).decode("utf-8", "replace")
