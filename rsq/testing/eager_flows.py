"""The flows of eager mode: each has ended when it was started, but for batches that are open."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from rsq.broker.adding import Adding
from rsq.broker.flow_looks import Flow, NodeState
from rsq.broker.flow_rows import Stored
from rsq.broker.flows import CANCELLED, Flows
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Replaced
from rsq.calls.plan import Node, Plan
from rsq.errors import BatchClosed
from rsq.testing.eager_flow import EagerFlow, Runner


class MemoryFlows(Flows):
    """Stands in for the flows on the server; each call of one has its result in memory.

    runner  runs their calls; nested  runs something inside of what runs already, and sees to its error
    """

    runner: Runner
    nested: Callable[[str, Callable[[], Buried | None]], None]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._flows: dict[str, EagerFlow] = {}

    def start(self, plan: Plan) -> None:
        if plan.id not in self._flows:
            self._run(self._flows.setdefault(plan.id, EagerFlow(self.runner, plan, self._flows)))

    async def astart(self, plan: Plan) -> None:
        self.start(plan)

    def stand_in(self, replaced: Replaced) -> Completed | Buried:
        """Run the flow that takes the place of a call; gives what becomes of that one."""
        place = replaced.delivery.meta.get("flow")
        above = None if place is None else (replaced.tail, *place[:2])
        flow = self._flows[replaced.plan.id] = EagerFlow(self.runner, replaced.plan, self._flows, above)
        return flow.stand_in(replaced)

    def add(self, flow_id: str, key: str, nodes: Sequence[Node]) -> None:
        flow = self._flows.get(flow_id)
        if flow is None or not flow.is_open:
            raise BatchClosed(f"batch {flow_id} takes no more calls: it is sealed, has ended, or is gone")
        flow.add(nodes)
        self._run(flow)

    async def aadd(self, flow_id: str, key: str, nodes: Sequence[Node]) -> None:
        self.add(flow_id, key, nodes)

    def seal(self, flow_id: str) -> bool:
        flow = self._flows.get(flow_id)
        if flow is None or not flow.is_open:
            return False
        flow.seal()
        self._run(flow)
        return True

    async def aseal(self, flow_id: str) -> bool:
        return self.seal(flow_id)

    def keep_open(self, flow_id: str) -> bool:
        flow = self._flows.get(flow_id)
        return flow is not None and flow.is_open

    async def akeep_open(self, flow_id: str) -> bool:
        return self.keep_open(flow_id)

    def look(self, flow_id: str) -> Flow | None:
        flow = self._flows.get(flow_id)
        return None if flow is None else flow.head()

    def nodes(self, flow_id: str, first: int, count: int) -> list[NodeState]:
        flow = self._flows.get(flow_id)
        return [] if flow is None else flow.states(first, count)

    def rows(self, flow_id: str, numbers: Sequence[int]) -> dict[int, Stored]:
        return {number: self._flows[flow_id].row(number) for number in numbers}

    def above(self, flow_id: str) -> tuple[int, str, int] | None:
        return self._flows[flow_id].above

    def outcome(self, flow_id: str, number: int) -> bytes | None:
        return None

    async def aoutcome(self, flow_id: str, number: int) -> bytes | None:
        return None

    def outcomes(self, flow_id: str, numbers: Sequence[int]) -> list[bytes | None]:
        return [None for _ in numbers]

    async def aoutcomes(self, flow_id: str, numbers: Sequence[int]) -> list[bytes | None]:
        return [None for _ in numbers]

    def introduce(self, flow_id: str, queues: Collection[str]) -> None:
        pass

    async def aintroduce(self, flow_id: str, queues: Collection[str]) -> None:
        pass

    def keep(self, delivery: Delivery, adding: Adding) -> None:
        pass  # all of it goes with the outcome

    async def akeep(self, delivery: Delivery, adding: Adding) -> None:
        pass

    def cancel(self, flow_id: str, terminate: bool = False) -> bool:
        flow = self._flows.get(flow_id)
        return flow is not None and flow.cancel(CANCELLED)

    def revoke(self, flow_id: str, number: int) -> bool:
        return False

    def _run(self, flow: EagerFlow) -> None:
        self.nested(flow.plan.description, flow.run)
