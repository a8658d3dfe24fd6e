"""The beats of a chaos run: two processes that fire schedules of one second, on a wire of their own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis

from tests.chaos import tasks
from tests.chaos.journal import Journal
from tests.chaos.kinds import TICKS
from tests.chaos.network import Wire
from tests.clusters import AnyServer
from tests.helpers import wait_until
from tests.integration.conftest import STOP_S, Worker, is_alive, kill

BEATS = 2
CATCH_UP_S = 30.0


class Beats:
    """Starts beats, and another for each that is gone; tells the journal which slots they had to fire."""

    def __init__(self, server: AnyServer, journal: Journal, directory: Path) -> None:
        self._server = server
        self._journal = journal
        self._directory = directory
        self._started: list[Worker] = []
        self._since: dict[str, int] = {}
        self.wire = Wire(server)
        self.now = [self._start() for _ in range(BEATS)]

    def _start(self) -> Worker:
        path = os.pathsep.join(path for path in sys.path if path)
        replicas = {"RSQ_WAIT_REPLICAS": str(tasks.app.settings.wait_replicas)}
        environment = {**os.environ, **tasks.environment(), **replicas, "RSQ_URL": self.wire.url, "PYTHONPATH": path}
        log = self._directory / f"beat-{len(self._started)}.log"
        self._started.append(Worker("-A", "tests.chaos.tasks", "beat", env=environment, log=log))
        return self._started[-1]

    def all_begun(self) -> bool:
        """Whether each has written its schedules, and each schedule was fired."""
        if not self._since and all(map(_has_begun, self.now)):
            fired = {kind: self._fired(kind) for kind in TICKS}
            if all(fired.values()):
                self._since = fired
        return bool(self._since)

    def replace(self, beat: Worker) -> Callable[[], bool]:
        """Put another into the place of one that was killed; what is given back tells whether it has begun."""
        beat.process.wait(STOP_S)
        new = self.now[self.now.index(beat)] = self._start()
        return lambda: _has_begun(new)

    def stop(self) -> None:
        """Nothing strikes any more: see them catch up, and end them in good order."""
        with self._server.client() as client:
            now_ms = _ms(client)
        caught_up = lambda: all(self._fired(kind) >= now_ms // 1000 * 1000 for kind in TICKS)  # noqa: E731
        try:
            wait_until(caught_up, CATCH_UP_S, "the beats to catch up")
        except AssertionError as error:
            self._problem(str(error))
        for beat in self.now:
            beat.signal(signal.SIGTERM)
        for beat in self.now:
            code = beat.process.wait(STOP_S)
            if code != 0:
                self._problem(f"beat {beat.pid} ended with {code} after SIGTERM: {beat.log_path.name}")
        with self._server.client() as client:
            at, now_ms = time.monotonic(), _ms(client)
        for kind, since in self._since.items():
            self._journal.write("ticked", at=at, now_ms=now_ms, kind=kind, since=since, until=self._fired(kind))

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        for beat in self._started:
            if is_alive(beat.pid):
                kill(beat.pid)
            beat.process.wait()
        self.wire.close()

    def _fired(self, kind: str) -> int:
        """The last slot that was fired, in ms; 0 = none yet, or the server is away."""
        key = tasks.keys_of("default").fired(kind)
        try:
            with self._server.client() as client:
                return int((client.get(key) or b"0 0").split()[1])
        except (redis.RedisError, LookupError):
            return 0

    def _problem(self, text: str) -> None:
        self._journal.write("problem", text=text)


def _has_begun(beat: Worker) -> bool:
    return "rsq beat " in beat.log()


def _ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)
