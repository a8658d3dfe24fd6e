"""RQ: the worker that forks for no job. With a retry, a job whose worker died is run again."""

from __future__ import annotations

import logging

import redis
from rq import Queue, Retry, SimpleWorker  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

KEPT_S, DROPPED = 600, 0


def add(x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.queue = Queue("peer", connection=redis.Redis.from_url(url))
        self.ttl = KEPT_S if keep else DROPPED

    def send(self) -> None:
        self.queue.enqueue(add, args=(1, 2), result_ttl=self.ttl, retry=Retry(3))

    def send_many(self, count: int) -> None:
        calls = [Queue.prepare_data(add, (1, 2), result_ttl=self.ttl, retry=Retry(3)) for _ in range(count)]
        self.queue.enqueue_many(calls)

    def round_trip(self) -> None:
        self.queue.enqueue(add, args=(1, 2), result_ttl=self.ttl, retry=Retry(3)).latest_result(timeout=60)

    def work(self) -> None:
        SimpleWorker([self.queue], connection=self.queue.connection, log_job_description=False).work(
            logging_level=logging.getLevelName(logging.WARNING)
        )
