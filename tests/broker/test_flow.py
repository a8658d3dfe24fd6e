"""Flows on the server: what a start, and the end of a member, lead to."""

from __future__ import annotations

import pytest

from rsq.calls.plan import Node
from tests.broker.flowing import Flowing, call, chain, chord, flowing, group

__all__ = ["flowing"]


def test_a_chain(flowing: Flowing) -> None:
    flowing.start(chain("a", "b", "c"))
    assert flowing.state() == "started"
    assert flowing.fetch() == ["a"]
    assert flowing.held["a"].meta == {"flow": ["f", 0]}
    flowing.end(flowing.ok("a", 7))
    assert flowing.fetch() == ["b"]
    assert flowing.args("b") == [7]
    assert flowing.held["b"].meta == {"flow": ["f", 1], "parent": "a"}
    flowing.end(flowing.ok("b", {"x": 2**60 + 1}))
    assert flowing.fetch() == ["c"]
    assert flowing.args("c") == [{"x": 2**60 + 1}]
    flowing.end(flowing.ok("c", "end"))
    assert flowing.result("c") == ("SUCCESS", "end")
    assert flowing.state() == "succeeded"
    assert flowing.counts() == (3, 0, 0)
    assert flowing.flow_keys() == {"{rsq:0}::flow:f"}
    assert flowing.rig.redis.pttl("{rsq:0}::flow:f") > 0


def test_a_chord(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b", "c"]))
    assert flowing.fetch() == ["a", "b", "c"]
    flowing.end(flowing.ok("a", 1), flowing.ok("c", 3))
    assert flowing.fetch() == []
    flowing.end(flowing.ok("b", 2))
    assert flowing.fetch() == ["body"]
    body = flowing.held["body"]
    assert body.meta == {"flow": ["f", 3, [0, -2]], "parent": "b"}
    assert flowing.args("body") == []
    assert flowing.values() == {0: 1, 1: 2, 2: 3}
    flowing.end(flowing.ok("body", 6))
    assert flowing.state() == "succeeded"
    assert flowing.flow_keys() == {"{rsq:0}::flow:f"}


def test_a_group(flowing: Flowing) -> None:
    flowing.start(group(["a", "b"]))
    flowing.succeed("a", "b")
    assert flowing.state() == "succeeded"
    assert flowing.counts() == (2, 0, 0)


def test_empty_ones(flowing: Flowing) -> None:
    flowing.start([])
    assert flowing.state() == "succeeded"
    flowing.start([Node(None, outs=[1]), Node(call("body"), waits=1, takes=[], sink=True)], "g")
    assert flowing.fetch() == ["body"]
    flowing.end(flowing.ok("body"))
    assert flowing.state("g") == "succeeded"


def test_a_chord_of_many_and_many(flowing: Flowing) -> None:
    """With a join between."""
    header = [Node(call(f"h{n}"), outs=[3]) for n in range(3)]
    bodies = [Node(call(f"b{n}"), waits=1, takes=[0, -2], sink=True) for n in range(4)]
    flowing.start([*header, Node(None, outs=[4, -3], waits=3), *bodies])
    flowing.succeed("h0", "h1", "h2")
    assert flowing.fetch() == ["b0", "b1", "b2", "b3"]
    assert flowing.values() == {0: "h0", 1: "h1", 2: "h2"}
    flowing.end(*(flowing.ok(f"b{n}") for n in range(4)))
    assert flowing.state() == "succeeded"
    assert flowing.counts() == (7, 0, 0)


def test_a_death_ends_the_last_one_with_its_error(flowing: Flowing) -> None:
    flowing.start(chain("a", "b", "c"))
    flowing.fetch()
    flowing.end(flowing.dead("a"))
    assert flowing.result("c") == ("FAILURE", "a")
    assert flowing.result("b") is None
    assert flowing.flows.outcome("f", 1) == flowing.flows.outcome("f", 2)
    assert flowing.flows.outcome("f", 0) is not None
    assert flowing.state() == "failed"
    assert flowing.counts() == (0, 3, 0)
    assert flowing.fetch() == []
    for key in flowing.flow_keys() - {"{rsq:0}::flows"}:
        assert flowing.rig.redis.pttl(key) > 0, key


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_commit_that_is_repeated_releases_once(flowing: Flowing, repeats: int) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.fetch()
    for _ in range(repeats):
        flowing.end(flowing.ok("a", 1))
    assert flowing.fetch() == []
    for _ in range(repeats):
        flowing.end(flowing.ok("b", 1))
    assert flowing.fetch() == ["body"]
    assert flowing.counts() == (2, 0, 1)


def test_a_start_that_is_repeated(flowing: Flowing) -> None:
    flowing.start(chain("a", "b"))
    flowing.start(chain("a", "b"))
    flowing.succeed("a")
    flowing.start(chain("a", "b"))
    flowing.succeed("b")
    flowing.start(chain("a", "b"))
    assert flowing.fetch() == []
    assert flowing.state() == "succeeded"


def test_a_large_flow_is_released_in_steps(flowing: Flowing) -> None:
    flowing.start(chord([f"m{n}" for n in range(2500)]))
    came: list[str] = []
    while more := flowing.fetch():
        came += more
    assert len(came) == len({*came}) == 2500
    for first in range(0, 2500, 500):
        flowing.end(*(flowing.ok(task_id, 1) for task_id in came[first : first + 500]))
    flowing.go_on()
    assert flowing.fetch() == ["body"]
    assert flowing.counts() == (2500, 0, 1)
