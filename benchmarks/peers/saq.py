"""SAQ: one process, 100 jobs at once, on uvloop. A result that is not kept has the lifetime that says so.

A caller asks for its result again and again: `Queue.apply` looks twice a second, and a wait may miss the quick end of a
job and last until its timeout.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from saq import Queue, Worker  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

AT_ONCE = 100
KEPT_S, DROPPED = 600, -1


async def add(context: object, *, x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.queue: Any = Queue.from_url(url, max_concurrent_ops=AT_ONCE)
        self.ttl = KEPT_S if keep else DROPPED

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        await self.queue.connect()
        yield
        await self.queue.disconnect()

    async def send(self) -> None:
        await self.queue.enqueue("add", x=1, y=2, ttl=self.ttl)

    async def round_trip(self) -> None:
        job = await self.queue.enqueue("add", x=1, y=2, ttl=self.ttl)
        while not job.completed:
            await job.refresh()

    async def work(self) -> None:
        logging.disable(logging.INFO)
        await Worker(self.queue, [add], concurrency=AT_ONCE).start()
