"""Batches in any order, against a model: pages are added and come again, members add members, some beyond a page, and
it is sealed, twice too. Each call and each callback is released once, and each end is counted once.

Examples, steps and the budget of the scripts are as in `test_flow_model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from rsq.broker import adding
from rsq.broker.client import Client
from rsq.broker.dead_letters import dead_letter, redrive
from rsq.calls.outcome import Buried, Completed
from rsq.errors import BatchClosed
from tests.broker.conftest import Rig
from tests.broker.flowing import group
from tests.broker.models import OfFlows, keep_flows_to
from tests.broker.test_flow_batches import opened
from tests.broker.test_flow_model import stingy

__all__ = ["stingy"]

CALLBACKS = ("on_success", "on_complete", "on_death")


@dataclass
class Member:
    """What should be known of one call: its bit (open, ok, bad), and whether it is to end, or is a dead letter."""

    bit: str = "open"
    running: bool = True
    letter: bool = False


@dataclass
class Model:
    """A batch in which everything that follows from something follows at once.

    called  callbacks that were released, and whether they are to end
    """

    members: dict[str, Member] = field(default_factory=dict)
    sealed: bool = False
    called: dict[str, bool] = field(default_factory=dict)

    def add(self, number: int) -> list[str]:
        ids = [f"m{len(self.members) + n}" for n in range(number)]
        self.members |= {task_id: Member() for task_id in ids}
        return ids

    def end(self, task_id: str, ok: bool) -> None:
        if task_id in CALLBACKS:
            self.called[task_id] = False
            return
        member = self.members[task_id]
        member.bit, member.running, member.letter = "ok" if ok else "bad", False, not ok

    def call_back(self) -> None:
        bits = [member.bit for member in self.members.values()]
        if "bad" in bits:
            self.called.setdefault("on_death", True)
        if self.sealed and "open" not in bits:
            self.called.setdefault("on_complete", True)
            if "bad" not in bits:
                self.called.setdefault("on_success", True)

    @property
    def open(self) -> int:
        members = sum(member.bit == "open" or member.running for member in self.members.values())
        return members + sum(self.called.values())

    @property
    def state(self) -> str:
        if self.open or not self.sealed:
            return "started"
        return "failed" if any(member.bit == "bad" for member in self.members.values()) else "succeeded"


class Machine(OfFlows):
    def __init__(self, rig: Rig, client: Client) -> None:
        super().__init__(rig, client)
        self.pages: list[list[str]] = []

    @initialize(restless=st.booleans())
    def begin(self, restless: bool) -> None:
        self.flowing.rig.redis.flushall()
        self.flowing.rig.hire("alice")
        self.restless = restless
        self.model = Model()
        opened(self.flowing)
        self.came = []

    def settle(self) -> None:
        self.model.call_back()
        super().settle()

    def held(self) -> list[str]:
        running = [task_id for task_id, member in self.model.members.items() if member.running]
        running += [name for name, runs in self.model.called.items() if runs]
        return [task_id for task_id in running if task_id in self.came]

    @rule(number=st.integers(1, 4))
    def add(self, number: int) -> None:
        if self.model.sealed:
            with pytest.raises(BatchClosed):
                self.flowing.flows.add("f", "late", group(["late"]))
            return
        self.pages.append(self.model.add(number))
        self.add_again(len(self.pages) - 1)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def add_page_again(self, data: st.DataObject) -> None:
        """The reply was lost."""
        if self.model.state != "succeeded":
            self.add_again(data.draw(st.integers(0, len(self.pages) - 1)))

    def add_again(self, page: int) -> None:
        self.flowing.flows.add("f", f"p{page}", group(self.pages[page]))
        self.settle()

    @rule()
    def seal(self) -> None:
        assert self.flowing.flows.seal("f") == (not self.model.sealed)
        self.model.sealed = True
        self.settle()

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Some end, in one script, well or badly; some of them add members."""
        some = data.draw(st.lists(st.sampled_from(self.held()), min_size=1, max_size=4, unique=True))
        well = {each: each in CALLBACKS or data.draw(st.booleans()) for each in some}
        verdicts: list[Completed | Buried] = []
        # Those that succeed are committed first.
        for task_id in sorted(some, key=lambda each: not well[each]):
            pieces = [] if task_id in CALLBACKS else data.draw(st.lists(st.integers(1, 3), max_size=4))
            for number in pieces:
                ids = self.model.add(number) if well[task_id] else [f"never {n}" for n in range(number)]
                self.flowing.adds(task_id, group(ids))
            verdicts.append(self.flowing.ok(task_id) if well[task_id] else self.flowing.dead(task_id))
            self.model.end(task_id, well[task_id])
        self.flowing.end(*verdicts)
        self.commits.append(verdicts)
        self.settle()

    @precondition(lambda self: any(member.letter for member in self.model.members.values()))
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        letters = [task_id for task_id, member in self.model.members.items() if member.letter]
        task_id = data.draw(st.sampled_from(letters))
        letter = dead_letter(self.flowing.rig.link, self.flowing.rig.queue, task_id)
        assert letter is not None
        assert redrive(self.flowing.rig.link, self.flowing.rig.queue, letter)
        member = self.model.members[task_id]
        member.letter, member.running = False, True
        self.came.remove(task_id)
        self.settle()

    @invariant()
    def as_the_model_says(self) -> None:
        if not hasattr(self, "came") or self.restless:
            return
        assert sorted(self.came) == sorted([*self.model.members, *self.model.called])
        flow = self.flowing.flows.look("f")
        assert flow is not None
        bits = [member.bit for member in self.model.members.values()]
        assert (flow.total, flow.ok, flow.bad) == (len(bits), bits.count("ok"), bits.count("bad"))
        assert (flow.open, flow.state) == (self.model.open, self.model.state)

    def teardown(self) -> None:
        """It is sealed, and from now on all goes well: in the end everything has happened once, and nothing is left."""
        if not hasattr(self, "came"):
            return
        self.restless = False
        if not self.model.sealed:
            self.seal()
        self.settle()
        while ready := self.held():
            self.flowing.end(*(self.flowing.ok(task_id) for task_id in ready))
            for task_id in ready:
                self.model.end(task_id, True)
            self.settle()
        self.as_the_model_says()
        assert self.model.open == 0
        assert not [key for key in self.flowing.flow_keys() if "::added:" in key]


def test_the_scripts_keep_to_the_model(rig: Rig, stingy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "KEPT_AT_ONCE", 2)
    keep_flows_to(Machine, rig)
