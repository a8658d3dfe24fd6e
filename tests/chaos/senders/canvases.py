"""Canvases, drawn at random, with what must come of them: chains, groups, chords, links and errbacks in each other."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rsq import Signature, chain, group
from tests.chaos import tasks
from tests.chaos.senders.sender import AnyTask

SECONDS = (0.0, 0.0, 0.0, 0.01, 0.05)
LARGE_BYTES = (30_000, 70_000, 150_000)
"""Values of 64 KiB and more are not sent along: the worker reads them from the flow."""

STEPS = (2, 3, 4, 6)
MEMBERS = (1, 2, 3, 5, 8)
DEEPEST = 2
MOST_ERRBACKS = 200
"""Of one call; those of what follows a group are also those of its members."""

MANY = 250
"""More than one script releases."""


def call_id(serial: int) -> str:
    return f"part-{serial}"


@dataclass(frozen=True)
class Part:
    """A piece of a canvas.

    ends     serial numbers of those whose values are its value, in their order
    calls    of all calls in it, but for links and errbacks
    header   of those in the group that it ends with: errbacks of what follows hear of them, too
    is_group  it ends with one
    """

    signature: Signature[Any]
    ends: list[int]
    calls: list[int]
    header: list[int] = field(default_factory=list)
    is_group: bool = False


@dataclass
class Canvas:
    """One canvas.

    kinds     serial number -> name of the task, of each call
    queues    serial number -> queue
    needs     serial number of each call but errbacks -> those whose values it gets, in their order
    errbacks  serial number -> those that it hears of, and the id that it is told then
    heard     how many errbacks hear of each
    breaking  serial numbers of those that die, until they are healed
    id        of the whole
    """

    number: Callable[[], int]
    rng: random.Random
    breaks: float
    large: float = 0.05
    id: str = ""
    signature: Signature[Any] | None = None
    kinds: dict[int, str] = field(default_factory=dict)
    queues: dict[int, str] = field(default_factory=dict)
    needs: dict[int, list[int]] = field(default_factory=dict)
    errbacks: dict[int, tuple[list[int], str]] = field(default_factory=dict)
    heard: Counter[int] = field(default_factory=Counter)
    breaking: list[int] = field(default_factory=list)

    def drawn(self) -> Canvas:
        """Draw what it consists of."""
        draw = self.rng.choices((self._chain, self._group, self._wide), weights=(12, 4, 1))[0]
        if draw == self._wide:
            self.large = 0.0  # many such values would be more than one message may hold
        part = draw(None, 0)
        self.id = call_id(part.ends[-1])
        if part.is_group:
            self.id = f"all-{self.number()}"
            part.signature.set(task_id=self.id)
        self.signature = part.signature
        return self

    def _part(self, before: Part | None, depth: int) -> Part:
        if depth < DEEPEST and self.rng.random() < 0.4:
            return self.rng.choice((self._chain, self._group))(before, depth + 1)
        return self._call(before)

    def _chain(self, before: Part | None, depth: int) -> Part:
        parts: list[Part] = []
        for _ in range(self.rng.choice(STEPS)):
            parts.append(self._part(parts[-1] if parts else before, depth))
        calls = [serial for part in parts for serial in part.calls]
        whole = chain(*(part.signature for part in parts))
        return Part(whole, parts[-1].ends, calls, parts[-1].header, parts[-1].is_group)

    def _group(self, before: Part | None, depth: int) -> Part:
        return self._side_by_side(before, depth, self.rng.choice(MEMBERS))

    def _side_by_side(self, before: Part | None, depth: int, members: int) -> Part:
        parts = [self._part(before, depth) for _ in range(members)]
        ends = [serial for part in parts for serial in part.ends]
        calls = [serial for part in parts for serial in part.calls]
        return Part(group(part.signature for part in parts), ends, calls, calls, True)

    def _wide(self, before: Part | None, depth: int) -> Part:
        """One, then many, then one."""
        first = self._call(before)
        many = self._side_by_side(first, DEEPEST, MANY)
        last = self._call(many)
        whole = chain(first.signature, many.signature, last.signature)
        return Part(whole, last.ends, [*first.calls, *many.calls, *last.calls])

    def _call(self, before: Part | None) -> Part:
        serial, signature = self._one(before.ends if before else [])
        if self.rng.random() < 0.1:
            signature.link(self._one([serial])[1])
        of = [serial, *(before.header if before else ())]
        if self.rng.random() < 0.2 and max(self.heard[one] for one in of) < MOST_ERRBACKS:
            self.heard.update(of)
            self._errback(signature, of, call_id(serial))
        return Part(signature, [serial], [serial])

    def _one(self, needs: list[int]) -> tuple[int, Signature[Any]]:
        serial = self.number()
        elsewhere = 2 if tasks.app.settings.partitions == 1 else 0  # a flow lies in one partition
        task: AnyTask = self.rng.choices((tasks.step, tasks.bulk_step, tasks.hidden_step), weights=(6, elsewhere, 2))[0]
        if self.breaks and self.rng.random() < self.breaks:
            task = tasks.breaks
            self.breaking.append(serial)
        options: dict[str, Any] = {"serial": serial, "seconds": self.rng.choice(SECONDS)}
        if self.rng.random() < self.large:
            options["size_bytes"] = self.rng.choice(LARGE_BYTES)
        if task is tasks.step and self.rng.random() < 0.1:
            options["late"] = True
        signature = task.s(**options).set(task_id=call_id(serial))
        if self.rng.random() < 0.1:
            signature.set(countdown=self.rng.uniform(0.05, 0.5))
        self._know(serial, task)
        self.needs[serial] = needs
        return serial, signature

    def _errback(self, signature: Signature[Any], of: list[int], told: str) -> None:
        serial = self.number()
        signature.on_error(tasks.errback.s(serial=serial).set(task_id=call_id(serial)))
        self._know(serial, tasks.errback)
        self.errbacks[serial] = (of, told)

    def _know(self, serial: int, task: AnyTask) -> None:
        self.kinds[serial] = task.__name__
        self.queues[serial] = tasks.BULK if task is tasks.bulk_step else "default"
