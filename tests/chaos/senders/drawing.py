"""What all kinds of flows are drawn from, at random: calls, and chains and groups of them in each other, with links and
errbacks, calls that give their place to a canvas, and what must come of it all."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

REPLACED = 0.06
"""Share of the calls that give their place to a canvas."""


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
class Drawing(ABC):
    """One flow, as it is to be started.

    number    gives serial numbers
    breaks    share of its calls that die until they are healed
    large     share of its calls that give large values
    id        of the flow
    kinds     serial number -> name of the task, of each call
    ids       serial number -> task id
    queues    serial number -> queue
    needs     serial number of each call but errbacks -> those whose values it gets, in their order
    behind    serial number -> calls whose end it waits for beside these, and how that is to be
    errbacks  serial number -> those that it hears of, and the id that it is told then
    answers   serial number of one that is replaced -> those whose values are its value
    counted   serial numbers of those that are calls of this very flow
    heard     how many errbacks hear of each
    breaking  serial numbers of those that die, until they are healed
    """

    number: Callable[[], int]
    rng: random.Random
    breaks: float
    large: float = 0.05
    id: str = ""
    kinds: dict[int, str] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    queues: dict[int, str] = field(default_factory=dict)
    needs: dict[int, list[int]] = field(default_factory=dict)
    behind: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    errbacks: dict[int, tuple[list[int], str | None]] = field(default_factory=dict)
    answers: dict[int, list[int]] = field(default_factory=dict)
    counted: list[int] = field(default_factory=list)
    heard: Counter[int] = field(default_factory=Counter)
    breaking: list[int] = field(default_factory=list)
    _made_by: tuple[int, str] | None = None
    _elsewhere: bool = False

    @abstractmethod
    def start(self) -> None:
        """Start what was drawn. Again, where the server was away, it carries on; raises BrokerUnavailable."""

    def record(self) -> dict[str, Any]:
        """What the journal has of it."""
        pairs = ("needs", "behind", "errbacks", "answers")
        return {"id": self.id, "counted": self.counted} | {name: list(getattr(self, name).items()) for name in pairs}

    @contextmanager
    def _inside(self, serial: int, how: str, elsewhere: bool) -> Iterator[None]:
        """What is drawn meanwhile is started by this call, as it ends so; `elsewhere`, as a flow of its own."""
        before = self._made_by, self._elsewhere
        self._made_by, self._elsewhere = (serial, how), self._elsewhere or elsewhere
        yield
        self._made_by, self._elsewhere = before

    # -- canvases

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

    # -- calls

    def _call(self, before: Part | None, own_id: str = "") -> Part:
        """One call; of one that is replaced the ends are those of what comes in its place."""
        needs = before.ends if before else []
        if self.rng.random() < REPLACED:
            serial, ends, calls, signature = self._replaced(needs, own_id)
        else:
            serial, signature = self._one(needs, self._drawn_task(), own_id=own_id)
            ends, calls = [serial], [serial]
        if self.rng.random() < 0.1:
            signature.link(self._one(ends, self._drawn_task())[1])
        of = [*calls, *(before.header if before else ())]
        if self.rng.random() < 0.2 and max(self.heard[one] for one in of) < MOST_ERRBACKS:
            self.heard.update(of)
            self._errback(signature, of, self.ids[serial])
        return Part(signature, ends, calls)

    def _replaced(self, needs: Sequence[int], own_id: str) -> tuple[int, list[int], list[int], Signature[Any]]:
        """A call that gives its place to a canvas: its own number, whose values it gives then, and all of its calls."""
        serial, signature = self._one(needs, tasks.replaces, own_id=own_id, by=None)
        with self._inside(serial, "replaced", elsewhere=True):
            first = self._part(None, DEEPEST - self.rng.randint(0, 1))
            if first.is_group and self.rng.random() < 0.5:
                by, ends, calls = first.signature, first.ends, first.calls
            else:
                last = self._call(first, own_id=self.ids[serial])
                by, ends, calls = first.signature | last.signature, last.ends, [*first.calls, *last.calls]
        self.answers[serial] = ends
        signature.kwargs["by"] = by
        return serial, ends, [serial, *calls], signature

    def _drawn_task(self) -> AnyTask:
        elsewhere = 2 if tasks.app.settings.partitions == 1 else 0  # a flow lies in one partition
        drawn: AnyTask = self.rng.choices((tasks.step, tasks.bulk_step, tasks.hidden_step), (6, elsewhere, 2))[0]
        return tasks.breaks if self.breaks and self.rng.random() < self.breaks else drawn

    def _one(self, needs: Sequence[int], task: AnyTask, own_id: str = "", **options: Any) -> tuple[int, Signature[Any]]:
        serial = self.number()
        options |= {"serial": serial, "seconds": self.rng.choice(SECONDS)}
        if self.rng.random() < self.large:
            options["size_bytes"] = self.rng.choice(LARGE_BYTES)
        if task in (tasks.step, tasks.replaces, tasks.adds) and self.rng.random() < 0.1:
            options["late"] = True
        # The last of what stands for a call has its id, where it goes to the same queue.
        own_id = "" if task is tasks.bulk_step else own_id
        self._know(serial, task, own_id)
        signature = task.s(**options).set(task_id=self.ids[serial])
        if self.rng.random() < 0.1:
            signature.set(countdown=self.rng.uniform(0.05, 0.5))
        self.needs[serial] = list(needs)
        if not needs and self._made_by is not None:
            self.behind[serial] = [self._made_by]
        if not self._elsewhere:
            self.counted.append(serial)
        if task is tasks.breaks:
            self.breaking.append(serial)
        return serial, signature

    def _errback(self, signature: Signature[Any], of: list[int], told: str) -> None:
        serial = self.number()
        self._know(serial, tasks.errback)
        signature.on_error(tasks.errback.s(serial=serial).set(task_id=self.ids[serial]))
        self.errbacks[serial] = (of, told)

    def _know(self, serial: int, task: AnyTask, own_id: str = "") -> None:
        self.kinds[serial] = task.__name__
        self.ids[serial] = own_id or call_id(serial)
        self.queues[serial] = tasks.BULK if task is tasks.bulk_step else "default"
