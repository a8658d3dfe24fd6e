"""Graphs: calls by name, and which of them each waits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any, TypeAlias

from rsq.app import BaseApp
from rsq.calls.message import LONGEST_ID, check_id, new_id
from rsq.calls.plan import FAIL, POLICIES, Plan
from rsq.canvas.signature import Canvas, Group, Signature, check_signature
from rsq.errors import SettingsError
from rsq.flow.planner import Planner, before_it
from rsq.flow.run import FlowRun, task_id_of
from rsq.flow.telling import told_after, told_before
from rsq.result import AsyncResult

Some: TypeAlias = "GraphNode | str | Sequence[GraphNode | str]"
After: TypeAlias = "Some | Mapping[str, Some]"

LONGEST_NAME = LONGEST_ID - 33
"""Characters of a node's name: with the flow's id it makes the id of its call."""


class GraphNode:
    """One node of a graph, made by `Graph.add`.

    name    unique in its graph
    policy  where one that it waits for does not succeed
    """

    def __init__(self, graph: Graph, name: str, signature: Signature[Any], takes: Any, policy: str) -> None:
        self.name = name
        self.policy = policy
        self._graph = graph
        self._signature = signature
        self._takes = takes  # the shape, with nodes for numbers
        self._waits: dict[GraphNode, None] = dict.fromkeys(_nodes_of(takes))

    def __repr__(self) -> str:
        return f"<GraphNode {self.name}: {self._signature!r}>"


class Graph:
    """A flow that is put together node by node, and started as often as you like. Made by `app.flow(name)`.

    name  for people, and in errors
    """

    def __init__(self, app: BaseApp, name: str = "") -> None:
        if not isinstance(name, str):
            raise SettingsError(f"the name of a flow is a text, not {name!r}")
        self.name = name
        self._app = app
        self._nodes: dict[str, GraphNode] = {}

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self._nodes)} nodes>"

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[GraphNode]:
        return iter(self._nodes.values())

    def add(
        self, signature: Signature[Any], after: After | None = None, *, name: str | None = None, policy: str = FAIL
    ) -> GraphNode:
        """Add a call, or a whole canvas; gives the node, for others to wait for.

        after   whom it waits for, as nodes or their names. Of one node it gets the value in front of its arguments, of
                a list of nodes the list of their values, of a map named arguments; an immutable signature gets nothing
        name    default: that of its task, numbered where it is taken
        policy  where one of these does not succeed: "fail" it fails, too; "skip" it is revoked, as is what waits for
                it; "continue" it runs, with a `Failed` for each value that there is not
        Raises  SettingsError
        """
        check_signature(signature, "flow.add")
        if policy not in POLICIES:
            raise SettingsError(f"the policy of a node is one of {', '.join(POLICIES)}, not {policy!r}")
        node = GraphNode(self, self._free_name(signature, name), signature, self._shape(after), policy)
        self._nodes[node.name] = node
        return node

    def order(self, first: GraphNode | str, then: GraphNode | str) -> None:
        """Have `then` wait for `first`, too, without its value. Raises SettingsError for a circle."""
        earlier, later = self._node(first), self._node(then)
        way = _way(earlier, later)
        if way:
            names = " -> ".join(node.name for node in (*way, later))
            raise SettingsError(f"{later.name} cannot wait for {earlier.name}, which waits for it: {names}")
        later._waits[earlier] = None

    def start(self, flow_id: str | None = None) -> FlowRun:
        """Start it, all or nothing. Raises what starting a canvas raises.

        flow_id  default: a new one, so that each start is a flow of its own. What was started under an id is not
                 started again under it, so a start whose answer was lost can be repeated
        """
        plan, run = self._prepared(flow_id)
        self._app.client.flows.start(plan)
        told_after(plan.nodes, plan.id)
        return run

    async def astart(self, flow_id: str | None = None) -> FlowRun:
        """`start` for coroutines."""
        plan, run = self._prepared(flow_id)
        await self._app.client.flows.astart(plan)
        told_after(plan.nodes, plan.id)
        return run

    # -- how it is put together

    def _prepared(self, flow_id: str | None) -> tuple[Plan, FlowRun]:
        if not self._nodes:
            raise SettingsError(f"flow {self.name!r} has no nodes: flow.add(task.s(...))")
        plan, run = _GraphPlanner(self._app).plan_of(self, new_id() if flow_id is None else check_id(flow_id))
        told_before(plan.nodes, plan.id)
        return plan, run

    def _free_name(self, signature: Signature[Any], name: str | None) -> str:
        if name is not None:
            if not isinstance(name, str) or not name.isascii() or not name.isprintable() or " " in name:
                raise SettingsError(f"a node is named by printable ASCII characters without spaces, not {name!r}")
            if not 0 < len(name) <= LONGEST_NAME:
                raise SettingsError(f"the name of a node has 1 to {LONGEST_NAME} characters, not {len(name)}")
            if name in self._nodes:
                raise SettingsError(f"flow {self.name!r} has a node {name!r} already")
            return name
        stem = str(signature.kind) if isinstance(signature, Canvas) else signature.task.rpartition(".")[2]
        stem = stem.encode("ascii", "replace").decode()[: LONGEST_NAME - 8]
        name, number = stem, 1
        while name in self._nodes:
            number += 1
            name = f"{stem}-{number}"
        return name

    def _node(self, given: Any) -> GraphNode:
        node = self._nodes.get(given) if isinstance(given, str) else given
        if not isinstance(node, GraphNode):
            known = ", ".join(list(self._nodes)[:10]) or "none yet"
            raise SettingsError(f"flow {self.name!r} has no node {given!r}; there are: {known}")
        if node._graph is not self:
            raise SettingsError(f"{node!r} belongs to another flow")
        return node

    def _shape(self, after: Any) -> Any:
        if after is None:
            return None
        if isinstance(after, Mapping):
            if not all(isinstance(name, str) for name in after):
                raise SettingsError(f"after= as a map names arguments, not {after!r}")
            return {name: self._shape(each) for name, each in after.items()}
        if isinstance(after, Iterable) and not isinstance(after, str):
            return [self._node(each) for each in after]
        return self._node(after)


class _GraphPlanner(Planner):
    def plan_of(self, graph: Graph, flow_id: str) -> tuple[Plan, FlowRun]:
        afters: dict[GraphNode, Any] = {}
        handles: dict[str, AsyncResult[Any]] = {}
        ends: list[str] = []
        awaited = {earlier for node in graph for earlier in node._waits}
        # Each behind those that it waits for.
        for node in TopologicalSorter({node: node._waits for node in graph}).static_order():
            numbers = dict.fromkeys(number for earlier in node._waits for number in afters[earlier].ends)
            takes = _numbered(node._takes, afters)
            first = len(self._drafts)
            after = afters[node] = self._part(
                _identified(node, flow_id), before_it(tuple(numbers), takes, node.policy), 0
            )
            for draft in self._drafts[first:]:
                draft.name = node.name
            handles[node.name] = after.handle
            if node not in awaited:
                ends.append(node.name)
                for place in after.ends:
                    self._drafts[place].sink = True
        return self._planned(flow_id, graph.name[:200]), FlowRun(self._app, flow_id, handles, ends)


def _identified(node: GraphNode, flow_id: str) -> Signature[Any]:
    """Its signature, with the id by which it is found again, where it has none."""
    signature = last = node._signature
    while isinstance(last, Canvas) and not isinstance(last, Group):
        last = last.tasks[-1]
    if isinstance(last, Group) or last.id is not None or "task_id" in last.options:
        return signature
    return signature.clone(task_id=task_id_of(flow_id, node.name))


def _nodes_of(shape: Any) -> Iterator[GraphNode]:
    if isinstance(shape, GraphNode):
        yield shape
    elif shape is not None:
        for part in shape.values() if isinstance(shape, Mapping) else shape:
            yield from _nodes_of(part)


def _numbered(shape: Any, afters: Mapping[GraphNode, Any]) -> Any:
    """A shape of nodes as one of numbers."""
    if isinstance(shape, GraphNode):
        return afters[shape].shape
    if isinstance(shape, Mapping):
        return {name: _numbered(part, afters) for name, part in shape.items()}
    return None if shape is None else [_numbered(part, afters) for part in shape]


def _way(start: GraphNode, end: GraphNode) -> list[GraphNode]:
    """From `end` to `start`, which comes to wait for it, each behind one that it waits for; empty where it does not."""
    came: dict[GraphNode, GraphNode | None] = {start: None}
    open_ = [start]
    while open_:
        node = open_.pop()
        if node is end:
            way = [node]
            while (earlier := came[way[-1]]) is not None:
                way.append(earlier)
            return way
        for other in node._waits:
            if other not in came:
                came[other] = node
                open_.append(other)
    return []
