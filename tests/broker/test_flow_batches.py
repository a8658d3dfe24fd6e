"""Batches: flows that grow until they are sealed, and what they tell of."""

from __future__ import annotations

import itertools

import pytest

from rsq.broker.dead_letters import dead_letter, redrive
from rsq.calls.inputs import arguments_of
from rsq.calls.outcome import Replaced, revoked
from rsq.calls.plan import CALLBACKS, Node, Plan
from rsq.errors import BatchClosed, SettingsError
from tests.broker.flowing import Flowing, call, chain, chord, flowing, group

__all__ = ["flowing"]

NAMES = [f"on_{name}" for name in CALLBACKS]


def opened(flowing: Flowing, flow_id: str = "f") -> None:
    callbacks = [Node(call(name), errback=True) for name in NAMES]
    flowing.start(callbacks, flow_id, grows=True, callbacks={name: number for number, name in enumerate(CALLBACKS)})


def ended(flowing: Flowing, *ids: str) -> None:
    flowing.end(*(flowing.ok(task_id) for task_id in ids))


def test_all_of_it_succeeds(flowing: Flowing) -> None:
    opened(flowing)
    flowing.flows.add("f", "1", group(["a", "b"]))
    flowing.flows.add("f", "2", group(["c"]))
    assert flowing.fetch() == ["a", "b", "c"]
    ended(flowing, "a", "b", "c")
    assert flowing.fetch() == []
    flow = flowing.flows.look("f")
    assert flow is not None
    assert (flow.state, flow.sealed, flow.total, flow.ok) == ("started", False, 3, 3)
    assert flowing.flows.seal("f")
    assert not flowing.flows.seal("f")
    assert flowing.fetch() == ["on_complete", "on_success"]
    ended(flowing, "on_complete", "on_success")
    assert flowing.state() == "succeeded"
    assert flowing.flow_keys() == {"{rsq:0}::flow:f"}
    with pytest.raises(BatchClosed, match="batch f takes no more calls"):
        flowing.flows.add("f", "3", group(["d"]))


def test_it_is_sealed_before_its_calls_have_ended(flowing: Flowing) -> None:
    opened(flowing)
    flowing.flows.add("f", "1", group(["a", "b"]))
    flowing.flows.seal("f")
    with pytest.raises(BatchClosed):
        flowing.flows.add("f", "2", group(["c"]))
    flowing.succeed("a")
    assert flowing.fetch() == []
    flowing.succeed("b")
    assert flowing.fetch() == ["on_complete", "on_success"]


def test_an_empty_one(flowing: Flowing) -> None:
    opened(flowing)
    assert flowing.fetch() == []
    flowing.flows.seal("f")
    assert flowing.fetch() == ["on_complete", "on_success"]
    flowing.start([], "g", grows=True)
    flowing.flows.seal("g")
    assert flowing.state("g") == "succeeded"


def test_one_of_it_dies(flowing: Flowing) -> None:
    """Once, however many follow; and when the dead letters succeed after all, it has succeeded."""
    opened(flowing)
    flowing.flows.add("f", "1", group(["a", "b", "c"]))
    flowing.fetch()
    flowing.end(flowing.dead("a"))
    assert flowing.fetch() == ["on_death"]
    flowing.end(flowing.dead("b"), flowing.ok("c"), flowing.ok("on_death"))
    assert flowing.fetch() == []
    flowing.flows.seal("f")
    assert flowing.fetch() == ["on_complete"]
    ended(flowing, "on_complete")
    assert flowing.state() == "failed"
    for task_id in ("a", "b"):
        letter = dead_letter(flowing.rig.link, flowing.rig.queue, task_id)
        assert letter is not None
        redrive(flowing.rig.link, flowing.rig.queue, letter)
        assert flowing.fetch() == [task_id]
        ended(flowing, task_id)
    assert flowing.fetch() == ["on_success"]
    ended(flowing, "on_success")
    assert flowing.state() == "succeeded"


@pytest.mark.parametrize("order", [*itertools.permutations(["add", "end", "seal"])])
def test_all_that_is_repeated_happens_once(flowing: Flowing, order: tuple[str, ...]) -> None:
    opened(flowing)
    flowing.flows.add("f", "1", group(["a"]))
    flowing.fetch()
    for _ in range(2):
        for act in order:
            if act == "add":
                flowing.flows.add("f", "1", group(["a"]))
            elif act == "end":
                ended(flowing, "a")
            else:
                flowing.flows.seal("f")
    assert flowing.fetch() == ["on_complete", "on_success"]
    assert flowing.counts() == (1, 0, 2)


def test_canvas_in_a_batch(flowing: Flowing) -> None:
    """Its nodes count from where they were added."""
    opened(flowing)
    flowing.flows.add("f", "1", chain("a", "b"))
    flowing.flows.add("f", "2", chord(["c", "d"]))
    flowing.flows.add("f", "3", [*chain("x", "y"), Node(call("errback"), errback=True)])
    flowing.flows.seal("f")
    flowing.succeed("a", "c", "d", "x")
    assert flowing.fetch() == ["b", "body", "y"]
    assert flowing.args("b") == ["a"]
    body = flowing.held["body"]
    assert body.meta["flow"] == ["f", 7, [0, -1], 5]
    body.inputs = flowing.rig.queue.flow_values(flowing.rig.link, body)
    assert body.inputs.keys() == {5, 6}
    assert arguments_of(body) == ([["c", "d"]], {})
    assert flowing.flows.nodes("f", 5, 1)[0].outs == [7]
    ended(flowing, "b", "body")
    flowing.end(flowing.dead("y"))
    assert flowing.fetch() == ["on_death", "on_complete"]


def test_one_that_takes_values_from_there_is_redriven(flowing: Flowing) -> None:
    opened(flowing)
    for key, ids, body in (("1", ["a", "b"], "first"), ("2", ["c", "d"], "second")):
        flowing.flows.add("f", key, chord(ids, body))
    flowing.flows.seal("f")
    flowing.succeed("a", "b", "c", "d")
    assert flowing.fetch() == ["first", "second"]
    ended(flowing, "first")
    flowing.end(flowing.dead("second"))
    assert flowing.fetch() == ["on_death", "on_complete"]
    ended(flowing, "on_death", "on_complete")
    letter = dead_letter(flowing.rig.link, flowing.rig.queue, "second")
    assert letter is not None
    assert redrive(flowing.rig.link, flowing.rig.queue, letter)
    assert flowing.state() == "started"
    flowing.succeed("second")
    assert flowing.fetch() == ["on_success"]


def test_errbacks_and_sinks_count_from_there_too(flowing: Flowing) -> None:
    opened(flowing)
    flowing.flows.add(
        "f",
        "1",
        [
            Node(call("a"), outs=[1], fails=1, errbacks=[(2, "b")]),
            Node(call("b"), waits=1, sink=True),
            Node(call("errback"), errback=True),
        ],
    )
    flowing.fetch()
    flowing.end(flowing.dead("a"))
    assert flowing.fetch() == ["errback", "on_death"]
    assert flowing.held["errback"].meta["flow"] == ["f", 5, "3 b q tests.task"]
    assert flowing.result("b") == ("FAILURE", "a")


def test_a_large_page(flowing: Flowing) -> None:
    """It is released in steps, and the batch waits for all of it."""
    opened(flowing)
    for key in ("1", "2"):
        flowing.flows.add("f", key, group(f"m{key}.{n}" for n in range(1000)))
    flowing.flows.seal("f")
    flowing.go_on()
    came: list[str] = []
    while more := flowing.fetch():
        came += more
        ended(flowing, *(task_id for task_id in more if task_id[0] == "m"))
        flowing.go_on()
    assert sorted(came) == sorted([*(f"m{key}.{n}" for n in range(1000) for key in "12"), "on_complete", "on_success"])


class TestMost:
    """`max_flow_calls` counts what is added, too."""

    def test_from_without(self, flowing: Flowing, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flowing.flows, "_settings", flowing.rig.queue.settings.with_values(max_flow_calls=6))
        opened(flowing)
        flowing.flows.add("f", "1", group(["a", "b", "c"]))
        with pytest.raises(SettingsError, match=r"batch f would have more than 6 calls \(max_flow_calls\)"):
            flowing.flows.add("f", "2", group(["d"]))
        assert flowing.fetch() == ["a", "b", "c"]

    def test_from_inside(self, flowing: Flowing, monkeypatch: pytest.MonkeyPatch) -> None:
        """The outcome of the member stands, and so does that of its neighbours; the batch cannot go on."""
        settings = flowing.rig.queue.settings.with_values(max_flow_calls=6)
        monkeypatch.setattr(flowing.rig.queue, "settings", settings)
        opened(flowing)
        opened(flowing, "g")
        flowing.flows.add("f", "1", group(["a", "b"]))
        flowing.flows.add("g", "1", group(["x", "y"]))
        flowing.fetch()
        for task_id, flow_id, number in (("a", "f", 2), ("x", "g", 1)):
            flowing.adds(task_id, group(f"{task_id}{n}" for n in range(number)), flow_id)
        ended(flowing, "a", "x")
        assert flowing.fetch() == ["x0"]
        assert flowing.result("a") == ("SUCCESS", None)
        assert (flowing.state("f"), flowing.state("g")) == ("failed", "started")
        error = flowing.rig.redis.hget("{rsq:0}::flow:f", "error")
        assert error == b"it would hold more than 6 calls (max_flow_calls)"


class TestLease:
    def test_nobody_keeps_it_open(self, flowing: Flowing) -> None:
        opened(flowing)
        flowing.flows.add("f", "1", group(["a"]))
        score = flowing.rig.redis.zscore("{rsq:0}::flows", "f")
        assert 0 < score - flowing.rig.now_ms() <= 10_000
        flowing.rig.redis.zadd("{rsq:0}::flows", {"f": 1})
        assert flowing.flows.keep_open("f")
        assert flowing.rig.redis.zscore("{rsq:0}::flows", "f") >= score
        flowing.rig.redis.zadd("{rsq:0}::flows", {"f": 1})
        flowing.go_on()
        flow = flowing.flows.look("f")
        assert flow is not None
        assert (flow.state, flow.sealed, flow.abandoned) == ("started", True, True)
        assert not flowing.flows.keep_open("f")
        assert flowing.fetch() == ["a", "on_death"]
        ended(flowing, "a", "on_death")
        assert flowing.fetch() == ["on_complete", "on_success"]

    def test_a_sealed_one_has_the_life_of_any_flow(self, flowing: Flowing) -> None:
        opened(flowing)
        flowing.flows.add("f", "1", group(["a"]))
        flowing.flows.seal("f")
        assert flowing.rig.redis.zscore("{rsq:0}::flows", "f") - flowing.rig.now_ms() > 86_400_000


@pytest.mark.parametrize("how", ["dies", "is revoked"])
def test_a_death_is_told_to_the_batches_around(flowing: Flowing, how: str) -> None:
    """At once and once, through whatever stands between; and whatever becomes of that."""
    opened(flowing)
    flowing.flows.add("f", "1", group(["a", "b"]))
    flowing.flows.seal("f")
    flowing.fetch()
    flowing.rig.commit("alice", Replaced(flowing.held["a"], Plan("between", chain("x", "a")), 1))
    flowing.fetch()
    within = [Node(call("x"), errback=True, sink=True), *group(["m1", "m2", "m3"])]
    flowing.rig.commit("alice", Replaced(flowing.held["x"], Plan("within", within, callbacks={"complete": 0}), 0))
    assert flowing.fetch() == ["m1", "m2", "m3"]
    for name in ("m1", "m2"):
        flowing.end(flowing.dead(name)) if how == "dies" else flowing.rig.commit("alice", revoked(flowing.held[name]))
        assert flowing.fetch() == (["on_death"] if name == "m1" else [])
    flowing.succeed("m3")
    for name in ("x", "a", "b"):
        flowing.succeed(name)
    assert flowing.fetch() == ["on_complete", "on_success"]
    assert flowing.counts() == (2, 0, 3), "its callbacks have not ended"


def test_a_cancelled_one_is_marked_wherever_its_calls_go(flowing: Flowing) -> None:
    """Those too that were added, from without and by members: what waits in a stream there does not start."""
    opened(flowing)
    flowing.flows.add("f", "1", [Node(call("a"), sink=True), Node(call("b", queue="bulk"), sink=True)])
    flowing.flows.add("f", "2", [Node(call("c", queue="bulk"), sink=True), Node(call("d", queue="side"), sink=True)])
    flowing.fetch()
    flowing.adds("a", [Node(call("e", queue="inner"), sink=True)])
    ended(flowing, "a")
    assert flowing.flows.cancel("f")
    for queue in ("q", "bulk", "side", "inner"):
        assert flowing.rig.redis.zscore(f"{{rsq:0}}:{queue}:revoked", "flow f") is not None


def test_a_cancelled_one_tells_nobody(flowing: Flowing) -> None:
    opened(flowing)
    flowing.flows.add("f", "1", group(["a"]))
    flowing.fetch()
    flowing.flows.cancel("f")
    with pytest.raises(BatchClosed):
        flowing.flows.add("f", "2", group(["b"]))
    flowing.end(flowing.dead("a"))
    assert flowing.fetch() == []
    assert flowing.state() == "cancelled"


class TestFromInside:
    """What a member adds goes with its outcome."""

    def test_it_holds_the_batch_open(self, flowing: Flowing) -> None:
        opened(flowing)
        flowing.flows.add("f", "1", group(["a"]))
        flowing.flows.seal("f")
        flowing.fetch()
        flowing.adds("a", [*chain("b", "c"), *group(["d"])])
        verdict = flowing.ok("a")
        for _ in range(2):
            flowing.end(verdict)
        assert flowing.fetch() == ["b", "d"]
        assert flowing.held["b"].meta["parent"] == "a"
        assert flowing.counts() == (1, 0, 3)
        ended(flowing, "b", "d")
        flowing.succeed("c")
        assert flowing.fetch() == ["on_complete", "on_success"]

    def test_one_that_dies_adds_nothing(self, flowing: Flowing) -> None:
        opened(flowing)
        flowing.flows.add("f", "1", group(["a"]))
        flowing.fetch()
        flowing.adds("a", group(["b"]))
        flowing.end(flowing.dead("a"))
        assert flowing.fetch() == ["on_death"]

    def test_several_in_one_commit(self, flowing: Flowing) -> None:
        opened(flowing)
        flowing.flows.add("f", "1", group(["a", "b", "c"]))
        flowing.flows.seal("f")
        flowing.fetch()
        for task_id in "ac":
            flowing.adds(task_id, group(f"{task_id}{n}" for n in range(300)))
        ended(flowing, "a", "b", "c")
        flowing.go_on()
        while more := flowing.fetch():
            ended(flowing, *(task_id for task_id in more if task_id[:3] != "on_"))
            flowing.go_on()
        assert {"on_success", "on_complete", "a299", "c0"} <= {*flowing.held}
        assert flowing.counts() == (603, 0, 2)
