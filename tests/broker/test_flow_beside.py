"""Chords whose members add members: what waits for them waits for those, too, and gets their values at the end."""

from __future__ import annotations

from typing import Any

import pytest

from rsq.broker.dead_letters import dead_letter, redrive
from rsq.broker.flow_rows import read_node
from rsq.calls.inputs import arguments_of
from rsq.calls.message import Delivery
from rsq.calls.outcome import Completed
from rsq.calls.plan import CONTINUE, Failed, Node
from tests.broker.flowing import Flowing, call, chord, flowing

__all__ = ["flowing"]


def beside(*ids: str, waiting: int, **more: Any) -> list[Node]:
    return [Node(call(task_id), beside=[waiting], **more) for task_id in ids]


def adds(flowing: Flowing, task_id: str, *nodes: Node) -> Completed:
    """It succeeds, with its id as value, and adds these."""
    if task_id not in flowing.held:
        flowing.fetch()
    flowing.adds(task_id, nodes)
    return flowing.ok(task_id, task_id)


def bound(flowing: Flowing, delivery: Delivery) -> list[Any]:
    """The list that it gets."""
    delivery.inputs = flowing.rig.queue.flow_values(flowing.rig.link, delivery)
    (values,), _ = arguments_of(delivery)
    assert isinstance(values, list)
    return values


def redriven(flowing: Flowing, task_id: str) -> None:
    letter = dead_letter(flowing.rig.link, flowing.rig.queue, task_id)
    assert letter is not None
    assert redrive(flowing.rig.link, flowing.rig.queue, letter)
    assert task_id in flowing.fetch()


@pytest.mark.parametrize("header", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_what_is_added_comes_last(flowing: Flowing, header: list[str]) -> None:
    flowing.start(chord(header))
    flowing.end(adds(flowing, "a", *beside("x", "y", waiting=len(header))))
    assert flowing.fetch() == ["x", "y"]
    assert flowing.held["x"].meta["parent"] == "a"
    flowing.succeed("x", *header[1:])
    assert flowing.fetch() == []
    flowing.end(flowing.ok("y", "y"))
    assert flowing.fetch() == ["body"]
    body = flowing.held["body"]
    assert body.meta["flow"] == ["f", len(header), [0, *([1 - len(header)] if header[1:] else [])], 0, [len(header), 2]]
    assert bound(flowing, body) == [*header, "x", "y"]
    flowing.end(flowing.ok("body"))
    assert flowing.state() == "succeeded"
    assert flowing.counts() == (len(header) + 3, 0, 0)


def test_what_was_added_adds_itself(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.end(adds(flowing, "a", *beside("x", waiting=2)), flowing.ok("b", "b"))
    for task_id, following in (("x", "y"), ("y", "z")):
        flowing.end(adds(flowing, task_id, *beside(following, waiting=2)))
    flowing.succeed("z")
    assert flowing.fetch() == ["body"]
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "x", "y", "z"]


def test_a_canvas_is_added(flowing: Flowing) -> None:
    """Its end counts."""
    flowing.start(chord(["a", "b"]))
    added = [Node(call("x"), outs=[1]), Node(call("y"), waits=1, takes=0, beside=[2])]
    flowing.end(adds(flowing, "a", *added), flowing.ok("b", "b"))
    flowing.succeed("x")
    assert flowing.fetch() == ["y"]
    assert flowing.args("y") == ["x"]
    flowing.end(flowing.ok("y", "y"))
    assert flowing.fetch() == ["body"]
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "y"]


def test_a_commit_is_repeated(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    verdict = adds(flowing, "a", *beside("x", waiting=2))
    for _ in range(3):
        flowing.end(verdict)
    assert flowing.fetch() == ["x"]
    flowing.succeed("x", "b")
    flowing.end(verdict)
    assert flowing.fetch() == ["body"]
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "x"]


def test_an_attempt_that_dies_adds_nothing(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    adds(flowing, "a", *beside("x", waiting=2))
    flowing.end(flowing.dead("a"), flowing.ok("b", "b"))
    assert flowing.fetch() == []
    assert flowing.counts() == (1, 2, 0)
    redriven(flowing, "a")
    flowing.end(adds(flowing, "a", *beside("y", waiting=2)))
    assert flowing.fetch() == ["y"]
    flowing.end(flowing.ok("y", "y"))
    assert flowing.fetch() == ["body"]
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "y"]


def test_what_is_added_dies_and_is_redriven(flowing: Flowing) -> None:
    """The body's errback hears of it, once; the body runs in the end."""
    header = [Node(call(n), outs=[2], fails=2, errbacks=[(3, "body")]) for n in "ab"]
    body = Node(call("body"), waits=2, takes=[0, -1], sink=True, errbacks=[(3, "body")])
    flowing.start([*header, body, Node(call("errback"), errback=True)])
    flowing.end(adds(flowing, "a", *beside("x", waiting=2, errbacks=[(~3, "body")])))
    flowing.succeed("b")
    flowing.fetch()
    flowing.end(flowing.dead("x"))
    assert flowing.fetch() == ["errback"]
    assert flowing.held["errback"].meta["flow"] == ["f", 3, "4 body q tests.task"]
    assert flowing.result("body") == ("FAILURE", "x")
    flowing.end(flowing.ok("errback"))
    assert flowing.state() == "failed"
    redriven(flowing, "x")
    flowing.end(flowing.dead("x"))
    assert flowing.fetch() == []
    redriven(flowing, "x")
    flowing.end(flowing.ok("x", "x"))
    assert flowing.fetch() == ["body"]
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "x"]


def test_a_body_that_runs_in_any_case(flowing: Flowing) -> None:
    """One that has been released waits for nothing more: then nothing is added."""
    flowing.start(chord(["a", "b"], policy=CONTINUE))
    flowing.end(adds(flowing, "a", *beside("x", waiting=2)))
    flowing.fetch()
    flowing.end(flowing.dead("x"), flowing.dead("b"))
    assert flowing.fetch() == ["body"]
    values = bound(flowing, flowing.held["body"])
    assert values[0] == "a"
    assert [type(value) for value in values[1:]] == [Failed, Failed]
    redriven(flowing, "b")
    flowing.end(adds(flowing, "b", *beside("y", waiting=2)))
    assert flowing.fetch() == []
    flowing.end(flowing.ok("body"))
    assert flowing.counts() == (3, 1, 0)


def test_many_bodies_behind_a_join(flowing: Flowing) -> None:
    header = [Node(call(n), outs=[2]) for n in "ab"]
    bodies = [Node(call(f"body{n}"), waits=1, takes=[0, -1], sink=True) for n in range(300)]
    flowing.start([*header, Node(None, outs=[3, -299], waits=2), *bodies])
    flowing.end(adds(flowing, "a", *beside("x", waiting=2)), flowing.ok("b", "b"))
    flowing.succeed("x")
    flowing.go_on()
    came = flowing.fetch()
    assert sorted(came) == sorted(f"body{n}" for n in range(300))
    for task_id in (came[0], came[-1]):
        assert bound(flowing, flowing.held[task_id]) == ["a", "b", "x"]


def test_two_lists_of_one_call(flowing: Flowing) -> None:
    header = [Node(call(n), outs=[2, -1]) for n in "ab"]
    takers = [Node(call(n), waits=2, takes=[0, -1], sink=True) for n in ("c", "d")]
    flowing.start([*header, *takers])
    flowing.end(adds(flowing, "a", Node(call("x"), beside=[2, 3])), flowing.ok("b", "b"))
    flowing.succeed("x")
    assert flowing.fetch() == ["c", "d"]
    assert bound(flowing, flowing.held["c"]) == bound(flowing, flowing.held["d"]) == ["a", "b", "x"]


def test_many_are_added_by_many(flowing: Flowing) -> None:
    """Their numbers are kept in pages, so that what a script does for one more does not grow with what there is."""
    flowing.start(chord(["a", "b", "c"]))
    flowing.fetch()
    added = {n: [f"{n}{k}" for k in range(800)] for n in "abc"}
    flowing.end(*(adds(flowing, n, *beside(*added[n], waiting=3)) for n in "abc"))
    pages = flowing.rig.redis.hmget("{rsq:0}::flow:f", "3m", "3m0", "3m1", "3m2", "3m3")
    assert [pages[0], *map(len, pages[1:4]), pages[4]] == [b"2400", 4000, 4000, 1600, None]
    flowing.go_on()
    while more := flowing.fetch():
        if more == ["body"]:
            break
        flowing.end(*(flowing.ok(task_id, task_id) for task_id in more))
        flowing.go_on()
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "c", *added["a"], *added["b"], *added["c"]]


def test_within_a_batch(flowing: Flowing) -> None:
    """What the body takes counts from where the chord was added."""
    flowing.start([], grows=True)
    flowing.flows.add("f", "0", [Node(call("first"), sink=True)])
    flowing.flows.add("f", "1", chord(["a", "b"]))
    flowing.flows.seal("f")
    flowing.succeed("first")
    flowing.end(adds(flowing, "a", *beside("x", waiting=3)), flowing.ok("b", "b"))
    flowing.succeed("x")
    assert flowing.fetch() == ["body"]
    assert flowing.held["body"].meta["flow"] == ["f", 3, [0, -1], 1, [3, 1]]
    assert bound(flowing, flowing.held["body"]) == ["a", "b", "x"]
    flowing.end(flowing.ok("body"))
    assert flowing.state() == "succeeded"


def test_a_cancelled_flow_takes_nothing(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.fetch()
    flowing.flows.cancel("f")
    flowing.end(adds(flowing, "a", *beside("x", waiting=2)))
    assert flowing.fetch() == []
    assert flowing.state() == "cancelled"


def test_how_it_is_stored(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.end(adds(flowing, "a", *beside("x", waiting=2, errbacks=[(~0, "t")])))
    rows = flowing.rig.redis.hmget("{rsq:0}::flow:f", 2, 3)
    body, added = (read_node(row) for row in rows)
    assert (body.waits, body.beside) == (3, [])
    assert (added.outs, added.beside, added.base, added.errbacks) == ([2], [2], 3, [-1, "t"])
