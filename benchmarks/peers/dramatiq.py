"""Dramatiq: one process, a prefetch of 1,000. It acknowledges after the run, and retries by its usual middleware."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ["dramatiq_queue_prefetch"] = "1000"  # noqa: SIM112  # dramatiq reads it when it is imported

import dramatiq  # type: ignore[import-not-found, unused-ignore]
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found, unused-ignore]
from dramatiq.middleware import GroupCallbacks  # type: ignore[import-not-found, unused-ignore]
from dramatiq.rate_limits.backends import RedisBackend as RedisRateBackend  # type: ignore[import-not-found, unused-ignore]
from dramatiq.results import Results  # type: ignore[import-not-found, unused-ignore]
from dramatiq.results.backends import RedisBackend  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

THREADS = 1
"""More of them only pass the interpreter to and fro when the tasks do nothing."""

IDLE_MS = 1
"""An idle consumer sleeps at most so long between two looks: the quickest that it can be told to be."""


def work(x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.broker = RedisBroker(url=url)
        if keep:
            self.broker.add_middleware(Results(backend=RedisBackend(url=url), store_results=True))
            self.broker.add_middleware(GroupCallbacks(RedisRateBackend(url=url)))
        dramatiq.set_broker(self.broker)
        self.add: Any = dramatiq.actor(work, actor_name="add", broker=self.broker)

    def send(self) -> None:
        self.add.send(1, 2)

    def round_trip(self) -> None:
        self.add.send(1, 2).get_result(block=True, timeout=60_000)

    def send_chains(self, chains: int, steps: int) -> None:
        for _ in range(chains):
            dramatiq.pipeline([self.add.message(0, 1), *[self.add.message(1) for _ in range(steps - 1)]]).run()

    def send_chord(self, members: int) -> None:
        """Its callback gets no results: it is one body more."""
        whole = dramatiq.group([self.add.message(0, 1) for _ in range(members)])
        whole.add_completion_callback(self.add.message(0, 1))
        whole.run()

    def work(self) -> None:
        dramatiq.Worker(self.broker, worker_threads=THREADS, worker_timeout=IDLE_MS).start()
        time.sleep(3600)
