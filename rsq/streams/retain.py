"""`app.stream(...)`: streams of events that are kept short, and the thread of a worker that does so."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rsq.app import BaseApp
from rsq.broker.connection import Endpoint
from rsq.broker.trimming import StreamTrimmer, Trimmed
from rsq.calls.retention import Retention
from rsq.errors import SettingsError
from rsq.streams.saying import Saying
from rsq.task import Task

log = logging.getLogger("rsq.worker")

EVERY_S = 1.0
"""So often a stream is trimmed."""

LEASE_MS = 5000
"""Who trims is not heard of for so long: then another one does."""

STEPS = 100
"""Steps of one stream before another one has its turn."""

WHY = {
    "missing": "does not exist",
    "unread": "has not read them",
    "pending": "has not acknowledged all of what it has read",
}


class Retentions:
    """The streams that an app keeps short; a part of it."""

    def __init__(self, app: BaseApp) -> None:
        self.declared: dict[str, Retention] = {}

    def declare(self, kept: Retention) -> None:
        """Raises SettingsError where something else was said of this stream."""
        if self.declared.setdefault(kept.stream, kept) != kept:
            raise SettingsError(f"app.stream says two things of {kept.stream!r}: leave one of them out")


def retentions_of(app: BaseApp) -> list[Retention]:
    """The streams that an app keeps short."""
    return list(app.part(Retentions).declared.values())


class Trimmer:
    """Keeps streams short. `start` has it work in a thread of its own.

    One of all workers trims a stream, to spare the work: two at once would do no harm.
    """

    def __init__(self, endpoint: Endpoint, kept: Sequence[Retention], groups: Mapping[str, Sequence[str]]) -> None:
        me = os.urandom(8).hex()
        self._streams = [StreamTrimmer(endpoint, each, groups.get(each.stream, ()), me) for each in kept]
        self._saying = Saying()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="rsq-trimmer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Trim no more; the lease ends by itself."""
        self._stop.set()

    def run(self) -> None:
        """The thread: one round after the other until `stop`."""
        while not self._stop.is_set():
            for stream in self._streams:
                try:
                    self._keep_short(stream)
                except Exception as error:
                    self._saying.warn(f"stream {stream.kept.stream} is not trimmed: {error}", error)
                    stream.close()
            self._stop.wait(EVERY_S)
        for stream in self._streams:
            stream.close()

    def _keep_short(self, stream: StreamTrimmer) -> None:
        for _ in range(STEPS):
            done = stream.step(LEASE_MS)
            self._tell(stream.kept, done)
            if not done.more or self._stop.is_set():
                return

    def _tell(self, kept: Retention, done: Trimmed) -> None:
        if done.dropped:
            log.warning(
                "stream %s: dropped %d entries that group %s has not read or not acknowledged, as hard=True says",
                kept.stream,
                done.dropped,
                done.held_by,
            )
        elif done.held_by:
            self._saying.warn(
                f"stream {kept.stream} is held back from {kept} by group {done.held_by}, which {WHY[done.why]}"
            )
        for group in done.silent:
            self._saying.warn(
                f"stream {kept.stream}: group {group} counts no more, for it has something to read and has not moved"
            )


def trimmers_of(tasks: Mapping[str, Task[..., Any]], kept: Sequence[Retention], endpoint: Endpoint) -> list[Trimmer]:
    """One for all, if there are any."""
    groups: dict[str, list[str]] = {}
    for task in tasks.values():
        if task.source is not None:
            groups.setdefault(task.source.stream, []).append(task.source.group)
    return [Trimmer(endpoint, kept, groups)] if kept else []
