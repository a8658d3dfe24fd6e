"""Batches: members that are added one by one while others run, members that add members, and the callbacks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from rsq import Signature
from tests.chaos import tasks
from tests.chaos.senders.drawing import DEEPEST, Drawing

MEMBERS = (0, 1, 2, 4, 12, 120)
ADDED = (1, 2, 5, 250)
"""Calls that one member adds; the last is more than one script releases."""

ADDS = 0.2
"""Share of the members that add others."""

PAUSES_S = (0.0, 0.0, 0.01, 0.1)


class DrawnBatch(Drawing):
    """Filled member by member."""

    def __init__(self, number: Callable[[], int], rng: random.Random, breaks: float) -> None:
        super().__init__(number, rng, breaks, large=0.02)
        members = self.rng.choice(MEMBERS)
        self._members = [self._member(1) for _ in range(members)]
        self._sealing = False
        callbacks = {f"on_{name}": self._callback(name) for name in ("success", "complete", "death")}
        self._batch = tasks.app.batch(**callbacks, description="chaos")
        self._entered = False
        self.id = self._batch.id

    def start(self) -> None:
        if not self._entered:
            self._batch.__enter__()
            self._entered = True
        while self._members:
            self._batch.add(self._members.pop())
            if self.rng.random() < 0.5:
                self._batch.flush()
            time.sleep(self.rng.choice(PAUSES_S))
        if self._sealing:  # the block was left, and nobody knows whether the server has heard of it
            self._batch.flush()
            tasks.app.client.flows.seal(self.id)
        else:
            self._sealing = True
            self._batch.__exit__(None, None, None)

    def _member(self, depth: int) -> Signature[Any]:
        if depth > DEEPEST or self.rng.random() > ADDS:
            return self._part(None, DEEPEST - 1).signature
        serial, signature = self._one([], tasks.adds, members=[])
        many = self.rng.choice(ADDED if depth == 1 else ADDED[:-1])
        with self._inside(serial, "returned", elsewhere=False):
            if many > max(ADDED[:-1]):
                members = [self._one([], tasks.step)[1] for _ in range(many)]
            else:
                members = [self._member(depth + 1) for _ in range(many)]
        signature.kwargs["members"] = members
        return signature

    def _callback(self, name: str) -> Signature[Any]:
        serial = self.number()
        self._know(serial, tasks.callback)
        calls = [one for one in self.needs if self.kinds[one] != tasks.callback.__name__]
        if name == "death":
            self.errbacks[serial] = (calls, None)
        else:
            self.needs[serial] = []
            # What stands for a call is waited for, but not what only follows that.
            own = {*self.counted, *(one for ends in self.answers.values() for one in ends)} - self.answers.keys()
            ended = [(one, "returned") for one in calls if one in own]
            self.behind[serial] = ended if name == "success" else self._surely_ended(calls)
        return tasks.callback.si(serial=serial).set(task_id=self.ids[serial])

    def _surely_ended(self, calls: list[int]) -> list[tuple[int, str]]:
        """Members that have a run of their own, however others end: nothing that may die stands before them."""
        fallen: set[int] = set()  # or that may never run
        for one in sorted(calls):
            before = [*self.needs[one], *(other for other, _ in self.behind.get(one, []))]
            if any(other in fallen or other in self.breaking for other in before):
                fallen.add(one)
        return [(one, "ended") for one in calls if one in self.counted and one not in {*fallen, *self.answers}]
