"""Flows in any order, against a model: each call is released once, never early, and each end is counted once.

How long and how far it looks, see `tests.broker.models`. The scripts have a budget of three nodes here, so that nearly
everything that follows from something takes several of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from rsq.broker import scripts
from rsq.broker.dead_letters import dead_letter, redrive
from rsq.calls.outcome import Buried, Completed
from rsq.calls.plan import CONTINUE, POLICIES, Node, in_runs
from tests.broker.conftest import Rig
from tests.broker.flowing import call
from tests.broker.models import OfFlows, keep_flows_to

BUDGET = "local MOST_NODES, MOST_BYTES, INLINE_BYTES, PROLONG_MS = 200,"


@dataclass
class Place:
    """What should be known of one node.

    bit       open | ok | bad
    waits     how many it still waits for
    sent      it was released; errbacks and calls once, whatever happens
    running   it is to end
    letter    it is a dead letter
    """

    kind: str
    outs: list[int]
    waits: int
    policy: str
    errbacks: list[int]
    bit: str = "open"
    sent: bool = False
    running: bool = False
    letter: bool = False


@dataclass
class Model:
    """A flow in which everything that follows from an end follows at once."""

    places: list[Place]
    released: list[int] = field(default_factory=list)

    def start(self) -> None:
        for number, place in enumerate(self.places):
            if not place.waits and place.kind != "errback":
                self.release(number)

    def release(self, number: int) -> None:
        place = self.places[number]
        if place.kind == "join":
            if place.bit != "ok":
                self.move(number, "ok")
        elif not place.sent:
            place.sent = place.running = True
            self.released.append(number)

    def end(self, number: int, ok: bool) -> None:
        place = self.places[number]
        place.running, place.letter = False, not ok
        if place.bit == "ok":
            return
        if not ok:
            for errback in place.errbacks:
                self.release(errback)
            if place.bit == "bad":
                return
        self.move(number, "ok" if ok else "bad")

    def move(self, number: int, to: str) -> None:
        place = self.places[number]
        was, place.bit = place.bit, to
        for out in place.outs:
            behind = self.places[out]
            if to == "bad" and behind.policy != CONTINUE:
                if behind.bit == "open":
                    self.move(out, "bad")
            elif was == "open" or behind.policy != CONTINUE:
                behind.waits -= 1
                if not behind.waits:
                    self.release(out)

    @property
    def open(self) -> int:
        ends = sum(place.bit == "open" and place.kind != "errback" for place in self.places)
        return ends + sum(place.running and (place.bit == "bad" or place.kind == "errback") for place in self.places)

    @property
    def state(self) -> str:
        if self.open:
            return "started"
        sinks = [place for place in self.places if place.kind == "call" and not place.outs]
        return "succeeded" if all(place.bit == "ok" for place in sinks) else "failed"


@st.composite
def graphs(draw: st.DrawFn) -> list[Place]:
    """Edges lead to higher numbers; what comes behind them are errbacks."""
    size = draw(st.integers(1, 12))
    places = []
    for number in range(size):
        later: list[int] = []
        if number + 1 < size:
            later = draw(st.lists(st.integers(number + 1, size - 1), unique=True, max_size=4))
        kind = draw(st.sampled_from(["call", "call", "call", "join"]))
        places.append(Place(kind, sorted(later), 0, draw(st.sampled_from([*POLICIES, "fail"])), []))
    for place in places:
        for out in place.outs:
            places[out].waits += 1
    for number in range(draw(st.integers(0, 3))):
        for place in places[:size]:
            if place.kind == "call" and draw(st.booleans()):
                place.errbacks.append(size + number)
        places.append(Place("errback", [], 0, "fail", []))
    return places


class Machine(OfFlows):
    @initialize(graph=graphs(), restless=st.booleans())
    def begin(self, graph: list[Place], restless: bool) -> None:
        self.flowing.rig.redis.flushall()
        self.flowing.rig.hire("alice")
        self.restless = restless
        self.model = Model(graph)
        self.nodes = [
            Node(
                None if place.kind == "join" else call(f"n{number}"),
                outs=in_runs(place.outs),
                waits=place.waits,
                policy=place.policy,
                errbacks=[(errback, f"n{number}") for errback in place.errbacks],
                errback=place.kind == "errback",
                sink=place.kind == "call" and not place.outs,
            )
            for number, place in enumerate(graph)
        ]
        self.flowing.start(self.nodes)
        self.model.start()
        self.came = []
        self.settle()

    def named(self, task_id: str) -> int:
        return int(task_id[1:])

    def held(self) -> list[int]:
        return [n for n, place in enumerate(self.model.places) if place.running and n in self.came]

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Some end, in one script, well or badly."""
        some = data.draw(st.lists(st.sampled_from(self.held()), min_size=1, max_size=4, unique=True))
        well = {number: data.draw(st.booleans()) for number in some}
        verdicts: list[Completed | Buried] = []
        # Those that succeed are committed first.
        for number in sorted(some, key=lambda each: not well[each]):
            verdicts.append(self.flowing.ok(f"n{number}", number) if well[number] else self.flowing.dead(f"n{number}"))
            self.model.end(number, well[number])
        self.flowing.end(*verdicts)
        self.commits.append(verdicts)
        self.settle()

    @rule()
    def start_again(self) -> None:
        self.flowing.start(self.nodes)

    @precondition(lambda self: any(place.letter and place.kind == "call" for place in self.model.places))
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        if self.flowing.state() not in ("started", "failed"):
            return
        letters = [n for n, place in enumerate(self.model.places) if place.letter and place.kind == "call"]
        number = data.draw(st.sampled_from(letters))
        letter = dead_letter(self.flowing.rig.link, self.flowing.rig.queue, f"n{number}")
        assert letter is not None
        assert redrive(self.flowing.rig.link, self.flowing.rig.queue, letter)
        place = self.model.places[number]
        place.letter, place.running = False, True
        self.came.remove(number)
        self.model.released.append(number)
        self.settle()

    @invariant()
    def as_the_model_says(self) -> None:
        if not hasattr(self, "came") or self.restless:
            return
        assert sorted(self.came) == sorted({*self.came})
        model, flow = self.model, self.flowing.flows.look("f")
        assert flow is not None
        assert {*self.came} == {*model.released}
        calls = [place for place in model.places if place.kind == "call"]
        assert (flow.ok, flow.bad) == tuple(sum(p.bit == bit for p in calls) for bit in ("ok", "bad"))
        assert flow.open == model.open
        assert flow.state == model.state

    def teardown(self) -> None:
        """Whatever was left undone: from now on all goes well, and in the end everything has happened, once."""
        if not hasattr(self, "came"):
            return
        self.restless = False
        self.settle()
        while ready := self.running():
            self.flowing.end(*(self.flowing.ok(task_id) for task_id in ready))
            self.settle()
        assert sorted(self.came) == sorted({*self.came})
        flow = self.flowing.flows.look("f")
        assert flow is not None
        assert flow.open == 0
        assert flow.state in ("succeeded", "failed")
        if all(place.bit == "ok" for place in self.model.places if place.kind == "call"):
            assert flow.state == "succeeded"

    def running(self) -> list[str]:
        rows = self.flowing.rig.redis.xpending_range(self.flowing.rig.keys.stream(), "rsq", "-", "+", 1000)
        entries = {row["message_id"] for row in rows}
        return [task_id for task_id, delivery in self.flowing.held.items() if delivery.entry_id in entries]


@pytest.fixture
def stingy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that do three nodes at a time."""
    changed = 0
    for script in scripts.ALL:
        source = script.source.replace(BUDGET, BUDGET.replace("200", "3"))
        changed += source != script.source
        monkeypatch.setattr(script, "source", source)
        monkeypatch.setattr(script, "sha", hashlib.sha1(source.encode()).hexdigest())
    assert changed > 5


def test_the_scripts_keep_to_the_model(rig: Rig, stingy: None) -> None:
    keep_flows_to(Machine, rig)
