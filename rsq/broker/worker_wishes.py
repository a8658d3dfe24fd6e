"""What people wish of single workers: it stands in Redis while the worker lives, and the worker is told to look.

Each wish raises the worker's serial number. A worker that has looked tells in its next report, at once, which number it
has seen: so whoever wishes nothing but raises the number has a fresh report a moment later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsq import codec, keys
from rsq.errors import SettingsError

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.wire import Argument, Command

TTL_MS = 60_000
"""Life of a wish that no worker has heard; the worker itself keeps it on from then on."""

LOOK_S = 0.02
"""Between two looks for an answer."""


@dataclass(frozen=True)
class Wish:
    """All that is wished of one worker.

    serial    number of wishes so far
    stop      it is to stop, as by SIGTERM
    children  how many children it is to have, or None
    """

    serial: int = 0
    stop: bool = False
    children: int | None = None


def unpack_wish(reply: Any) -> Wish:
    """From what HGETALL answers. What is no number of a sensible size counts as not there."""
    fields = zip(reply[::2], reply[1::2], strict=True)
    numbers = {name: int(value) for name, value in fields if value.isdigit() and len(value) < 16}
    return Wish(numbers.get(b"serial", 0), bool(numbers.get(b"stop")), numbers.get(b"children"))


@dataclass(frozen=True)
class Report:
    """What a worker says of itself; `rsq.worker.portrait` writes it.

    at_ms     when it was written, by the worker's clock
    fields    texts and numbers by name, packed as they are
    detail    ``children``: rows of pid, whether it works, bodies run, resident memory in bytes or None; ``active``:
              rows of task id, task, queue, start (ms), pid
    """

    worker: str
    at_ms: int
    fields: Mapping[str, bytes]
    detail: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field as text; '' where the worker does not tell it."""
        return self.fields.get(name, b"").decode()

    def number(self, name: str) -> int:
        """A field as a number; 0 where the worker does not tell it."""
        return int(self.fields.get(name, b"0"))

    @property
    def queues(self) -> list[str]:
        return self.text("queues").split(",")

    @property
    def stopping(self) -> bool:
        return self.fields.get("stopping") == b"1"

    @property
    def working(self) -> int:
        """Children that consume."""
        return sum(works for _, works, *_ in self.detail["children"])


def read_reports(client: Client, only: Collection[str] | None = None) -> dict[str, Report]:
    """The live workers' last reports, by worker; `only` these."""
    namespace = client.settings.namespace
    (listed,) = client.ask(("ZRANGE", keys.workers(namespace), 0, -1, "WITHSCORES"))
    times = {name.decode(): int(float(score)) for name, score in zip(listed[::2], listed[1::2], strict=True)}
    names = [name for name in times if only is None or name in only]
    replies = client.ask(*(("HGETALL", keys.worker(namespace, name)) for name in names)) if names else []
    found = {}
    for name, reply in zip(names, replies, strict=True):
        fields = {key.decode(): value for key, value in zip(reply[::2], reply[1::2], strict=True)}
        if "host" in fields and "detail" in fields:  # else it has vanished, or has not told all yet
            found[name] = Report(name, times[name], fields, codec.decode(fields.pop("detail")))
    return found


def chosen(client: Client, destination: Collection[str] | None) -> dict[str, Report]:
    """The reports of the workers that are meant: all, or those of these names. Raises SettingsError."""
    if isinstance(destination, str):
        destination = [destination]
    reports = read_reports(client, destination)
    missing = [name for name in destination or () if name not in reports]
    if missing:
        live = ", ".join(read_reports(client))
        others = f"there are: {live}" if live else "there is none: start one with rsq -A your.module worker"
        raise SettingsError(f"no live worker is called {missing[0]!r}; {others}")
    return reports


def wish(client: Client, wishes: Mapping[str, Mapping[str, Argument]]) -> dict[str, int]:
    """Tell each worker what is wished of it; an empty map asks for a report. Gives the serial numbers.

    Everything is set, nothing added to, so that it may be repeated when a reply is lost.
    """
    namespace = client.settings.namespace
    commands: list[Command] = []
    for name, fields in wishes.items():
        key = keys.wish(namespace, name)
        if fields:
            commands.append(("HSET", key, *(value for pair in fields.items() for value in pair)))
        commands += [("HINCRBY", key, "serial", 1), ("PEXPIRE", key, TTL_MS), ("PUBLISH", key, "look")]
    replies = client.ask(*commands) if commands else []
    serials: dict[str, int] = {}
    for name, fields in wishes.items():
        if fields:
            replies.pop(0)
        serials[name] = int(replies[0])
        del replies[:3]
    return serials


def wait_for(
    client: Client,
    serials: Mapping[str, int],
    timeout_s: float,
    shows: Callable[[str, Report | None], bool] = lambda name, report: True,
) -> tuple[dict[str, Report], set[str]]:
    """Wait until all these workers have answered, and until their reports show what was wished. Gives the reports.

    shows    looks at a worker's report, None for one that has gone
    Returns  the last reports, and the workers that have answered: what has gone has
    """
    deadline = time.monotonic() + timeout_s
    reports: dict[str, Report] = {}
    heard: set[str] = set()
    waiting = set(serials)
    while True:
        fresh = read_reports(client, waiting)
        for name in list(waiting):
            report = fresh.get(name)
            if report is None:
                reports.pop(name, None)
            else:
                reports[name] = report
            if report is None or report.number("heard") >= serials[name]:
                heard.add(name)
                if shows(name, report):
                    waiting.discard(name)
        if not waiting or time.monotonic() >= deadline:
            return reports, heard
        time.sleep(min(LOOK_S, max(0.0, deadline - time.monotonic())))
