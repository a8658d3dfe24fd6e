"""What `app.flows` is: it starts signatures, and finds flows again by their ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rsq.app import BaseApp
from rsq.calls.message import Delivery, check_id
from rsq.calls.plan import Plan
from rsq.canvas.signature import Canvas, Signature
from rsq.flow.beside import add_beside
from rsq.flow.planner import Planned, Planner
from rsq.flow.run import FlowRun
from rsq.flow.stand_in import stand_in
from rsq.flow.telling import queues_of, told_after, told_before
from rsq.result import AsyncResult
from rsq.task import Task


class Flows:
    """Starts what signatures say, with the tasks of one app."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app

    def __getitem__(self, flow_id: str) -> FlowRun:
        """A flow by its id, which is that of the handle of a canvas. SettingsError for what can be no id.

        Whether it is on the server is told by what asks for it.
        """
        return FlowRun(self._app, check_id(flow_id))

    def __iter__(self) -> Iterator[FlowRun]:
        """Those that have not succeeded, the ones first that will be ended or forgotten next."""
        return (FlowRun(self._app, flow_id) for flow_id in self._app.client.flows.ids())

    def start(self, signature: Signature[Any]) -> AsyncResult[Any]:
        """Start it, all or nothing; see `Signature.apply_async`."""
        if is_plain(signature):
            return self._task(signature).apply_async(signature.args, signature.kwargs, **_options(signature))
        planned = self._prepared(signature)
        if planned.plan is not None:
            self._app.client.flows.start(planned.plan)
        return self._told(planned)

    async def astart(self, signature: Signature[Any]) -> AsyncResult[Any]:
        """`start` for coroutines."""
        if is_plain(signature):
            return await self._task(signature).aapply_async(signature.args, signature.kwargs, **_options(signature))
        planned = self._prepared(signature)
        if planned.plan is not None:
            await self._app.client.flows.astart(planned.plan)
        return self._told(planned)

    def freeze(self, signature: Signature[Any]) -> AsyncResult[Any]:
        """Fix the ids of its next start; see `Signature.freeze`."""
        signature.fix_ids()
        if is_plain(signature):
            task = self._task(signature)
            message, _ = task.message(signature.args, signature.kwargs, **_options(signature))
            return task.handle_of(message)
        return Planner(self._app).plan(signature).result

    def apply(self, signature: Signature[Any], propagate: bool) -> AsyncResult[Any]:
        """Run it in eager mode; see `Signature.apply`."""
        app: Any = self._app  # the whole one, with what lives above
        with app.testing.eager(propagate):
            return self.start(signature)

    def call_here(self, signature: Signature[Any]) -> Any:
        """Call the function of a signature; start a canvas."""
        if isinstance(signature, Canvas):
            return self.start(signature)
        return self._app.get_task(signature.task)(*signature.args, **signature.kwargs)

    def stand_in(self, signature: Signature[Any], delivery: Delivery) -> Plan:
        """The flow that takes the place of a call that runs; its queues are known when this returns."""
        plan = stand_in(self._app, signature, delivery)
        told_before(plan.nodes, plan.id)
        self._app.client.flows.introduce(plan.id, queues_of(plan.nodes) - {delivery.queue})
        return plan

    def add_beside(self, signature: Signature[Any], delivery: Delivery) -> AsyncResult[Any]:
        """Have a call that runs add this to the chord of which it is a member; see `Task.add_to_chord`."""
        return add_beside(self._app, signature, delivery)

    def _task(self, signature: Signature[Any]) -> Task[..., Any]:
        return self._app.task_by_name(signature.task)

    def _prepared(self, signature: Signature[Any]) -> Planned:
        planned = Planner(self._app).plan(signature)
        if planned.plan is not None:
            told_before(planned.plan.nodes, planned.plan.id)
        return planned

    def _told(self, planned: Planned) -> AsyncResult[Any]:
        if planned.plan is not None:
            told_after(planned.plan.nodes, planned.plan.id)
        return planned.result


def is_plain(signature: Signature[Any]) -> bool:
    """Whether it is one call that nothing follows."""
    return not (isinstance(signature, Canvas) or signature.links or signature.errbacks)


def _options(signature: Signature[Any]) -> dict[str, Any]:
    return signature.options if signature.id is None else {**signature.options, "task_id": signature.id}
