"""arq: one process, 100 jobs at once, a queue that is asked every millisecond, on uvloop."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from arq import Worker, create_pool, func  # type: ignore[import-not-found, unused-ignore]
from arq.connections import RedisSettings  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

AT_ONCE = 100
KEPT_S, DROPPED = 600, 0
LOOK_EVERY_S = 0.001
"""Worker and caller ask again and again."""


async def add(context: object, x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.settings = RedisSettings.from_dsn(url)
        self.keep_s = KEPT_S if keep else DROPPED
        self.pool: Any = None

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self.pool = await create_pool(self.settings)
        yield
        await self.pool.aclose()

    async def send(self) -> None:
        await self.pool.enqueue_job("add", 1, 2)

    async def round_trip(self) -> None:
        job = await self.pool.enqueue_job("add", 1, 2)
        await job.result(timeout=60, poll_delay=LOOK_EVERY_S)

    async def work(self) -> None:
        logging.disable(logging.INFO)
        await Worker(
            [func(add, keep_result=self.keep_s)],
            redis_settings=self.settings,
            max_jobs=AT_ONCE,
            poll_delay=LOOK_EVERY_S,
            handle_signals=False,
            log_results=False,
        ).async_run()
