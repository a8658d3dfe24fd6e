"""`app.inspect()`: what the workers do, in Celery's shapes. Reads only.

Workers are asked for a fresh report first. Of one that does not answer the last report counts, as long as it lives.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rsq import codec, keys
from rsq.broker.client import unpack_delayed
from rsq.broker.worker_wishes import Report, chosen, wait_for, wish
from rsq.calls.message import unpack_meta
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.hints import hinted

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.wire import Argument, Command

Rows = dict[str, list[dict[str, Any]]]
"""Worker, or queue, to rows."""


@hinted("Inspect")
class Inspect:
    """Questions to live workers; each method asks anew and gives a dict by worker.

    destination  ids of workers; None = all
    timeout      seconds to wait for their answers
    limit        most rows of one worker, or queue, where there may be any number
    """

    def __init__(
        self, client: Client, destination: Collection[str] | None = None, timeout: float = 1.0, limit: int = 100
    ) -> None:
        self._client = client
        self._destination = destination
        self._timeout_s = timeout
        self._limit = limit
        self.silent: dict[str, int] = {}
        """Workers that did not answer the last question, with the time of the report that stood for the answer (ms)."""

    def ping(self) -> dict[str, dict[str, str]]:
        """Which workers answer. The supervisor does, whatever its children are busy with."""
        return {name: {"ok": "pong"} for name in self._reports() if name not in self.silent}

    def active(self) -> Rows:
        """The calls that run: id, name (of the task), queue, time_start (s since the epoch), worker_pid."""
        return {name: list(_active(report)) for name, report in self._reports().items()}

    def reserved(self) -> Rows:
        """Calls that a worker has fetched and not started: id, name, queue, priority."""
        return {name: self._reserved(report) for name, report in self._reports().items()}

    def scheduled(self) -> Rows:
        """Calls that wait for their time, the next ones first: id, name, priority, attempt, eta (s since the epoch).

        By queue: no worker holds them. Of the queues that the workers consume, or of all where none were named.
        """
        if self._destination is None:
            names: Iterable[str] = self._client.queue_names()
        else:
            reports = chosen(self._client, self._destination)
            names = sorted({queue for report in reports.values() for queue in report.queues})
        return {name: self._scheduled(name) for name in names}

    def stats(self) -> dict[str, dict[str, Any]]:
        """Figures of each worker: `done` counts the bodies that it has run since it began."""
        return {name: _stats(report) for name, report in self._reports().items()}

    def registered(self) -> dict[str, list[str]]:
        """Names of the tasks that each worker knows."""
        return {name: list(codec.decode(report.fields["tasks"])) for name, report in self._reports().items()}

    def _reports(self) -> dict[str, Report]:
        nothing_but_a_report: dict[str, dict[str, Argument]] = {
            name: {} for name in chosen(self._client, self._destination)
        }
        serials = wish(self._client, nothing_but_a_report)
        reports, heard = wait_for(self._client, serials, self._timeout_s)
        self.silent = {name: report.at_ms for name, report in reports.items() if name not in heard}
        return reports

    def _reserved(self, report: Report) -> list[dict[str, Any]]:
        begun = {row["id"] for row in _active(report)}
        rows: list[dict[str, Any]] = []
        for name in report.queues:
            queue = self._client.queue(name)
            streams = dict(zip(queue.keys.streams(), reversed(keys.PRIORITIES), strict=True))
            lengths = self._client.ask(*(("XLEN", stream) for stream in streams))
            for stream, length in zip(streams, lengths, strict=True):
                for entry in self._held(stream, report.worker, len(begun)) if length else ():
                    fields = dict(zip(entry[1][::2], entry[1][1::2], strict=True))
                    task_id = fields.get(b"id", b"").decode(errors="replace")
                    if task_id and task_id not in begun:
                        task = fields.get(b"task", b"").decode(errors="replace")
                        rows.append({"id": task_id, "name": task, "queue": name, "priority": streams[stream]})
        return rows[: self._limit]

    def _held(self, stream: str, worker: str, running: int) -> list[Any]:
        """Entries of one stream that this worker's children hold, running ones among them."""
        (summary,) = self._asked(("XPENDING", stream, keys.GROUP))
        # A child's name is its worker's with three numbers behind it.
        mine = [name for name, _ in summary[3] or () if name.decode().rsplit(".", 3)[0] == worker] if summary else []
        most = self._limit + running
        pending = self._asked(*(("XPENDING", stream, keys.GROUP, "-", "+", most, name) for name in mine))
        ids = [row[0] for some in pending for row in some or ()][:most]
        found = self._asked(*(("XRANGE", stream, entry_id, entry_id) for entry_id in ids))
        return [entries[0] for entries in found if entries]

    def _asked(self, *commands: Command) -> list[Any]:
        """The replies; None where the stream or its group has gone meanwhile."""
        if not commands:
            return []
        with self._client.link() as link:
            replies = link.pipeline(commands)
        for reply in replies:
            if isinstance(reply, BrokerUnavailable):
                raise reply
        return [None if isinstance(reply, BrokerError) else reply for reply in replies]

    def _scheduled(self, name: str) -> list[dict[str, Any]]:
        k = self._client.queue(name).keys
        (due,) = self._client.ask(("ZRANGE", k.delayed, 0, self._limit - 1, "WITHSCORES"))
        times = {task_id: int(float(score)) for task_id, score in zip(due[::2], due[1::2], strict=True)}
        (packed,) = self._client.ask(("HMGET", k.messages, *times)) if times else ([],)
        rows = []
        for (task_id, due_ms), each in zip(times.items(), packed, strict=True):
            if each is not None:  # else it became ready meanwhile
                priority, task, _, meta = unpack_delayed(each)
                attempt = int(unpack_meta(meta).get("attempt", 1))
                row = {"id": task_id.decode(), "name": task, "priority": priority, "eta": due_ms / 1000}
                rows.append({**row, "attempt": attempt})
        return rows


def _active(report: Report) -> Iterator[dict[str, Any]]:
    for task_id, task, queue, since_ms, pid in report.detail["active"]:
        yield {"id": task_id, "name": task, "queue": queue, "time_start": since_ms / 1000, "worker_pid": pid}


def _stats(report: Report) -> dict[str, Any]:
    children = report.detail["children"]
    return {
        "host": report.text("host"),
        "pid": report.number("pid"),
        "app": report.text("app"),
        "queues": report.queues,
        "uptime": round(time.time() - report.number("started") / 1000, 1),
        "lease": report.number("lease_ms") / 1000,
        "stopping": report.stopping,
        "done": report.number("done"),
        "rss": report.number("rss") or None,
        "pool": {
            "implementation": report.text("executor"),
            "children": report.number("children"),
            "wanted": report.number("wanted"),
            "most": report.number("most"),
            "max-concurrency": report.number("wanted") * report.number("slots"),
            "processes": [
                {"pid": pid, "working": works, "done": done, "rss": size} for pid, works, done, size in children
            ],
        },
    }
