"""Flows with real workers, which are killed at any moment: each call once by commit, none before those it waits for."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest

from rsq import App, codec
from rsq.calls.message import Message, new_id
from rsq.calls.plan import CONTINUE, Call, Node, Plan
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import StartWorker, kill, settled, totals

MANY = 1500


def call(name: str, *args: Any, task_id: str = "", **meta: Any) -> Call:
    body = codec.encode_call(args, {}, None)
    return Call(Message(task_id or new_id(), f"{tasks.__name__}.{name}", body, "default", meta=meta))


def chains(app: App, number: int, length: int) -> list[str]:
    """Each adds 1 in every step, from 0. Gives the ids of the last calls."""
    ends = []
    for _ in range(number):
        calls = [call("add", *((0, 1) if step == 0 else (1,))) for step in range(length)]
        nodes = [
            Node(
                each,
                outs=[step + 1] if step + 1 < length else [],
                waits=int(step > 0),
                takes=step - 1 if step else None,
                sink=step + 1 == length,
                fails=length - 1 if step + 1 < length else None,
            )
            for step, each in enumerate(calls)
        ]
        app.client.flows.start(Plan(new_id(), nodes))
        ends.append(calls[-1].message.id)
    return ends


def fan_in(app: App, members: int) -> tuple[str, str]:
    """Many and one that takes what they gave, in front of a text. Gives the flow and the id of that one."""
    flow_id, body = new_id(), call("total")
    nodes = [Node(call("add", number, 1), outs=[members], fails=members) for number in range(members)]
    takes = [0, 1 - members]
    app.client.flows.start(Plan(flow_id, [*nodes, Node(body, waits=members, takes=takes, sink=True)]))
    return flow_id, body.message.id


@pytest.mark.parametrize("what", ["child", "worker"])
def test_who_is_killed_loses_and_doubles_nothing(app: App, start_worker: StartWorker, redis: Any, what: str) -> None:
    worker = start_worker(concurrency=2, lease=1)
    flow_id, body = fan_in(app, MANY)
    ends = chains(app, 20, 30)
    for kills in range(4):
        wait_until(
            partial(lambda least: totals(app).counters.get("succeeded", 0) > least, 100 + kills * 300), what="progress"
        )
        if what == "child":
            kill(random.choice(wait_until(worker.children, what="a child")))
        else:
            worker.kill()
            worker = start_worker(concurrency=2, lease=1)
    assert app.AsyncResult(body).get(timeout=60) == sum(range(1, MANY + 1))
    assert [app.AsyncResult(end).get(timeout=60) for end in ends] == [30] * len(ends)
    wait_until(lambda: settled(app), 20, "everything to be settled")
    # By commit each has ended once.
    assert totals(app).counters["succeeded"] == MANY + 1 + 20 * 30
    flow = app.client.flows.look(flow_id)
    assert flow is not None
    assert (flow.state, flow.ok, flow.open) == ("succeeded", MANY + 1, 0)
    assert not redis.exists("{rsq:0}::todo")
    assert worker.stop() == 0


def test_values_by_reference_with_errors_among_them(app: App, start_worker: StartWorker) -> None:
    start_worker()
    body, late = call("kinds"), call("add", 1)
    nodes = [
        Node(call("add", 1, 2, ignore_result=True), outs=[2]),
        Node(call("raises", "value"), outs=[2]),
        Node(body, waits=2, takes=[0, 1], policy=CONTINUE, sink=True),
        Node(call("add", "x", "y" * 70_000), outs=[4]),
        Node(call("size", task_id=late.message.id), waits=1, takes=3, sink=True),
    ]
    app.client.flows.start(Plan(new_id(), nodes))
    assert app.AsyncResult(body.message.id).get(timeout=20) == ["int", "Failed"]
    assert app.AsyncResult(late.message.id).get(timeout=20) == 70_001


@pytest.mark.parametrize(("name", "told"), [("told_all", True), ("told_id", False)])
def test_an_errback_is_told_as_much_as_it_takes(app: App, start_worker: StartWorker, name: str, told: bool) -> None:
    start_worker()
    dies, errback = call("raises", "value"), call(name)
    task_id = dies.message.id
    nodes = [Node(dies, errbacks=[(1, task_id)], sink=True), Node(errback, errback=True)]
    app.client.flows.start(Plan(new_id(), nodes))
    got = app.AsyncResult(errback.message.id).get(timeout=20)
    assert got == ([task_id, dies.message.task, "ValueError", True] if told else task_id)
