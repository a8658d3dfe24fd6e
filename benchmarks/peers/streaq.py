"""streaQ: one process, 100 tasks at once, a prefetch of 1,000, on uvloop. Calls in bulk go out in one pipeline.

A caller asks for its result again and again: `Task.result` makes a subscription for each, whose end takes 0.1 s.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from streaq import Worker  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

AT_ONCE = 100
KEPT_S, DROPPED = 600, 0


async def work(x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.worker: Any = Worker(url, concurrency=AT_ONCE, prefetch=1000, anyio_kwargs={"use_uvloop": True})
        self.add: Any = self.worker.task(ttl=KEPT_S if keep else DROPPED, name="add")(work)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self.worker:
            yield

    async def send(self) -> None:
        await self.add.enqueue(1, 2)

    async def send_many(self, count: int) -> None:
        await self.worker.enqueue_many([self.add.enqueue(1, 2) for _ in range(count)])

    async def round_trip(self) -> None:
        call = await self.add.enqueue(1, 2)
        while not (raw := await self.worker.redis.get(self.worker.results_key + call.id)):
            pass
        await self.worker.deserialize(raw)

    def work(self) -> None:
        logging.disable(logging.INFO)
        self.worker.run_sync()
