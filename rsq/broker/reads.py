"""How a worker reads beside its fetches: while it is idle, and after a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rsq import keys
from rsq.broker.queue import Queue
from rsq.broker.wire import packed
from rsq.errors import BrokerError
from rsq.message import Delivery

if TYPE_CHECKING:
    from rsq.broker.connection import Link


def adopt(
    link: Link, queue: Queue, consumer: str, known: set[bytes], priorities: Iterable[int]
) -> tuple[list[Delivery], list[bytes]]:
    """What was delivered to this consumer and it never saw, as (deliveries, wakes): a reply was lost on the wire.

    known  entry ids that the consumer holds
    """
    deliveries: list[Delivery] = []
    wakes: list[bytes] = []
    for priority in priorities:
        stream = queue.keys.stream(priority)
        reply = link.call("XREADGROUP", "GROUP", keys.GROUP, consumer, "STREAMS", stream, "0")
        unknown = [entry for entry in reply[0][1] if entry[1] and entry[0] not in known]
        queue.sort(priority, unknown, deliveries, wakes)
    queue.mark_revoked(link, deliveries)
    return deliveries, wakes


class BlockingRead:
    """How an idle worker waits: one read on all streams in use of all its queues.

    in_use  pairs of a queue and the priorities that have a stream
    """

    def __init__(self, consumer: str, in_use: Iterable[tuple[Queue, Iterable[int]]]) -> None:
        self._consumer = consumer
        self._streams = {
            queue.keys.stream(priority).encode(): (queue, priority)
            for queue, priorities in in_use
            for priority in priorities
        }
        # After the read, so that what was revoked before it was read is always seen.
        self._look = packed("EXISTS", *{queue.keys.revoked for queue, _ in self._streams.values()})

    def __call__(
        self, link: Link, count: int, block_ms: int, on_time: Callable[[], None] | None = None
    ) -> list[tuple[Queue, list[Delivery], list[bytes]]]:
        """Wait `block_ms` at most for up to `count` messages a stream; give (queue, deliveries, wakes) for each.

        on_time  called when the time is up and the server has not answered yet
        """
        head = ("XREADGROUP", "GROUP", keys.GROUP, self._consumer, "COUNT", count, "BLOCK", max(1, block_ms), "STREAMS")
        request = packed(*head, *self._streams, *(">" for _ in self._streams))
        reply, some_revoked = link.pipeline_packed(
            [request, self._look], on_late=on_time and (block_ms / 1000, on_time)
        )
        for error in (reply, some_revoked):
            if isinstance(error, BrokerError):
                raise error
        result: list[tuple[Queue, list[Delivery], list[bytes]]] = []
        for name, entries in reply or ():
            queue, priority = self._streams[name]
            deliveries: list[Delivery] = []
            wakes: list[bytes] = []
            queue.sort(priority, entries, deliveries, wakes)
            if some_revoked:
                queue.mark_revoked(link, deliveries)
            result.append((queue, deliveries, wakes))
        return result
