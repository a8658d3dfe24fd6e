"""A flow that was started, as its caller holds it, or finds it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rsq.app import BaseApp
from rsq.broker.flow_looks import NodeState
from rsq.errors import FlowGone
from rsq.flow.handle import FlowHandle
from rsq.result import AsyncResult
from rsq.result_set import ResultSet

WORDS = {"waiting": "waiting", "released": "started", "ok": "succeeded", "bad": "failed"}


def task_id_of(flow_id: str, name: str) -> str:
    """The id of the call of a node of a graph."""
    return f"{flow_id}.{name}"


class FlowRun(FlowHandle):
    """A flow that was started. Of a graph, ``run["name"]`` is the handle of a node.

    id       of the flow, also the `self.request.flow` of its calls
    """

    def __init__(
        self,
        app: BaseApp,
        flow_id: str,
        handles: Mapping[str, AsyncResult[Any]] | None = None,
        ends: Sequence[str] = (),
    ) -> None:
        super().__init__(app, flow_id)
        self._handles = handles
        self._ends = ends

    def __getitem__(self, name: str) -> AsyncResult[Any]:
        """The handle of a node of a graph. KeyError where the flow was started here, and has none of this name."""
        if self._handles is not None:
            return self._handles[name]
        return self._app.AsyncResult(task_id_of(self.id, name))

    @property
    def state(self) -> str:
        """started, succeeded, failed, cancelled or expired. Raises FlowGone."""
        return self.progress.state

    @property
    def nodes(self) -> dict[str, str]:
        """Each node's state by its name: waiting, started, succeeded or failed.

        Of one that has succeeded they are known where it was started alone, elsewhere they are forgotten. What has no
        name is called by number and task. Raises FlowGone.
        """
        found: dict[str, list[str]] = {}
        for node in self.calls():
            found.setdefault(node.name or f"{node.number} {node.task}", []).append(WORDS[node.state])
        if not found and self.state == "succeeded" and self._handles is not None:
            return dict.fromkeys(self._handles, "succeeded")
        return {name: _together(states) for name, states in found.items()}

    def calls(self) -> Iterator[NodeState]:
        """Its calls as they are on the server, a page at a time; none where it has succeeded."""
        return (node for page in self._app.client.flows.pages(self.id) for node in page if node.id)

    def get(self, timeout: float | None = None, propagate: bool = True) -> dict[str, Any]:
        """Wait for the nodes for which no other waits, and give their values by name.

        timeout    seconds, for all together
        propagate  raise the first error, in time; False puts errors among the values
        Raises     as `AsyncResult.get`; FlowGone where it was found again and has succeeded: ask for a node by its name
        """
        ends = self._ended_by()
        results: ResultSet[Any] = ResultSet(self._app.client, ends.values())
        return dict(zip(ends, results.get(timeout, propagate), strict=True))

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> dict[str, Any]:
        """`get` for coroutines."""
        ends = self._ended_by()
        results: ResultSet[Any] = ResultSet(self._app.client, ends.values())
        return dict(zip(ends, await results.aget(timeout, propagate), strict=True))

    def _ended_by(self) -> dict[str, AsyncResult[Any]]:
        if self._handles is not None:
            return {name: self._handles[name] for name in self._ends}
        names = dict.fromkeys(node.name for node in self.calls() if node.name and not node.outs)
        if not names:
            raise FlowGone(
                f"flow {self.id} is no graph, or has succeeded, and its nodes are forgotten: ask for one by its name, "
                "app.flows[id][name].get()"
            )
        return {name: self[name] for name in names}


def _together(states: Sequence[str]) -> str:
    """The state of a node of several calls."""
    for state in ("failed", "started", "waiting"):
        if state in states:
            return "started" if state == "waiting" and "succeeded" in states else state
    return "succeeded"
