"""Events that go into a stream which others read, too: each id once, however often it is tried.

Written once for threads and coroutines, as talks (see `rsq.broker.exchange`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from rsq import keys
from rsq.broker import scripts
from rsq.broker.answers import too_few
from rsq.broker.connection import ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange, repeating
from rsq.broker.queue import replication
from rsq.broker.wire import Argument
from rsq.errors import BrokerError, BrokerUnavailable, NotReplicated

PAGE, PAGE_BYTES = 500, 1024 * 1024
"""Events of one write: at most so many, and of these bytes together, but one at least."""


class NewEvent(NamedTuple):
    """An event to be published.

    id      '' = none
    fields  names and values in turn
    """

    id: str
    fields: Sequence[str | bytes]


class Published(NamedTuple):
    """What became of an event.

    id         of its entry in the stream
    duplicate  True: an event with the id that was given is there already; the entry is that one
    """

    id: str
    duplicate: bool


def publishing(
    stream: str, events: Sequence[NewEvent], ttl_ms: int, replicas: int, timeout_s: float, answer_s: float = math.inf
) -> Exchange[list[Published]]:
    """Add events to a stream, in pages, each with a deadline of its own; gives what became of each.

    Those with an id are tried until the deadline; others once, for nobody could tell whether they are there.

    ttl_ms    how long ids are remembered
    replicas  how many must have them before this ends
    answer_s  how long one try waits
    Raises    BrokerUnavailable, BrokerRefused, NotReplicated
    """
    done: list[Published] = []
    for page in _pages(events):
        deadline = Deadline(timeout_s)
        write = partial(_write, stream, page, ttl_ms, replicas)
        try:
            if all(event.id for event in page):
                answers = yield from repeating(write, deadline, math.inf if replicas else answer_s)
            else:
                answers = yield from write(deadline)
        except BrokerUnavailable as error:
            what = "the event" if len(events) == 1 else f"events {len(done) + 1} to {len(events)} of these"
            how = "does no harm with the same id" if page[0].id else "without doubling, give an id"
            text = f"{error}; {what} may or may not be in stream {stream}. To send again {how}"
            raise BrokerUnavailable(text) from None
        done += [Published(answer.decode().lstrip("="), answer[:1] == b"=") for answer in answers]
    return done


def _write(
    stream: str, events: Sequence[NewEvent], ttl_ms: int, replicas: int, deadline: Deadline
) -> Exchange[list[bytes]]:
    tag = keys.beside(stream)
    rows: list[Argument] = []
    for event in events:
        rows += (event.id, len(event.fields), *event.fields)

    def then() -> list[bytes]:
        return replication(f"{tag}:rsq:barrier", replicas, deadline.left_s()) if replicas else []

    call: ScriptCall = (scripts.PUBLISH, tag, (stream, ttl_ms, *rows))
    answers, *waited = yield from running([call], deadline, then, known=not replicas)
    if isinstance(answers, BrokerError):
        raise answers
    if replicas:
        _check_replicated(stream, events, waited[-1], replicas)
    found: list[bytes] = answers
    return found


def _check_replicated(stream: str, events: Sequence[NewEvent], count: Any, replicas: int) -> None:
    why = too_few(count, replicas)
    if not why:
        return
    raise NotReplicated(
        f"what was published to stream {stream} is on the master, but may be lost if it fails before its replicas have "
        f"caught up: {why}. With an id an event can be sent again",
        [event.id for event in events],
    )


def _pages(events: Sequence[NewEvent]) -> Iterator[Sequence[NewEvent]]:
    first = size = 0
    for i, event in enumerate(events):
        own = sum(map(len, event.fields))
        if i > first and (i - first >= PAGE or size + own > PAGE_BYTES or bool(event.id) != bool(events[first].id)):
            yield events[first:i]
            first, size = i, 0
        size += own
    if first < len(events):
        yield events[first:]
