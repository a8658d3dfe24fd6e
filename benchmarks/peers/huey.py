"""huey: one worker thread, a blocking read, results announced in a list.

It takes a call out of Redis before it runs it: there is no at-least-once configuration.
"""

from __future__ import annotations

from typing import Any

from huey import RedisHuey  # type: ignore[import-not-found, unused-ignore]
from huey.consumer import Consumer  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count


def work(x: int, y: int) -> int:
    count()
    return x + y


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        self.huey = RedisHuey("peer", url=url, results=keep, notify_result=keep)
        self.add: Any = self.huey.task(name="add")(work)

    def send(self) -> None:
        self.add(1, 2)

    def round_trip(self) -> None:
        self.add(1, 2).get(blocking=True, timeout=60)

    def work(self) -> None:
        Consumer(self.huey, workers=1, periodic=False, check_worker_health=False).run()
