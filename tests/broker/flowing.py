"""Flows without workers: plans made by hand, and members that end as the test says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from rsq import codec
from rsq.broker.adding import Adding
from rsq.broker.client import Client
from rsq.calls.message import Delivery, Message
from rsq.calls.outcome import Buried, Completed, pack_failure, pack_success
from rsq.calls.placement import PLAIN, Placement
from rsq.calls.plan import Call, Node, Plan, shifted
from rsq.remote import encode_error
from rsq.states import State
from tests.broker.conftest import HOUR_MS, Rig


def call(
    task_id: str,
    *args: Any,
    queue: str = "q",
    priority: int = 0,
    placement: Placement = PLAIN,
    expires_ms: int | None = None,
    **meta: Any,
) -> Call:
    body = codec.encode_call(args, {}, None)
    return Call(Message(task_id, "tests.task", body, queue, priority, meta), placement, expires_ms)


def chain(*ids: str, **more: Any) -> list[Node]:
    """Each takes the value of the one before."""
    last = len(ids) - 1
    return [
        Node(
            call(task_id),
            outs=[number + 1] if number < last else [],
            waits=int(number > 0),
            takes=number - 1 if number else None,
            sink=number == last,
            fails=last if number < last else None,
            **more,
        )
        for number, task_id in enumerate(ids)
    ]


def chord(header: Sequence[str], body: str = "body", **more: Any) -> list[Node]:
    """The body takes the list of all values."""
    size = len(header)
    members = [Node(call(task_id), outs=[size], fails=size) for task_id in header]
    takes = [0, *([1 - size] if size > 1 else [])] if size else []
    return [*members, Node(call(body), waits=size, takes=takes, sink=True, **more)]


def group(ids: Iterable[str], **more: Any) -> list[Node]:
    return [Node(call(task_id), sink=True, **more) for task_id in ids]


def counted_from(base: int, node: Node) -> Node:
    """The same, where it is added with others before it."""
    takes = node.takes
    if isinstance(takes, int):
        takes += base
    errbacks = [(number if number < 0 else number + base, told) for number, told in node.errbacks]
    fails = None if node.fails is None else node.fails + base
    return replace(node, outs=shifted(node.outs, base), takes=takes, errbacks=errbacks, fails=fails)


class Flowing:
    """A rig whose calls are parts of flows."""

    def __init__(self, rig: Rig, client: Client) -> None:
        self.rig = rig
        self.client = client
        self.flows = client.flows
        self.held: dict[str, Delivery] = {}

    def start(self, nodes: Iterable[Node], flow_id: str = "f", **more: Any) -> str:
        self.flows.start(Plan(flow_id, nodes, **more))
        return flow_id

    def fetch(self, room: int = 1000) -> list[str]:
        """Ids of what comes, in order."""
        got = self.rig.get("alice", room)
        self.held |= {delivery.id: delivery for delivery in got}
        return [delivery.id for delivery in got]

    def adds(self, task_id: str, nodes: Iterable[Node], flow_id: str = "f") -> Adding:
        """The body of this call, which has come, adds these in one piece."""
        delivery, nodes = self.held[task_id], [*nodes]
        if not hasattr(delivery, "added"):
            delivery.added = {}
        adding: Adding = delivery.added.setdefault(flow_id, Adding(flow_id))
        adding.add(len(nodes), lambda base: [counted_from(base, node) for node in nodes])
        self.flows.keep(delivery, adding)
        return adding

    def ok(self, task_id: str, value: object = None) -> Completed:
        return Completed(self.held[task_id], "succeeded", pack_success(1, 0.0, value, 10**6), HOUR_MS)

    def dead(self, task_id: str, error: Exception | None = None) -> Buried:
        record = encode_error(error or ValueError(task_id))
        return Buried(self.held[task_id], "failed", record, pack_failure(State.FAILURE, 1, 0.0, record), HOUR_MS)

    def end(self, *verdicts: Completed | Buried) -> None:
        self.rig.commit("alice", *verdicts)

    def succeed(self, *ids: str) -> None:
        """They come, and succeed with their ids as values."""
        came = self.fetch()
        assert {*ids} <= {*came, *self.held}, came
        self.end(*(self.ok(task_id, task_id) for task_id in ids))

    def args(self, task_id: str) -> list[Any]:
        return codec.decode_call(self.held[task_id].body)[0]

    def state(self, flow_id: str = "f") -> str:
        flow = self.flows.look(flow_id)
        return "gone" if flow is None else flow.state

    def counts(self, flow_id: str = "f") -> tuple[int, int, int]:
        """Succeeded, not succeeded, open."""
        flow = self.flows.look(flow_id)
        assert flow is not None
        return flow.ok, flow.bad, flow.open

    def result(self, task_id: str, queue: str = "q") -> Any:
        """State and value of a result that was written, or None."""
        data = self.rig.redis.get(self.client.queue(queue).keys.result(task_id))
        if data is None:
            return None
        state, _, _, value = codec.decode(data)
        return state, value["message"] if isinstance(value, dict) else value

    def go_on(self) -> int:
        """Everything that was left; gives how many calls of the script that took."""
        for number in range(10_000):
            if not self.rig.link.run_one(self.rig.queue.go_on_call()):
                return number
        raise AssertionError("it never ends")

    def flow_keys(self) -> set[str]:
        return {key.decode() for key in self.rig.redis.scan_iter("{rsq:0}::*", count=1000)}

    def values(self, flow_id: str = "f") -> dict[int, Any]:
        found = self.rig.redis.hgetall(f"{{rsq:0}}::flow:{flow_id}")
        return {int(name[:-1]): msgpack.unpackb(packed) for name, packed in found.items() if name[-1:] == b"v"}


@pytest.fixture
def flowing(rig: Rig) -> Iterator[Flowing]:
    client = Client(rig.queue.settings)
    rig.hire("alice")
    yield Flowing(rig, client)
    client.close()
