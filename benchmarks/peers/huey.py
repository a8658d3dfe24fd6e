"""huey: one worker thread, a blocking read, results announced in a list.

It takes a call out of Redis before it runs it: there is no at-least-once configuration.
"""

from __future__ import annotations

from typing import Any

from huey import RedisHuey, chord  # type: ignore[import-not-found, unused-ignore]
from huey.consumer import Consumer  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count


def work(x: int, y: int) -> int:
    count()
    return x + y


def sum_up(numbers: list[int]) -> int:
    count()
    return sum(numbers)


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.huey = RedisHuey("peer", url=url, results=keep, notify_result=keep)
        self.add: Any = self.huey.task(name="add")(work)
        self.total: Any = self.huey.task(name="total")(sum_up)

    def send(self) -> None:
        self.add(1, 2)

    def round_trip(self) -> None:
        self.add(1, 2).get(blocking=True, timeout=60)

    def send_chains(self, chains: int, steps: int) -> None:
        for _ in range(chains):
            pipeline = self.add.s(0, 1)
            for _ in range(steps - 1):
                pipeline.then(self.add, 1)
            self.huey.enqueue(pipeline)

    def send_chord(self, members: int) -> None:
        self.huey.enqueue(chord([self.add.s(0, 1) for _ in range(members)], self.total.s()))

    def work(self) -> None:
        Consumer(self.huey, workers=1, periodic=False, check_worker_health=False).run()
