"""How a worker reads beside its fetches: while it is idle, and after a fault."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsq import keys
from rsq.broker.replies import sort_entries
from rsq.broker.wire import packed, packed_texts
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.errors import BrokerError

if TYPE_CHECKING:
    from rsq.broker.connection import Link


PAGE_BYTES, PAGE = 1024 * 1024, 16
"""What one page of what is adopted is to hold at most, in bytes (but one entry at least) and in entries."""


def adopting(
    link: Link, queue: WorkerQueue, consumer: str, known: set[bytes], priority: int
) -> Iterator[tuple[list[Delivery], list[bytes]]]:
    """What was delivered to this consumer and it never saw, as (deliveries, wakes): a reply was lost on the wire.

    Page by page, each of which counts: on a bad line the whole might never come through at once.

    known  entry ids that the consumer holds
    """
    for entries in _pending(link, queue.keys.stream(priority), consumer):
        unknown = [entry for entry in entries if entry[1] and entry[0] not in known]
        deliveries: list[Delivery] = []
        wakes: list[bytes] = []
        sort_entries(queue.name, priority, unknown, deliveries, wakes)
        queue.mark_revoked(link, deliveries)
        queue.mark_killed(link, deliveries)
        if unknown:
            yield deliveries, wakes


def _pending(link: Link, stream: str, consumer: str) -> Iterator[list[Any]]:
    """What is delivered to a consumer, in pages: their sizes are known only when they are here, so they grow slowly."""
    page, last = 1, b"0"
    while True:
        reply = link.call("XREADGROUP", "GROUP", keys.GROUP, consumer, "COUNT", page, "STREAMS", stream, last)
        entries = reply[0][1]
        yield entries
        if len(entries) < page:
            return
        last = entries[-1][0]
        largest = max(sum(map(len, fields or ())) for _, fields in entries)
        page = max(1, min(2 * page, PAGE, PAGE_BYTES // max(1, largest)))


def strays(
    link: Link, queue: WorkerQueue, consumer: str, held: Collection[Delivery], priorities: Sequence[int]
) -> tuple[bool, set[str]]:
    """What is this consumer's by the word of the server, though it knows nothing of it.

    held     what it knows of, as it was before this
    Returns  (whether there are entries of that kind, the ids of such calls that were acknowledged early)
    """
    known = {priority: entries_of(held, queue, priority) for priority in priorities}
    # Of one more than are known one is not, if there is any.
    looks = [
        ("XPENDING", queue.keys.stream(priority), keys.GROUP, "-", "+", len(known[priority]) + 1, consumer)
        for priority in priorities
    ]
    *pending, taken = link.pipeline([*looks, ("SMEMBERS", queue.keys.taken(consumer))])
    entries = any(
        row[0] not in known[priority]
        for priority, rows in zip(priorities, pending, strict=True)
        # A group that is gone has nothing.
        for row in ([] if isinstance(rows, BrokerError) else rows)
    )
    mine = {delivery.id for delivery in held if delivery.queue == queue.name}
    return entries, set() if isinstance(taken, BrokerError) else {id.decode() for id in taken} - mine


def entries_of(held: Collection[Delivery], queue: WorkerQueue, priority: int) -> set[bytes]:
    """The entry ids of one stream: two streams may use the same one."""
    return {each.entry_id for each in held if (each.queue, each.priority) == (queue.name, priority)}


REVOKED_WEIGHT = 14
"""More than there are other signs of a queue: so one number tells those apart from revocations."""


def signs(queue: WorkerQueue) -> list[str]:
    """What an idle worker counts by EXISTS, which counts a key as often as it is named."""
    at = queue.keys
    return [at.revoked] * REVOKED_WEIGHT + [at.paused, at.orphans, at.consumers, at.delayed, *at.streams()[:-1]]


@dataclass
class Waited:
    """What a blocking read brought.

    got          (queue, deliveries, wakes) for each stream that had something
    calm         there is nothing of which the last fetch does not know: no whole fetch is needed
    next_due_ms  when the next delayed message is due, or None
    """

    got: list[tuple[WorkerQueue, list[Delivery], list[bytes]]]
    calm: bool
    next_due_ms: int | None


class BlockingRead:
    """How an idle worker waits: one read on all streams in use of all its queues, and after it a look at the rest.

    It may be called again as long as what the last fetch has seen is still so.

    in_use   pairs of a queue and the priorities that have a stream; without any the queue is paused
    delayed  names of the queues that hold delayed messages
    """

    def __init__(
        self, consumer: str, in_use: Iterable[tuple[WorkerQueue, Sequence[int]]], delayed: Collection[str] = ()
    ) -> None:
        in_use = list(in_use)
        self._streams = {
            queue.keys.stream(priority).encode(): (queue, priority)
            for queue, priorities in in_use
            for priority in priorities
        }
        self._head = ("XREADGROUP", "GROUP", keys.GROUP, consumer, "COUNT")
        self._tail: tuple[str | bytes, ...] = ("STREAMS", *self._streams, *[">"] * len(self._streams))
        # After the read, so that what was revoked before it was read is always seen.
        looks = [packed_texts("EXISTS", *signs(queue)) for queue, _ in in_use]
        dues = [
            packed("ZRANGE", queue.keys.delayed, 0, 0, "WITHSCORES") for queue, _ in in_use if queue.name in delayed
        ]
        self._looks = looks + dues
        # One sign is that there are consumers, one that there are delayed messages, and each urgent stream is one.
        self._expected = {queue.name: len(used) + (queue.name in delayed) if used else -1 for queue, used in in_use}

    def __call__(self, link: Link, count: int, block_ms: int, on_time: Callable[[], None] | None = None) -> Waited:
        """Wait `block_ms` at most for up to `count` messages a stream.

        on_time  called when the time is up and the server has not answered yet
        """
        request = packed_texts(*self._head, str(count), "BLOCK", str(max(1, block_ms)), *self._tail)
        reply, *looks = link.pipeline_packed([request, *self._looks], on_late=on_time and (block_ms / 1000, on_time))
        for error in (reply, *looks):
            if isinstance(error, BrokerError):
                raise error
        dues = looks[len(self._expected) :]
        seen = {name: divmod(look, REVOKED_WEIGHT) for name, look in zip(self._expected, looks, strict=False)}
        waited = Waited(
            [],
            all(seen[name][1] == expected for name, expected in self._expected.items()) and all(dues),
            min((int(float(due[1])) for due in dues if due), default=None),
        )
        for name, entries in reply or ():
            queue, priority = self._streams[name]
            deliveries: list[Delivery] = []
            wakes: list[bytes] = []
            sort_entries(queue.name, priority, entries, deliveries, wakes)
            if seen[queue.name][0]:
                queue.mark_revoked(link, deliveries)
            waited.got.append((queue, deliveries, wakes))
        return waited
