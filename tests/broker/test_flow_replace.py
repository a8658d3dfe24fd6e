"""A call that hands its place on to a flow of its own, in the script that settles its entry."""

from __future__ import annotations

import pytest

from rsq.broker.dead_letters import dead_letter, redrive
from rsq.broker.worker_queue import Rules
from rsq.calls.outcome import Replaced
from rsq.calls.placement import Placement
from rsq.calls.plan import Node, Plan
from rsq.errors import BrokerRefused
from tests.broker.conftest import Rig
from tests.broker.flowing import Flowing, call, chain, chord, flowing, group

__all__ = ["flowing"]


def replace(flowing: Flowing, task_id: str, nodes: list[Node], flow_id: str = "new") -> list[int]:
    tail = next(number for number, node in enumerate(nodes) if node.call and node.call.message.id == task_id)
    return flowing.rig.commit("alice", Replaced(flowing.held[task_id], Plan(flow_id, nodes), tail))


def test_a_plain_call(flowing: Flowing) -> None:
    flowing.rig.add("a")
    flowing.fetch()
    assert replace(flowing, "a", chain("x", "y", "a")) == [1]
    assert replace(flowing, "a", chain("x", "y", "a")) == [0]
    assert flowing.result("a") is None
    flowing.succeed("x")
    flowing.succeed("y")
    flowing.succeed("a")
    assert flowing.args("a") == ["y"]
    assert flowing.result("a") == ("SUCCESS", "a")
    assert flowing.rig.redis.hget(flowing.rig.keys.stats, "replaced") == b"1"


@pytest.mark.parametrize("taken", [False, True])
def test_a_member(flowing: Flowing, taken: bool) -> None:
    """The body of its chord waits for the one that stands for it."""
    flowing.start(chord(["a", "b"]))
    flowing.fetch()
    if taken:
        flowing.rig.take("alice", flowing.held["a"])
    flowing.end(flowing.ok("b", 2))
    replace(flowing, "a", chain("x", "a"))
    assert flowing.fetch() == ["x"]
    flowing.end(flowing.ok("x"))
    assert flowing.fetch() == ["a"]
    flowing.end(flowing.ok("a", 1))
    assert flowing.fetch() == ["body"]
    assert flowing.values() == {0: 1, 1: 2}
    assert flowing.state("new") == "succeeded"
    flowing.end(flowing.ok("body"))
    assert flowing.state() == "succeeded"
    assert flowing.flow_keys() == {"{rsq:0}::flow:f", "{rsq:0}::flow:new"}


def test_again_and_again(flowing: Flowing) -> None:
    flowing.start(chain("a", "b"))
    for number in range(5):
        assert flowing.fetch() == ["a"]
        replace(flowing, "a", chain("a"), f"new{number}")
    assert flowing.fetch() == ["a"]
    flowing.end(flowing.ok("a", "at last"))
    assert flowing.fetch() == ["b"]
    assert flowing.args("b") == ["at last"]
    assert flowing.held["b"].meta["parent"] == "a"


def test_what_stands_for_it_fails(flowing: Flowing) -> None:
    """Also where it never runs; its errbacks hear of it, and a redrive carries on with both."""
    flowing.start(
        [
            Node(call("a"), outs=[1], fails=1, errbacks=[(2, "a")]),
            Node(call("b"), waits=1, takes=0, sink=True),
            Node(call("errback"), errback=True),
        ]
    )
    flowing.fetch()
    replace(flowing, "a", chain("x", "a"))
    flowing.fetch()
    flowing.end(flowing.dead("x"))
    assert flowing.fetch() == ["errback"]
    assert flowing.result("a") == flowing.result("b") == ("FAILURE", "x")
    flowing.end(flowing.ok("errback"))
    assert (flowing.state(), flowing.state("new")) == ("failed", "failed")
    letter = dead_letter(flowing.rig.link, flowing.rig.queue, "x")
    assert letter is not None
    redrive(flowing.rig.link, flowing.rig.queue, letter)
    for task_id in ("x", "a", "b"):
        assert flowing.fetch() == [task_id]
        flowing.end(flowing.ok(task_id, task_id))
    assert (flowing.state(), flowing.state("new")) == ("succeeded", "succeeded")
    assert flowing.result("b") == ("SUCCESS", "b")


def test_what_it_held_is_given_up_and_what_it_keeps_goes_on(flowing: Flowing, rig: Rig) -> None:
    rig.enqueue("a", Placement(dedupe_key="k", dedupe_until="done"), begin=True)
    flowing.fetch()
    rig.begin("alice", flowing.held["a"], Rules(slot=("s", 1)))
    assert rig.redis.hkeys("{rsq:0}:q:slots:s") == [b"a"]
    replace(flowing, "a", chain("a"))
    assert not rig.redis.exists("{rsq:0}:q:slots:s")
    assert rig.enqueue("other", Placement(dedupe_key="k")) == ("duplicate", "a")
    flowing.succeed("a")
    assert rig.enqueue("other", Placement(dedupe_key="k"))[0] == "accepted"


def test_cancelling_goes_down(flowing: Flowing) -> None:
    flowing.start(chain("a", "b"))
    flowing.fetch()
    replace(flowing, "a", chain("x", "y", "a"))
    flowing.flows.cancel("f", terminate=True)
    assert (flowing.state(), flowing.state("new")) == ("cancelled", "cancelled")
    assert flowing.result("a") == flowing.result("b") == ("REVOKED", "cancelled")
    (x,) = flowing.rig.get("alice")
    assert x.revoked
    assert flowing.rig.queue.revocations(flowing.rig.link, [x]) == [(True, True)]


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("way", ["revoked", "expired"])
def test_what_would_stand_for_it_does_not_start_in_a_flow_that_is_over(
    flowing: Flowing, rig: Rig, way: str, taken: bool
) -> None:
    """It ran on, and wants others in its place: it ends like all that the flow had not started."""
    flowing.start(chain("a", "b"))
    flowing.fetch()
    if taken:
        flowing.held["a"].taken = bool(rig.queue.take(rig.link, "alice", flowing.held["a"]))
    rig.begin("alice", flowing.held["a"], Rules(slot=("s", 1)))
    flowing.client.revoke(["a"], "q", False)
    if way == "revoked":
        assert flowing.flows.cancel("f")
    else:
        rig.redis.zadd("{rsq:0}::flows", {"f": 1})
        flowing.go_on()
    nodes = chord([f"m{n}" for n in range(1500)], "a")
    assert replace(flowing, "a", nodes)[-1] == 1
    state, message = flowing.result("a")
    assert (state, message) == flowing.result("b")
    assert message == "cancelled" if way == "revoked" else "no progress" in message
    assert flowing.fetch() == []
    assert not rig.redis.exists("{rsq:0}::flow:new", "{rsq:0}:q:slots:s", "{rsq:0}:q:calls")
    assert rig.redis.zscore("{rsq:0}:q:revoked", "a") is None
    stats = rig.redis.hgetall("{rsq:0}:q:stats")
    assert stats[way.encode()] == b"1"
    assert b"replaced" not in stats


@pytest.mark.parametrize("above", [False, True])
def test_a_batch_that_stands_for_it_is_cancelled(flowing: Flowing, above: bool) -> None:
    """What stands for the call is a callback of the batch, which nobody releases any more."""
    flowing.start(chain("a", "b"))
    flowing.fetch()
    nodes = [Node(call("a"), errback=True, sink=True), *group(["x"])]
    plan = Plan("new", nodes, callbacks={"complete": 0})
    flowing.rig.commit("alice", Replaced(flowing.held["a"], plan, 0))
    assert flowing.flows.cancel("f" if above else "new")
    assert flowing.result("a") == ("REVOKED", "cancelled")
    assert flowing.result("b") == ("REVOKED", "cancelled")
    assert flowing.state() == ("cancelled" if above else "failed")
    assert flowing.counts("new")[1] == 0, "a callback is no call"


def test_without_a_lease_nothing_is_replaced(flowing: Flowing) -> None:
    flowing.start(chain("a", "b"))
    flowing.fetch()
    flowing.rig.lapse("alice")
    flowing.rig.hire("bob")
    flowing.rig.get("bob")
    assert replace(flowing, "a", chain("x", "a")) == [-1]
    assert flowing.flow_keys() & {"{rsq:0}::flow:new"} == set()


def test_a_large_one(flowing: Flowing) -> None:
    """Its pages are stored before, unreleased, and are useless alone."""
    flowing.rig.add("a")
    flowing.fetch()
    nodes = chord([f"m{n}" for n in range(2500)], "a")
    *pages, last = flowing.rig.queue.commit_calls("alice", [Replaced(flowing.held["a"], Plan("new", nodes), 2500)])
    assert len(pages) == 2
    with pytest.raises(BrokerRefused, match="earlier pages of the flow are gone"):
        flowing.rig.link.run_one(last)
    for page in pages:
        flowing.rig.link.run_one(page)
    assert flowing.fetch() == []
    assert flowing.rig.link.run_one(last) == 1
    flowing.go_on()
    came = 0
    while more := flowing.fetch():
        came += len(more)
        flowing.end(*(flowing.ok(task_id, 1) for task_id in more))
        flowing.go_on()
    assert came == 2501
    assert flowing.result("a") == ("SUCCESS", 1)
