"""Looking at queues and workers: what `rsq status` shows. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsq import keys
from rsq.broker.connection import Link
from rsq.broker.queue import REFUSE, Queue
from rsq.broker.worker_wishes import read_reports
from rsq.errors import BrokerError, RsqError

if TYPE_CHECKING:
    from rsq.broker.client import Client


@dataclass(frozen=True)
class QueueCounts:
    """What one queue holds, and what it has done so far.

    ready    waiting for a worker, those handed back included
    running  delivered to a live worker, fetched ahead or started
    delayed  waiting for their time, retries included
    dead     dead letters
    paused   nothing is handed out; `refusing`: nothing is taken in, either
    """

    queue: str
    ready: int
    running: int
    delayed: int
    dead: int
    paused: bool
    refusing: bool
    counters: dict[str, int]


@dataclass(frozen=True)
class WorkerInfo:
    """What a live worker says of itself."""

    id: str
    host: str
    pid: int
    app: str
    queues: list[str]
    executor: str
    children: int
    started_ms: int
    stopping: bool
    running: list[str]


def counts(link: Link, queue: Queue) -> QueueCounts:
    """Count one queue, in two round trips. Of a queue that is in use the numbers are of slightly different moments."""
    k = queue.keys
    streams = k.streams()
    first = link.pipeline(
        [
            ("ZCARD", k.delayed),
            ("XLEN", k.dead),
            ("GET", k.paused),
            ("HGETALL", k.stats),
            ("SMEMBERS", k.orphans),
            *(("XLEN", stream) for stream in streams),
        ]
    )
    delayed, dead, paused, stats, orphans, *lengths = (_checked(reply) for reply in first)
    used = [stream for stream, length in zip(streams, lengths, strict=True) if length]
    pending = link.pipeline([("XPENDING", stream, keys.GROUP) for stream in used]) if used else []
    running = 0
    for summary in pending:
        if isinstance(summary, BrokerError) or not summary[0]:
            continue  # no group yet, or nothing pending
        running += sum(int(number) for consumer, number in summary[3] if consumer not in orphans)
    counters = {name.decode(): int(value) for name, value in zip(stats[::2], stats[1::2], strict=True)}
    ready = max(0, sum(lengths) - running)
    return QueueCounts(queue.name, ready, running, delayed, dead, paused is not None, paused == REFUSE, counters)


def workers(client: Client) -> list[WorkerInfo]:
    """The live workers: those whose report has not expired."""
    return [
        WorkerInfo(
            id=name,
            host=report.text("host"),
            pid=report.number("pid"),
            app=report.text("app"),
            queues=report.queues,
            executor=report.text("executor"),
            children=report.number("children"),
            started_ms=report.number("started"),
            stopping=report.stopping,
            running=report.text("running").split(),
        )
        for name, report in read_reports(client).items()
    ]


def _checked(reply: Any) -> Any:
    if isinstance(reply, RsqError):
        raise reply
    return reply
