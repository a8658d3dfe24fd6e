"""A plan as `flow.lua` takes it: packed, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rsq.broker.flow_rows import Fixed, fixed_of, pack, row_of
from rsq.broker.wire import Argument
from rsq.calls.message import MOST_NODES
from rsq.calls.plan import CALLBACKS, POLICIES, Call, Node, Plan, in_runs
from rsq.errors import SettingsError
from rsq.settings import Settings

PAGE_NODES, PAGE_BYTES = 1000, 1024 * 1024
"""Nodes of a flow that are stored in one write, and their bytes."""

MOST_ERRBACKS = 200
"""Errbacks of one node."""

MOST_PARTS = 1000
"""Parts of the runs of one node."""


class Pages:
    """A plan as the arguments of `flow.lua`, page by page; the last one says what it is as a whole.

    queues    name -> [most messages, how many calls go there at once]; all of them once the last page is made
    size      nodes so far
    replicas  how many must have them before their producer goes on
    complete  the last page was made

    tail, above  it replaces a call: number of the one that stands for that, and the flow and number of that itself, if
                 it is part of one
    """

    def __init__(self, plan: Plan, settings: Settings, tail: int = 0, above: tuple[str, int] = ("", 0)) -> None:
        self.queues: dict[str, list[int]] = {}
        self.size = self.replicas = 0
        self.complete = False
        self._plan = plan
        self._settings = settings
        self._tail = tail
        self._above = above
        self._calls = self._errbacks = 0
        self._roots: list[int] = []
        self._sinks: list[int] = []
        self._beside: list[int] = []
        self._waiting: Sequence[int] = ()

    def __iter__(self) -> Iterator[list[Argument]]:
        rows: list[Argument] = []
        held = 0
        for number, node in enumerate(self._plan.nodes):
            if number >= MOST_NODES:
                raise SettingsError(f"a flow holds {MOST_NODES} nodes at most: make several of it")
            if rows and (len(rows) >= 2 * PAGE_NODES or held > PAGE_BYTES):
                yield [b"", *rows]
                rows, held = [], 0
            row = self._row(number, node)
            rows += (number, row)
            held += len(row)
        self.complete = True
        plan, (above, above_node) = self._plan, self._above
        success, complete, death = (plan.callbacks.get(name, -1) for name in CALLBACKS)
        fixed = Fixed(
            plan.result_ttl_ms,
            int(self._settings.dead_max_age_ms),
            plan.expires_ms,
            plan.lease_ms,
            success,
            complete,
            death,
            self._tail,
            above_node,
        )
        head = {
            **self._counts(),
            "size": self.size,
            "sinks": pack(in_runs(self._sinks)),
            "queues": pack([part for name, bounds in self.queues.items() for part in (name, *bounds)]),
            "description": plan.description,
            "unsealed": int(plan.grows),
            "fixed": fixed_of(fixed, above),
        }
        yield [pack(head), *rows]

    def added(
        self, kept: tuple[str | int, ...] | None = None, queues: Iterable[str] = (), waiting: Sequence[int] = ()
    ) -> list[Argument]:
        """The arguments of `flow_add.lua`, for the nodes of this plan.

        kept, queues, waiting  of those that were added before them, by the same call: see `rsq.broker.adding`
        """
        rows = [self._row(number, node) for number, node in enumerate(self._plan.nodes)]
        waiting = self._waiting or waiting
        head = {**self._counts(), "queues": pack([*{**self.queues, **dict.fromkeys(queues)}])}
        if waiting:
            head["beside"] = pack((waiting, self._beside))
        if kept is not None:
            head["kept"] = pack(kept)
        return [pack({**head, "most": self._settings.max_flow_calls}), *rows]

    def _counts(self) -> dict[str, int | bytes]:
        roots = pack(in_runs(self._roots))
        return {"calls": self._calls, "open": self.size - self._errbacks, "roots": roots}

    def _row(self, number: int, node: Node) -> bytes:
        """A node as it is stored. Raises SettingsError."""
        if node.policy not in POLICIES or len(node.errbacks) > MOST_ERRBACKS or len(node.outs) > MOST_PARTS:
            raise SettingsError(
                f"node {number} of flow {self._plan.id} has the policy {node.policy!r}, {len(node.errbacks)} errbacks "
                f"and {len(node.outs)} runs behind it: take one of {', '.join(POLICIES)}, at most {MOST_ERRBACKS}, and "
                f"at most {MOST_PARTS}, with a join between many and many"
            )
        self.size += 1
        if node.sink:
            self._sinks.append(number)
        if node.beside:
            self._beside.append(number)
            self._waiting = node.beside
        if node.errback:
            self._errbacks += 1
        elif not node.waits:
            self._roots.append(number)
        if node.call is not None:
            self._calls += not node.errback
            self._count(node.call, not node.waits and not node.errback)
        return row_of(node)

    def _count(self, call: Call, at_once: bool) -> None:
        queue, most = self.queues.setdefault(call.message.queue, [0, 0]), call.placement.max_length
        wanted = call.placement.replicas
        self.replicas = max(self.replicas, self._settings.wait_replicas if wanted is None else wanted)
        if most:
            queue[0] = min(queue[0] or most, most)
        queue[1] += at_once
