"""A batch as a step of a canvas: a call that begins one, and is done when that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from rsq import codec
from rsq.app import BaseApp
from rsq.calls.message import Message
from rsq.calls.plan import Call, Node, Plan, in_runs
from rsq.calls.request import current
from rsq.canvas.signature import Signature
from rsq.errors import FlowGone, Replace
from rsq.flow.callbacks import Callbacks, new_batch_id
from rsq.flow.page import Filling
from rsq.flow.telling import queues_of
from rsq.task import Task

BATCH, SUMMARY = "rsq.batch", "rsq.summary"

KEPT = ("root", "parent", "ignore_result", "result_expires")
"""What the call that gives the summary has of the one for which it stands."""


def batch_step(
    app: BaseApp, members: Sequence[Signature[Any]], callbacks: Mapping[str, Signature[Any]], description: str
) -> Signature[dict[str, Any]]:
    """The signature of such a call."""
    given = {"members": list(members), "callbacks": dict(callbacks), "description": description}
    return Signature(BATCH, (), given, app=app)


def run_batch(
    self: Task[..., Any],
    *value: Any,
    members: Sequence[Signature[Any]],
    callbacks: Mapping[str, Signature[Any]],
    description: str,
) -> NoReturn:
    """Begin a batch that stands for this call. `value`: of what came before, for each member."""
    delivery = current.get()
    assert delivery is not None, "it is called by workers"
    made = Callbacks(self.app)
    names = [name for name in ("success", "death") if name in callbacks]
    first = [made.node(callbacks[name]) for name in names]
    numbers = {name: number for number, name in enumerate(names)}
    numbers["complete"] = tail = len(first)
    meta = {name: delivery.meta[name] for name in KEPT if name in delivery.meta}
    body = codec.encode_call((), {}, None)
    call = Call(Message(delivery.id, SUMMARY, body, delivery.queue, delivery.priority, meta))
    behind = [replace(made.node(callbacks["complete"]), waits=1)] if "complete" in callbacks else []
    nodes = [*first, Node(call, outs=in_runs([tail + 1] if behind else []), errback=True, sink=True), *behind]
    filling = Filling(self.app)
    filling.take(member.clone(value) for member in members)
    filling.close()
    for page in filling.full:
        nodes += page.nodes(len(nodes))
    self.app.client.flows.introduce(delivery.id, queues_of(nodes) - {delivery.queue})
    expires_ms = self.app.client.settings.flow_expires_ms
    raise Replace(Plan(new_batch_id(), nodes, description, expires_ms=expires_ms, callbacks=numbers))


def summary(self: Task[..., Any]) -> dict[str, Any]:
    """What a batch came to, which has just been complete."""
    delivery = current.get()
    assert delivery is not None, "it is called by workers"
    flow_id = delivery.meta["flow"][0]
    flow = self.app.client.flows.look(flow_id)
    if flow is None:
        raise FlowGone(f"batch {flow_id} is gone")
    return {"id": flow_id, "total": flow.total, "done": flow.ok, "failed": flow.bad}
