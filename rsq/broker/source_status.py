"""How far the sources of a queue have been read: what `rsq status` shows of them. Reads only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rsq.broker.connection import Endpoint, Link
from rsq.broker.event_stream import EventStream
from rsq.broker.queue import Queue
from rsq.calls.source import BEGINNING, Source, order_of
from rsq.errors import BrokerRefused

MOST_COUNTED, PAGE = 1000, 100
"""So many unread events are counted, in pages of so many, for the server has no number of them."""


@dataclass(frozen=True)
class SourceInfo:
    """A stream of events and a group that is fed from it.

    length    entries in the stream; None: there is no such stream
    position  id of the last event that was fed
    unread    events behind that: `MOST_COUNTED` means so many or more
    oldest_ms  time of the first of them, ms since the epoch; None: all is read
    foreign   consumers of the group that are not of rsq
    lost      events that others deleted before they were read, as far as is known
    problem   why nothing more can be told, or ''
    """

    stream: str
    group: str
    queue: str
    length: int | None
    position: str
    unread: int
    oldest_ms: int | None
    foreign: list[str]
    lost: int = 0
    problem: str = ""


def sources(link: Link, queues: Iterable[Queue]) -> list[SourceInfo]:
    """The sources of these queues. Raises BrokerError."""
    found = []
    for queue in queues:
        fields = link.call("HGETALL", queue.keys.sources)
        for name, position in zip(fields[::2], fields[1::2], strict=True):
            group, _, stream = name.decode("utf-8", "replace").partition(":")
            found.append(_source(link.endpoint, queue.name, stream, group, position.decode()))
    return sorted(found, key=lambda each: (each.stream, each.group))


def waits(link: Link, queue: Queue, source: Source) -> bool:
    """Whether not all events of a source are fed yet. Raises BrokerError."""
    position = link.call("HGET", queue.keys.sources, source.key)
    if position is None:
        return True
    events = EventStream(link.endpoint, source.stream, source.group)
    try:
        return bool(events.read(position.decode(), 1))
    finally:
        events.close()


def _source(endpoint: Endpoint, queue: str, stream: str, group: str, position: str) -> SourceInfo:
    events = EventStream(endpoint, stream, group)
    try:
        look = events.look()
        unread, oldest_ms = _unread(events, position if look.last is not None else BEGINNING)
        foreign = events.consumers() if look.foreign else []
        lost = events.lost()
    except BrokerRefused as error:
        return SourceInfo(stream, group, queue, None, position, 0, None, [], problem=str(error))
    finally:
        events.close()
    length = None if look.last is None else look.length
    return SourceInfo(stream, group, queue, length, position, unread, oldest_ms, foreign, lost)


def _unread(events: EventStream, position: str) -> tuple[int, int | None]:
    """How many events lie behind a position, and when the first of them came."""
    number, oldest_ms = 0, None
    while number < MOST_COUNTED:
        page = events.read(position, PAGE)
        if page and oldest_ms is None:
            oldest_ms = order_of(page[0][0].decode())[0]
        number += len(page)
        if len(page) < PAGE:
            break
        position = page[-1][0].decode()
    return number, oldest_ms
