"""Celery: late acknowledgement, the solo pool (no hand-over to another process), a high prefetch, no gossip.

Its Redis transport takes one message with each request, whatever the prefetch is.
"""

from __future__ import annotations

from celery import Celery, chain, chord  # type: ignore[import-not-found, unused-ignore]

from peers.counting import count

app = Celery("peer", set_as_current=True)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1000,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="add")
def add(x: int, y: int) -> int:
    count()
    return x + y


@app.task(name="total")
def total(numbers: list[int]) -> int:
    count()
    return sum(numbers)


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        app.conf.update(broker_url=url, result_backend=url, task_ignore_result=not keep)
        add.ignore_result = not keep

    def send(self) -> None:
        add.delay(1, 2)

    def round_trip(self) -> None:
        add.delay(1, 2).get(timeout=60)

    def send_chains(self, chains: int, steps: int) -> None:
        for _ in range(chains):
            chain(add.s(0, 1), *[add.s(1) for _ in range(steps - 1)]).apply_async()

    def send_chord(self, members: int) -> None:
        chord([add.s(0, 1) for _ in range(members)])(total.s())

    def work(self) -> None:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        app.worker_main(["worker", "-P", "solo", "-l", "warning", *quiet])
