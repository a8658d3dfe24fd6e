"""Chains, groups and chords."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from rsq import Signature, chain
from tests.chaos.senders.drawing import DEEPEST, Drawing, Part

MANY = 250
"""More than one script releases."""


class Canvas(Drawing):
    """A signature that is started as it is."""

    signature: Signature[Any]

    def __init__(self, number: Callable[[], int], rng: random.Random, breaks: float) -> None:
        super().__init__(number, rng, breaks)
        draw = self.rng.choices((self._chain, self._group, self._wide), weights=(12, 4, 1))[0]
        if draw == self._wide:
            self.large = 0.0  # many such values would be more than one message may hold
        part = draw(None, 0)
        self.signature = part.signature
        if part.is_group:
            self.id = f"all-{self.number()}"
            self.signature.set(task_id=self.id)
        else:
            last: Any = self.signature
            while last.kind is not None:
                last = last.own_tasks()[-1]
            self.id = last.options["task_id"]

    def start(self) -> None:
        self.signature.apply_async()

    def _wide(self, before: Part | None, depth: int) -> Part:
        """One, then many, then one."""
        first = self._call(before)
        many = self._side_by_side(first, DEEPEST, MANY)
        last = self._call(many)
        whole = chain(first.signature, many.signature, last.signature)
        return Part(whole, last.ends, [*first.calls, *many.calls, *last.calls])
