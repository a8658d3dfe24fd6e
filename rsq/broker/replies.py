"""What the server answers to a worker, parsed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rsq.calls.message import WAKE, Delivery
from rsq.errors import BrokerError


@dataclass
class Fetched:
    """What one fetch brought.

    now_ms      the server's clock
    next_due_ms  when the next delayed message is due, or None
    paused      nothing is handed out while the queue is paused
    priorities  streams in use, the most urgent first
    deliveries  the messages, now in this consumer's pending list
    wakes       entries without a call, by priority, to be settled silently
    cut         there was room for more, which a bound of one call forbade
    unfinished  something is left of flows, to be carried on
    """

    now_ms: int
    next_due_ms: int | None
    paused: bool
    priorities: list[int]
    deliveries: list[Delivery] = field(default_factory=list)
    wakes: list[bytes] = field(default_factory=list)
    cut: bool = False
    unfinished: bool = False


@dataclass(frozen=True)
class Begin:
    """The answer: ``go``, ``superseded`` (`why`: by which version), ``wait`` (`why`: slot or rate) or ``newer``.

    newer  (revision, task, body, meta) that a duplicate brought: ask again, by the rules of these
    """

    word: str
    newer: tuple[int, str, bytes, bytes] | None = None
    wait_ms: int = 0
    why: str = ""


def parse_fetched(queue: str, reply: Any) -> Fetched:
    """The reply of `fetch`."""
    now_ms, next_due_ms, paused, priorities, claimed, fresh, revoked, cut, unfinished = reply
    due_ms = None if next_due_ms < 0 else next_due_ms
    fetched = Fetched(now_ms, due_ms, bool(paused), priorities, cut=bool(cut), unfinished=bool(unfinished))
    for priority, entry_id, fields, deliveries, crashes, overdue in claimed:
        if fields[0] == WAKE:
            fetched.wakes.append(entry_id)
            continue
        delivery = Delivery(queue, priority, entry_id, fields)
        delivery.deliveries = deliveries
        mark_killed(delivery, crashes, overdue)
        fetched.deliveries.append(delivery)
    for priority, entries in fresh:
        sort_entries(queue, priority, entries, fetched.deliveries, fetched.wakes)
    if claimed and len(priorities) > 1:
        fetched.deliveries.sort(key=lambda delivery: -delivery.priority)
    if revoked:
        names = {name.decode(errors="replace") for name in revoked}
        for delivery in fetched.deliveries:
            delivery.revoked = delivery.id in names
    return fetched


def sort_entries(queue: str, priority: int, entries: Any, deliveries: list[Delivery], wakes: list[bytes]) -> None:
    """Append each entry of one stream to `deliveries`, or to `wakes` where it carries no call."""
    for entry_id, fields in entries:
        if fields[0] == WAKE:
            wakes.append(entry_id)
        else:
            deliveries.append(Delivery(queue, priority, entry_id, fields))


def parse_begin(reply: Any) -> Begin:
    """The reply of `begin`."""
    match reply:
        case [b"go"]:
            return Begin("go")
        case [b"newer", revision, task, body, meta]:
            return Begin("newer", (revision, task.decode(), body, meta))
        case [b"superseded", version]:
            return Begin("superseded", why=version.decode())
        case [_, wait_ms, why]:
            return Begin("wait", wait_ms=wait_ms, why=why.decode())
    raise BrokerError(f"begin answered {reply!r}")


def mark_killed(delivery: Delivery, crashes: bytes | None, overdue: bytes | None) -> None:
    """Set what is known of processes that ran it before."""
    if crashes:
        number, _, how = crashes.decode().partition(" ")
        delivery.crashes, delivery.crash_how = int(number), how
    if overdue:
        delivery.overdue_s = float(overdue)
