"""docket: one process, 40 tasks at once, on uvloop. Without results, nothing is kept of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from docket import Docket, Worker  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

AT_ONCE = 40
"""With more of them its pool of connections runs out."""

KEPT_S, DROPPED = 600, 0
SOON = timedelta(milliseconds=5)


async def add(x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.docket: Any = Docket("peer", url, execution_ttl=timedelta(seconds=KEPT_S if keep else DROPPED))
        self.docket.register(add)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self.docket:
            yield

    async def send(self) -> None:
        await self.docket.add(add)(1, 2)

    async def send_many(self, count: int) -> None:
        await self.docket.add_many(self.docket.call(add)(1, 2) for _ in range(count))

    async def round_trip(self) -> None:
        execution = await self.docket.add(add)(1, 2)
        await execution.get_result(timeout=timedelta(seconds=60))

    async def work(self) -> None:
        logging.disable(logging.INFO)
        async with self.docket, Worker(self.docket, concurrency=AT_ONCE, minimum_check_interval=SOON) as worker:
            await worker.run_forever()
