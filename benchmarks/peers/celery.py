"""Celery: late acknowledgement, the solo pool (no hand-over to another process), a high prefetch, no gossip.

Its Redis transport takes one message with each request, whatever the prefetch is.
"""

from __future__ import annotations

from celery import Celery  # type: ignore[import-not-found, unused-ignore]

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


class Peer:
    def __init__(self, url: str, keep: bool) -> None:
        app.conf.update(broker_url=url, result_backend=url, task_ignore_result=not keep)
        add.ignore_result = not keep

    def send(self) -> None:
        add.delay(1, 2)

    def round_trip(self) -> None:
        add.delay(1, 2).get(timeout=60)

    def work(self) -> None:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        app.worker_main(["worker", "-P", "solo", "-l", "warning", *quiet])
