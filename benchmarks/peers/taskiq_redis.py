"""taskiq with taskiq-redis: the stream broker, 100 tasks at once, acknowledged once the result is saved, on uvloop."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from taskiq.api import run_receiver_task  # type: ignore[import-not-found, unused-ignore]
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

AT_ONCE = 100
LOOK_EVERY_S = 0.0001
"""A caller asks for its result again and again."""


async def work(x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        # From the first message on: by default it begins with those sent after the first worker.
        self.broker: Any = RedisStreamBroker(url, consumer_id="0", xread_count=1000)
        if keep:
            self.broker = self.broker.with_result_backend(RedisAsyncResultBackend(url, result_ex_time=600))
        self.add: Any = self.broker.task(task_name="add")(work)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        await self.broker.startup()
        yield
        await self.broker.shutdown()

    async def send(self) -> None:
        await self.add.kiq(1, 2)

    async def round_trip(self) -> None:
        call = await self.add.kiq(1, 2)
        await call.wait_result(check_interval=LOOK_EVERY_S, timeout=60)

    async def work(self) -> None:
        logging.disable(logging.INFO)
        await run_receiver_task(
            self.broker, run_startup=True, validate_params=False, max_async_tasks=AT_ONCE, max_prefetch=1000
        )
