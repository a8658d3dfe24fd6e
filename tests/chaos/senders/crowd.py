"""Threads that do the same over and over until they are told to stop."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tests.chaos.journal import Journal

Act: TypeAlias = Callable[[random.Random], None]


class Crowd:
    """One thread for each act; an error that comes out of one is a problem, and it goes on.

    pause_s   mean wait of a thread between two of its acts
    """

    def __init__(self, name: str, acts: Sequence[Act], journal: Journal, seed: int, pause_s: float) -> None:
        self._name = name
        self._journal = journal
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(act, random.Random(f"{seed}-{name}-{number}")), daemon=True)
            for number, act in enumerate(acts)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stop.set()

    def join(self, patience_s: float) -> None:
        """Let each end what it is at; who does not, within this time, is a problem."""
        self.stop()
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if left := sum(thread.is_alive() for thread in self._threads):
            self._journal.write("problem", text=f"{left} of the {self._name} are still at it after {patience_s:g} s")

    def _run(self, act: Act, rng: random.Random) -> None:
        while not self._stop.wait(rng.expovariate(1 / self._pause_s)):
            try:
                act(rng)
            except Exception as error:
                tell_problem(self._journal, self._name, error)


def tell_problem(journal: Journal, who: str, error: BaseException) -> None:
    """What came up where no error but the announced ones may."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
    journal.write("problem", text=f"{who}: {type(error).__name__}: {error} ({where})")
