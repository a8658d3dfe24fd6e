"""Graphs: each node waits for some of those before it, in one of the ways there are."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from rsq.flow.graph import Graph
from tests.chaos import tasks
from tests.chaos.senders.drawing import DEEPEST, Drawing, Part

NODES = (2, 4, 8)


class DrawnGraph(Drawing):
    """Put together node by node, and started under an id of its own."""

    def __init__(self, number: Callable[[], int], rng: random.Random, breaks: float) -> None:
        super().__init__(number, rng, breaks)
        self.id = f"graph-{self.number()}"
        self._graph: Graph = tasks.app.flow(self.id)
        parts: list[Part] = []
        for _ in range(self.rng.choice(NODES)):
            parts.append(self._node(parts))

    def start(self) -> None:
        self._graph.start(self.id)

    def _node(self, parts: list[Part]) -> Part:
        nodes = list(self._graph)
        chosen = self.rng.sample(range(len(parts)), min(len(parts), self.rng.choice((0, 1, 1, 2, 3))))
        needs = [serial for place in chosen for serial in parts[place].ends]
        after: Any = [nodes[place] for place in chosen] or None
        if len(chosen) == 1 and self.rng.random() < 0.5:
            (after,) = after
        if len(chosen) == 2 and self.rng.random() < 0.5:
            after = dict(zip(("left", "right"), after, strict=True))
            serial, signature = self._one(needs, tasks.named_step)
            part = Part(signature, [serial], [serial])
        else:
            # What follows a group in a graph does not have its errbacks, as in a canvas.
            part = self._part(Part(signature=tasks.step.s(), ends=needs, calls=[]), DEEPEST - 1)
        node = self._graph.add(part.signature, after, name=f"node-{len(parts)}")
        if parts and self.rng.random() < 0.2:
            earlier = self.rng.randrange(len(parts))
            self._graph.order(nodes[earlier], node)
            if earlier not in chosen:
                for serial in [one for one in part.calls if self.needs[one] == needs and one not in self.behind]:
                    self.behind[serial] = [(end, "returned") for end in parts[earlier].ends]
        return part
