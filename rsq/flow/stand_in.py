"""What takes the place of a call that runs: a flow of which one call has its id, lies in its queue, and ends as it
would have ended. So whoever waits for it finds the result where it would have been."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from rsq import codec
from rsq.calls.message import Delivery, Message, new_id
from rsq.calls.plan import Call, Plan
from rsq.canvas.inside import Inside
from rsq.canvas.signature import Chain, Group, Signature
from rsq.flow.numbering import Draft
from rsq.flow.planner import Planner, nothing_before

GATHER = "rsq.gather"
START = "rsq.start"

V = TypeVar("V")


def gather(value: V) -> V:
    """What it is given: the value of many calls as that of one."""
    return value


def start(self: Inside, canvas: Signature[Any]) -> NoReturn:
    """Give its place to a canvas: so a schedule fires one."""
    self.replace(canvas)


def stand_in(app: Any, signature: Signature[Any], delivery: Delivery) -> Plan:
    """The flow of this signature that stands for a call that runs. Raises what planning it raises.

    It has the stamps of that call. Where its last call cannot stand for it, since there are several or it goes to
    another queue, one comes behind that gives on what it gets.
    """
    if stamps := delivery.meta.get("stamps"):
        signature = signature.clone().stamp(append_stamps=True, **stamps)
    last = signature
    while isinstance(last, Chain):
        last = last.tasks[-1]
    if not isinstance(last, Group):
        plan = _StandIn(app, delivery).plan_of(signature.clone(task_id=delivery.id), gathers=False)
        if plan is not None:
            return plan
    plan = _StandIn(app, delivery).plan_of(signature, gathers=True)
    assert plan is not None
    return plan


class _StandIn(Planner):
    """Plans what stands for one call."""

    def __init__(self, app: Any, delivery: Delivery) -> None:
        super().__init__(app)
        self._delivery = delivery

    def plan_of(self, signature: Signature[Any], gathers: bool) -> Plan | None:
        """None where its last call goes to another queue, and nothing gathers what it gives."""
        after = self._part(signature, nothing_before, 0)
        if gathers:
            tail = self._gather(after.ends, after.shape)
        else:
            (tail,) = after.ends
        draft = self._drafts[tail]
        assert draft.call is not None
        if draft.call.message.queue != self._delivery.queue:
            return None
        draft.call, draft.sink = self._kept_as_long(draft.call), True
        for each in self._drafts:
            if each.call is not None and not each.waits and not each.errback:
                self._has_parent_of_it(each.call.message)
        return self._planned(new_id(), repr(signature)[:200])

    def _gather(self, ends: Any, shape: Any) -> int:
        delivery = self._delivery
        body = codec.encode_call((), {}, None)
        message = Message(
            self._own(delivery.id), GATHER, body, delivery.queue, delivery.priority, {"root": self._root or delivery.id}
        )
        number = self._add(Draft(Call(message), len(ends), shape))
        for earlier in ends:
            self._drafts[earlier].outs.append(number)
        return number

    def _kept_as_long(self, call: Call) -> Call:
        """Its result is wanted by whoever wants that of the call for which it stands."""
        message, delivery = call.message, self._delivery
        options = self._app.task_by_name(delivery.task).options
        meta = dict(message.meta)
        for name in ("ignore_result", "result_expires"):
            meta[name] = delivery.meta.get(name, getattr(options, name))
        self._result_ttl_ms = max(self._result_ttl_ms, int(meta["result_expires"] * 1000))
        return replace(call, message=replace(message, meta=meta))

    def _has_parent_of_it(self, message: Message) -> None:
        """It comes from where the call for which it stands comes from."""
        meta = dict(message.meta)
        meta.pop("parent", None)
        if (parent := self._delivery.meta.get("parent")) is not None:
            meta["parent"] = parent
        message.meta = meta
