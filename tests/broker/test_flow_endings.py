"""Each way in which a member can end, under each rule of what waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rsq.broker import scripts
from rsq.broker.dead_letters import dead_letter, redrive
from rsq.broker.rows import CutShort
from rsq.broker.worker_queue import LOST, LOST_TTL_MS
from rsq.calls.inputs import value_of
from rsq.calls.outcome import REVOKED_TTL_MS, Completed, Retried, failure_of, pack_failure, revoked, unpack_result
from rsq.calls.placement import Placement
from rsq.calls.plan import CONTINUE, FAIL, POLICIES, SKIP, Failed, Node
from rsq.errors import FlowGone, TaskRevoked
from rsq.states import ENDINGS, State
from tests.broker.conftest import HOUR_MS, Rig
from tests.broker.flowing import Flowing, call, chain, chord, flowing

__all__ = ["flowing"]


def skipped(counter: str) -> Callable[[Flowing], None]:
    def end(flowing: Flowing) -> None:
        flowing.fetch()
        result = pack_failure(State.REVOKED, 1, 0.0, counter)
        flowing.end(Completed(flowing.held["a"], counter, result, REVOKED_TTL_MS))

    return end


def silently(counter: str) -> Callable[[Flowing], None]:
    def end(flowing: Flowing) -> None:
        flowing.fetch()
        flowing.end(Completed(flowing.held["a"], counter, b"", 0))

    return end


def dead(flowing: Flowing) -> None:
    flowing.fetch()
    flowing.end(flowing.dead("a"))


def dead_silently(flowing: Flowing) -> None:
    flowing.fetch()
    verdict = flowing.dead("a")
    verdict.result, verdict.ttl_ms = b"", 0
    flowing.end(verdict)


def dead_after_taking(flowing: Flowing) -> None:
    flowing.fetch()
    flowing.rig.take("alice", flowing.held["a"])
    flowing.end(flowing.dead("a"))


def revoked_while_delayed(flowing: Flowing) -> None:
    flowing.rig.link.run_one(flowing.rig.queue.revoke_call(["a"], False))


def revoked_when_fetched(flowing: Flowing) -> None:
    flowing.fetch()
    flowing.end(revoked(flowing.held["a"]))


def purged(flowing: Flowing) -> None:
    flowing.rig.run(scripts.PURGE, 1000)


def lost(flowing: Flowing) -> None:
    """Its host is gone, and it was acknowledged early."""
    flowing.fetch()
    flowing.rig.take("alice", flowing.held["a"])
    flowing.rig.miss("alice")
    flowing.rig.hire("alice")


def lost_with_its_process(flowing: Flowing) -> None:
    flowing.fetch()
    delivery = flowing.held["a"]
    flowing.rig.take("alice", delivery)
    flowing.rig.link.run_one(
        flowing.rig.queue.retire_call(
            "alice", "signal SIGKILL", HOUR_MS, [CutShort(0, delivery.entry_id, "a", 1, "", LOST)]
        )
    )
    flowing.rig.hire("alice")


BADLY: dict[str, tuple[str, Callable[[Flowing], None], Placement, bool]] = {
    "dead": ("dead", dead, Placement(), True),
    "dead, and nobody wants its result": ("dead", dead_silently, Placement(), True),
    "dead after it was taken": ("dead", dead_after_taking, Placement(), True),
    "lost": ("lost", lost, Placement(), True),
    "lost with its process": ("lost", lost_with_its_process, Placement(), True),
    "expired": ("expired", skipped("expired"), Placement(), False),
    "expired silently": ("expired", silently("expired"), Placement(), False),
    "superseded": ("superseded", skipped("superseded"), Placement(), False),
    "revoked": ("revoked", revoked_when_fetched, Placement(), False),
    "revoked while it is delayed": ("revoked", revoked_while_delayed, Placement(delay_ms=10_000), False),
    "purged": ("purged", purged, Placement(), False),
    "purged while it is delayed": ("purged", purged, Placement(delay_ms=10_000), False),
}
"""How it ends, how that is brought about, how it was sent, and whether errbacks hear of it."""

WELL: dict[str, tuple[str, Callable[[Flowing], None]]] = {
    "succeeded": ("succeeded", lambda flowing: flowing.succeed("a")),
    "succeeded, and nobody wants its result": ("succeeded", silently("succeeded")),
    "ignored": ("ignored", silently("ignored")),
}


def test_all_are_here() -> None:
    assert {kind for kind, *_ in [*BADLY.values(), *WELL.values()]} == {*ENDINGS}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", BADLY)
def test_it_ends_badly(flowing: Flowing, way: str, policy: str) -> None:
    _, end, placement, loud = BADLY[way]
    flowing.start(
        [
            Node(call("a", placement=placement), outs=[1], errbacks=[(3, "a")]),
            Node(call("b"), outs=[2], waits=1, takes=0, policy=policy),
            Node(call("c"), waits=1, takes=1, sink=True),
            Node(call("errback"), errback=True),
        ]
    )
    end(flowing)
    flowing.go_on()
    came = flowing.fetch()
    assert ("errback" in came) == loud
    if loud:
        told = flowing.held["errback"].meta["flow"]
        assert told == ["f", 3, "0 a q tests.task"]
    outcome = flowing.flows.outcome("f", 0)
    assert outcome is not None
    failed = value_of(b"\xc1" + outcome)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TaskRevoked) == (not loud)
    if policy == CONTINUE:
        assert "b" in came
        assert flowing.held["b"].meta["flow"] == ["f", 1, 0]
        values = flowing.rig.queue.flow_values(flowing.rig.link, flowing.held["b"])
        assert [*values] == [0]
        assert isinstance(value_of(values[0]), Failed)
        flowing.end(flowing.ok("b", 1))
        flowing.succeed("c")
        assert flowing.result("c") == ("SUCCESS", "c")
    else:
        assert "b" not in came
        state, value = flowing.result("c")
        if policy == SKIP:
            assert (state, value) == ("REVOKED", "upstream")
        else:
            assert state == ("FAILURE" if loud else "REVOKED")
            assert flowing.flows.outcome("f", 2) == flowing.flows.outcome("f", 1) == outcome
        assert flowing.result("b") is None
    if loud:
        assert flowing.state() == "started"
        flowing.end(flowing.ok("errback"))
    assert flowing.state() == ("succeeded" if policy == CONTINUE else "failed")
    assert flowing.counts()[2] == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WELL)
def test_it_ends_well(flowing: Flowing, way: str, policy: str) -> None:
    flowing.start(
        [
            Node(call("a"), outs=[1], errbacks=[(2, "a")]),
            Node(call("b"), waits=1, takes=0, policy=policy, sink=True),
            Node(call("errback"), errback=True),
        ]
    )
    WELL[way][1](flowing)
    assert flowing.fetch() == ["b"]
    assert flowing.args("b") == ["a" if way == "succeeded" else None]
    flowing.end(flowing.ok("b"))
    assert flowing.state() == "succeeded"
    assert flowing.fetch() == []


def test_a_chord_of_whose_header_two_die(flowing: Flowing) -> None:
    """Its body has ended with the error of the first, and its errback runs once."""
    header = [Node(call(task_id), outs=[2], errbacks=[(3, "body")], fails=2) for task_id in ("a", "b")]
    body = Node(call("body"), waits=2, takes=[0, -1], sink=True, errbacks=[(3, "body")])
    flowing.start([*header, body, Node(call("errback"), errback=True)])
    flowing.fetch()
    flowing.end(flowing.dead("b"), flowing.dead("a"))
    assert flowing.fetch() == ["errback"]
    assert flowing.held["errback"].meta["flow"] == ["f", 3, "1 body q tests.task"]
    assert flowing.result("body") == ("FAILURE", "b")
    flowing.end(flowing.ok("errback"))
    assert flowing.fetch() == []
    assert flowing.state() == "failed"


def test_a_member_that_is_a_duplicate(flowing: Flowing) -> None:
    rig = flowing.rig
    rig.enqueue("winner", Placement(dedupe_key="k"))
    key = Placement(dedupe_key="k")
    flowing.start([Node(call("a", placement=key), outs=[1], fails=1), Node(call("b"), waits=1, takes=0, sink=True)])
    assert flowing.fetch() == ["winner"]
    assert flowing.result("a") == ("REVOKED", "duplicate of winner")
    assert flowing.result("b") == ("REVOKED", "duplicate of winner")
    assert flowing.state() == "failed"


@pytest.mark.parametrize("until", ["ttl", "done", "started"])
def test_two_members_with_one_key(flowing: Flowing, until: str) -> None:
    """Claimed when they are released, in one script or in two."""
    key = Placement(dedupe_key="k", dedupe_until=until)
    flowing.start([Node(call(task_id, placement=key), sink=True) for task_id in ("a", "b")])
    assert flowing.fetch() == ["a"]
    assert flowing.result("b") == ("REVOKED", "duplicate of a")
    assert flowing.rig.redis.get(flowing.client.queue("q").keys.dedupe("k")) == b"a"
    assert flowing.rig.enqueue("c", key) == ("duplicate", "a")
    flowing.end(flowing.ok("a"))
    assert flowing.counts() == (1, 1, 0)
    assert (flowing.rig.enqueue("d", key)[0] == "accepted") == (until != "ttl")


def test_one_that_was_revoked_while_it_waited(flowing: Flowing) -> None:
    """By its id alone, of which nobody knows that it is part of a flow."""
    flowing.start(
        [Node(call("a"), outs=[1]), Node(call("b"), waits=1, outs=[2], fails=2), Node(call("c"), waits=1, sink=True)]
    )
    flowing.client.revoke(["b"], "q", False)
    flowing.succeed("a")
    assert flowing.fetch() == []
    assert flowing.result("b") == flowing.result("c") == ("REVOKED", "revoked")
    assert flowing.state() == "failed"


def test_one_that_is_revoked_by_its_number(flowing: Flowing) -> None:
    flowing.start(
        [Node(call("a"), outs=[1]), Node(call("b"), waits=1, outs=[2], fails=2), Node(call("c"), waits=1, sink=True)]
    )
    assert not flowing.flows.revoke("f", 0)
    assert flowing.flows.revoke("f", 1)
    assert not flowing.flows.revoke("f", 1)
    assert not flowing.flows.revoke("gone", 1)
    assert flowing.result("b") == flowing.result("c") == ("REVOKED", "revoked")
    assert flowing.counts() == (0, 2, 1)
    flowing.succeed("a")
    assert flowing.fetch() == []
    assert flowing.state() == "failed"


class TestLate:
    """A member that was acknowledged early and is taken for lost spends nothing: who holds it may bring its outcome."""

    @staticmethod
    def lose(flowing: Flowing) -> None:
        flowing.start(
            [
                Node(call("a"), outs=[1], fails=1, errbacks=[(2, "a")]),
                Node(call("b"), waits=1, takes=0, sink=True, fails=1),
                Node(call("errback"), errback=True),
            ]
        )
        lost(flowing)
        assert flowing.fetch() == ["errback"]
        assert flowing.result("b") == flowing.result("a")
        flowing.end(flowing.ok("errback"))
        assert flowing.counts() == (0, 2, 0)
        assert flowing.state() == "failed"

    def test_it_has_succeeded(self, flowing: Flowing) -> None:
        self.lose(flowing)
        assert flowing.rig.commit("alice", flowing.ok("a", 7)) == [1]
        assert flowing.result("a") == ("SUCCESS", 7)
        assert flowing.result("b") is None
        assert flowing.fetch() == ["b"]
        assert flowing.args("b") == [7]
        assert flowing.rig.commit("alice", flowing.ok("a", 8)) == [0]
        flowing.end(flowing.ok("b", 1))
        assert flowing.state() == "succeeded"
        assert flowing.counts() == (2, 0, 0)

    def test_it_has_died(self, flowing: Flowing) -> None:
        """Of which its errback hears as little as of another death."""
        self.lose(flowing)
        assert flowing.rig.commit("alice", flowing.dead("a")) == [1]
        assert flowing.fetch() == []
        assert flowing.result("a") == ("FAILURE", "a")
        assert dead_letter(flowing.rig.link, flowing.rig.queue, "a") is not None

    def test_it_runs_again(self, flowing: Flowing) -> None:
        self.lose(flowing)
        meta = {**flowing.held["a"].meta, "attempt": 2}
        assert flowing.rig.commit("alice", Retried(flowing.held["a"], "retried", meta, 0, "")) == [1]
        flowing.rig.ripen("a")
        assert flowing.fetch() == ["a"]
        flowing.end(flowing.ok("a", 7))
        assert flowing.fetch() == ["b"]

    @pytest.mark.parametrize("how", ["later", "by another consumer", "under another entry"])
    def test_it_is_not_to_be_had(self, flowing: Flowing, how: str) -> None:
        self.lose(flowing)
        if how == "later":
            assert 0 < flowing.rig.redis.pttl("{rsq:0}:q:late:a") <= LOST_TTL_MS
            flowing.rig.redis.delete("{rsq:0}:q:late:a")
        elif how == "under another entry":
            flowing.held["a"].entry_id = b"1-1"
        flowing.rig.hire("bob")
        consumer = "bob" if how == "by another consumer" else "alice"
        assert flowing.rig.commit(consumer, flowing.ok("a", 7)) == [0]
        assert flowing.fetch() == []
        assert flowing.counts() == (0, 2, 0)


class TestRedrive:
    """A dead letter that succeeds after all carries its flow on."""

    @staticmethod
    def redrive(flowing: Flowing, task_id: str) -> None:
        letter = dead_letter(flowing.rig.link, flowing.rig.queue, task_id)
        assert letter is not None
        assert redrive(flowing.rig.link, flowing.rig.queue, letter)

    def test_a_chain(self, flowing: Flowing) -> None:
        flowing.start(
            [
                Node(call("a"), outs=[1], fails=2, errbacks=[(3, "a")]),
                Node(call("b"), waits=1, takes=0, outs=[2], fails=2, errbacks=[(3, "a")]),
                Node(call("c"), waits=1, takes=1, sink=True),
                Node(call("errback"), errback=True),
            ]
        )
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        assert flowing.fetch() == ["errback"]
        flowing.end(flowing.ok("errback"))
        assert flowing.state() == "failed"
        for _ in range(2):
            # It may fail once more, and errbacks never hear of that.
            self.redrive(flowing, "a")
            flow = flowing.flows.look("f")
            assert flow is not None
            assert (flow.state, flow.ended_ms) == ("started", 0), "who waits for it goes on waiting"
            assert flowing.fetch() == ["a"]
            flowing.end(flowing.dead("a"))
            assert flowing.state() == "failed"
            assert flowing.fetch() == []
        self.redrive(flowing, "a")
        for task_id in ("a", "b", "c"):
            assert flowing.fetch() == [task_id]
            flowing.end(flowing.ok(task_id, task_id))
        assert flowing.args("c") == ["b"]
        assert flowing.result("c") == ("SUCCESS", "c")
        assert flowing.state() == "succeeded"
        assert flowing.counts() == (3, 0, 0)
        assert flowing.flow_keys() == {"{rsq:0}::flow:f"}

    def test_a_step_that_fell_with_another_one_and_dies_itself(self, flowing: Flowing) -> None:
        """Its errback hears of its own death, once."""
        flowing.start(
            [
                Node(call("a"), outs=[1], fails=2),
                Node(call("b"), waits=1, takes=0, outs=[2], fails=2, errbacks=[(3, "b")]),
                Node(call("c"), waits=1, takes=1, sink=True),
                Node(call("errback"), errback=True),
            ]
        )
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        assert flowing.fetch() == []
        self.redrive(flowing, "a")
        flowing.succeed("a")
        assert flowing.fetch() == ["b"]
        assert flowing.flows.outcome("f", 2) is None
        flowing.end(flowing.dead("b"))
        assert flowing.fetch() == ["errback"]
        told = flowing.rig.queue.flow_values(flowing.rig.link, flowing.held["errback"])[1]
        assert failure_of(unpack_result(told[1:])).args == ("b",)
        flowing.end(flowing.ok("errback"))
        self.redrive(flowing, "b")
        flowing.fetch()
        flowing.end(flowing.dead("b"))
        assert flowing.fetch() == []

    def test_what_fell_and_runs_after_all_has_no_result_until_it_ends(self, flowing: Flowing) -> None:
        """Else one that keeps none would have failed for ever."""
        flowing.start(chain("a", "b"))
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        assert flowing.result("b") == ("FAILURE", "a")
        self.redrive(flowing, "a")
        flowing.succeed("a")
        assert flowing.fetch() == ["b"]
        assert flowing.result("b") is None

    def test_two_members_of_a_chord(self, flowing: Flowing) -> None:
        flowing.start(chord(["a", "b", "c"]))
        flowing.fetch()
        flowing.end(flowing.dead("a"), flowing.dead("b"), flowing.ok("c", 3))
        self.redrive(flowing, "a")
        flowing.succeed("a")
        assert flowing.fetch() == []
        assert flowing.state() == "failed"
        self.redrive(flowing, "b")
        flowing.succeed("b")
        assert flowing.fetch() == ["body"]
        assert flowing.rig.queue.flow_values(flowing.rig.link, flowing.held["body"]).keys() == {0, 1, 2}
        flowing.end(flowing.ok("body"))
        assert flowing.state() == "succeeded"

    @pytest.mark.parametrize("again", [False, True])
    def test_the_second_of_a_header_dies_once_the_first_is_well(self, flowing: Flowing, again: bool) -> None:
        """What fell with the first is answered with the error of the one that is to blame now, and so is all behind."""
        flowing.start(
            [
                *(Node(call(task_id), outs=[2], fails=3) for task_id in ("a", "b")),
                Node(call("body"), waits=2, takes=[0, -1], outs=[3], fails=3),
                Node(call("last"), waits=1, takes=2, sink=True),
            ]
        )
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        assert flowing.result("last") == ("FAILURE", "a")
        self.redrive(flowing, "a")
        flowing.fetch()
        if not again:
            flowing.end(flowing.ok("a", "a"))
        with flowing.rig.pushes("last") as pushes:
            flowing.end(flowing.dead("b"))
        assert len(pushes) == 1
        assert flowing.result("last") == ("FAILURE", "b")
        assert flowing.flows.outcome("f", 2) == flowing.flows.outcome("f", 3) == flowing.flows.outcome("f", 1)
        assert flowing.counts() == (0 if again else 1, 4 if again else 3, int(again))
        if again:
            flowing.end(flowing.ok("a", "a"))
        self.redrive(flowing, "b")
        for task_id in ("b", "body", "last"):
            flowing.succeed(task_id)
        assert flowing.result("last") == ("SUCCESS", "last")
        assert flowing.state() == "succeeded"

    def test_one_that_went_on_without_counts_each_death_once(self, flowing: Flowing) -> None:
        """A step that dies again, having fallen with another one, releases nothing a second time."""
        flowing.start(
            [
                Node(call("a"), outs=[1], fails=2),
                Node(call("b"), waits=1, outs=[2]),
                Node(call("c"), waits=2, takes=[1, 3], policy=CONTINUE, sink=True),
                Node(call("d"), outs=[2]),
            ]
        )
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        self.redrive(flowing, "a")
        flowing.succeed("a")
        assert flowing.fetch() == ["b"]
        flowing.end(flowing.dead("b"))
        self.redrive(flowing, "b")
        flowing.fetch()
        flowing.end(flowing.dead("b"))
        assert flowing.fetch() == []
        flowing.end(flowing.ok("d", "d"))
        assert flowing.fetch() == ["c"]

    def test_it_comes_too_late_for_one_that_went_on_without(self, flowing: Flowing) -> None:
        flowing.start(
            [
                Node(call("a"), outs=[1]),
                Node(call("b"), waits=1, takes=0, policy=CONTINUE, outs=[2]),
                Node(call("c"), waits=1, sink=True),
            ]
        )
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        assert flowing.fetch() == ["b"]
        self.redrive(flowing, "a")
        flowing.succeed("a")
        assert flowing.fetch() == []
        flowing.end(flowing.ok("b"))
        flowing.succeed("c")
        assert flowing.state() == "succeeded"

    def test_a_flow_that_has_ended(self, flowing: Flowing) -> None:
        flowing.start(chord(["a", "b"]))
        flowing.fetch()
        flowing.end(flowing.dead("a"))
        flowing.flows.cancel("f")
        letter = dead_letter(flowing.rig.link, flowing.rig.queue, "a")
        assert letter is not None
        with pytest.raises(FlowGone, match="its flow f does not wait for it"):
            redrive(flowing.rig.link, flowing.rig.queue, letter)
        assert redrive(flowing.rig.link, flowing.rig.queue, letter, alone=True)
        assert "a" in flowing.fetch()
        assert flowing.held["a"].meta == {}


def test_policies_of_one_failure(flowing: Flowing) -> None:
    """Each that waits goes by its own."""
    flowing.start(
        [
            Node(call("a"), outs=[1, -2]),
            *(Node(call(policy), waits=1, sink=True, policy=policy) for policy in (FAIL, SKIP, CONTINUE)),
        ]
    )
    flowing.fetch()
    flowing.end(flowing.dead("a"))
    assert flowing.fetch() == [CONTINUE]
    assert flowing.result(FAIL) == ("FAILURE", "a")
    assert flowing.result(SKIP) == ("REVOKED", "upstream")


class TestCancel:
    def test_what_waits_and_what_is_on_its_way(self, flowing: Flowing, rig: Rig) -> None:
        flowing.start([*chord(["a", "b"])])
        (first,) = rig.get("alice", 1)
        assert flowing.flows.cancel("f")
        assert flowing.flows.cancel("f"), "a repeat after a lost reply"
        assert flowing.state() == "cancelled"
        assert flowing.result("body") == ("REVOKED", "cancelled")
        (second,) = rig.get("alice", 1)
        assert second.revoked
        assert rig.queue.revocations(rig.link, [first]) == [(True, False)]
        rig.commit("alice", revoked(first), revoked(second))
        assert flowing.fetch() == []
        assert not flowing.flows.cancel("gone")

    def test_what_runs_is_interrupted(self, flowing: Flowing, rig: Rig) -> None:
        flowing.start(chord(["a", "b"]))
        (first,) = rig.get("alice", 1)
        assert flowing.flows.cancel("f", terminate=True)
        assert rig.queue.revocations(rig.link, [first]) == [(True, True)]

    def test_what_is_delayed(self, flowing: Flowing) -> None:
        """Who waits for it hears of it at once, and it is due now, to give up what it holds."""
        later = Placement(delay_ms=600_000, dedupe_key="k", dedupe_until="done")
        flowing.start([Node(call("a", queue="other", placement=later), sink=True), Node(call("b"), sink=True)])
        flowing.flows.cancel("f")
        assert flowing.result("a", "other") == ("REVOKED", "cancelled")
        assert flowing.rig.redis.zscore("{rsq:0}:other:delayed", "a") <= flowing.rig.now_ms()
        assert flowing.result("b") is None

    def test_what_is_answered_from_the_head(self, flowing: Flowing) -> None:
        flowing.start(
            [
                Node(call("a"), outs=[1]),
                Node(call("b"), waits=1, outs=[2]),
                Node(call("c"), waits=1, sink=True),
            ]
        )
        flowing.flows.cancel("f")
        cancelled = pack_failure(State.REVOKED, 1, 0.0, "cancelled")
        assert flowing.flows.outcomes("f", [0, 1, 2]) == [cancelled] * 3
        assert flowing.counts() == (0, 2, 1)


def test_a_flow_without_progress_is_ended(flowing: Flowing) -> None:
    """Loudly: with an error, and errbacks."""
    flowing.start(
        [
            Node(call("a"), outs=[1]),
            Node(call("b"), waits=1, sink=True, errbacks=[(2, "b")]),
            Node(call("errback"), errback=True),
        ]
    )
    flowing.rig.redis.zadd("{rsq:0}::flows", {"f": 1})
    flowing.go_on()
    assert flowing.state() == "expired"
    state, message = flowing.result("b")
    assert state == "FAILURE"
    assert "no progress" in message
    assert flowing.fetch() == ["a", "errback"]
    flowing.end(flowing.ok("a"), flowing.ok("errback"))
    assert flowing.state() == "expired"
    flowing.rig.redis.zadd("{rsq:0}::flows", {"f": 1})
    flowing.go_on()
    assert not flowing.rig.redis.exists("{rsq:0}::flows")


def test_a_report_to_a_flow_that_is_gone(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.fetch()
    flowing.flows.drop("f")
    flowing.end(flowing.ok("a"))
    assert flowing.flow_keys() == set()
    assert flowing.rig.redis.hget(flowing.rig.keys.stats, "strayed") == b"1"
