"""The workers of a chaos run: real processes in a fixed number of places, each place with a wire of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.chaos import tasks
from tests.chaos.journal import Journal
from tests.chaos.network import Wire
from tests.clusters import AnyServer
from tests.integration.conftest import Worker, is_alive, kill

STOP_S = 30.0
CHILDREN = 2


class Place:
    """Where one worker runs; another takes its place when it is gone."""

    def __init__(self, number: int, wire: Wire, worker: Worker) -> None:
        self.number = number
        self.wire = wire
        self.worker = worker
        self.struck = False
        """A fault is at work here."""

    @property
    def ready(self) -> bool:
        """Whether the worker has begun and was not ended on purpose."""
        return self.worker.process.poll() is None and has_begun(self.worker)


def has_begun(worker: Worker) -> bool:
    return "  server " in worker.log()


class Fleet:
    """Starts, replaces and ends workers, and notices when one ends by itself."""

    def __init__(self, places: int, server: AnyServer, journal: Journal, directory: Path, lease_s: float) -> None:
        self._journal = journal
        self._directory = directory
        self._lease_s = lease_s
        self._started = 0
        self._leaving: list[tuple[Worker, float]] = []
        self._processes: set[int] = set()
        self._environment = {
            **os.environ,
            **tasks.environment(),
            tasks.JOURNAL: str(directory / "journal"),
            tasks.SERVER: server.url,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "RSQ_DEAD_MAX_LENGTH": "1000000",
        }
        self.places: list[Place] = []
        for number in range(places):
            wire = Wire(server)
            self.places.append(Place(number, wire, self._start(number, wire)))

    def all_ready(self) -> bool:
        """Whether every worker has begun and has all its children."""
        self.tend()
        return all(place.ready and len(self.family(place)) == CHILDREN + 1 for place in self.places)

    def _start(self, number: int, wire: Wire) -> Worker:
        self._started += 1
        log = self._directory / f"worker-{number}-{self._started}.log"
        arguments = ("-A", "tests.chaos.tasks", "worker", "-c", str(CHILDREN), "--lease", str(self._lease_s))
        worker = Worker(*arguments, env={**self._environment, "RSQ_URL": wire.url}, log=log)
        self._processes.add(worker.pid)
        return worker

    def family(self, place: Place) -> list[int]:
        """The supervisor and its children."""
        found = [place.worker.pid, *place.worker.children()]
        self._processes.update(found)
        return found

    def replace(self, place: Place) -> None:
        """Put a new worker there. The old one is gone or told to go."""
        place.worker = self._start(place.number, place.wire)

    def leave(self, worker: Worker) -> None:
        """SIGTERM: it must end in good order, and soon."""
        worker.signal(signal.SIGTERM)
        self._leaving.append((worker, time.monotonic() + STOP_S))

    def has_left(self, worker: Worker) -> bool:
        return all(worker is not leaving for leaving, _ in self._leaving)

    def tend(self) -> None:
        """See who has ended, and whether it was meant to."""
        for leaving in list(self._leaving):
            worker, deadline = leaving
            code = worker.process.poll()
            if code is None and time.monotonic() < deadline:
                continue
            self._leaving.remove(leaving)
            if code is None:
                self._problem(f"worker {worker.pid} did not end within {STOP_S:g} s of SIGTERM")
                worker.kill()
            elif code != 0:
                self._problem(f"worker {worker.pid} ended with {code} after SIGTERM: {worker.log_path.name}")
        for place in self.places:
            worker = place.worker
            code = worker.process.poll()
            if code is None or place.struck:
                continue
            # One that cannot reach the server when it starts may say so and end; one that has begun may not.
            if has_begun(worker):
                self._problem(f"worker {worker.pid} ended by itself with {code}: {worker.log_path.name}")
            self.replace(place)

    def _problem(self, text: str) -> None:
        self._journal.write("problem", text=text)

    def stop(self) -> list[str]:
        """End all in good order; gives the processes that stayed behind."""
        for place in self.places:
            self.family(place)
            place.struck = True
            self.leave(place.worker)
        while self._leaving:
            self.tend()
            time.sleep(0.02)
        deadline = time.monotonic() + STOP_S
        while (left := [pid for pid in self._processes if is_alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [f"{pid} of a worker that has ended" for pid in left]

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        for place in self.places:
            self._processes.update(place.worker.children())
        for pid in self._processes:
            if is_alive(pid):
                kill(pid)
        for worker in [place.worker for place in self.places] + [worker for worker, _ in self._leaving]:
            worker.process.wait()
        for place in self.places:
            place.wire.close()
