"""What a call that runs adds beyond one page: kept on the server until it succeeds, and gone with any other end."""

from __future__ import annotations

import pytest

from rsq.broker import scripts
from rsq.broker.worker_queue import LOST_TTL_MS
from rsq.calls.outcome import Completed, Released, Retried, revoked
from rsq.calls.plan import Node
from rsq.errors import BrokerUnavailable, LeaseLost
from tests.broker.conftest import HOUR_MS
from tests.broker.flowing import Flowing, call, chain, chord, flowing, group
from tests.broker.test_flow_batches import ended, opened
from tests.broker.test_flow_beside import beside, bound
from tests.broker.test_held import WAYS

__all__ = ["flowing"]

MANY = 2500


def kept(flowing: Flowing) -> dict[str, int]:
    """How many pages are kept under each name. All such keys expire by themselves."""
    redis = flowing.rig.redis
    found = {key for key in flowing.flow_keys() if key.startswith("{rsq:0}::added:")}
    assert all(redis.pttl(key) > 0 for key in found)
    return {key: redis.hlen(key) for key in found}


def adder(flowing: Flowing, number: int = MANY, task_id: str = "a") -> Completed:
    """The member of an open batch, which runs and has added so many; and its success."""
    opened(flowing)
    flowing.flows.add("f", "1", group([task_id]))
    flowing.fetch()
    return adds(flowing, number, task_id)


def adds(flowing: Flowing, number: int, task_id: str = "a") -> Completed:
    for first in range(0, number, 500):
        flowing.adds(task_id, group(f"{task_id}{n}" for n in range(first, min(first + 500, number))))
    return flowing.ok(task_id)


def all_of(flowing: Flowing) -> list[str]:
    """All that comes, until there is nothing more; each succeeds."""
    came: list[str] = []
    flowing.go_on()
    while more := flowing.fetch():
        came += more
        ended(flowing, *more)
        flowing.go_on()
    return came


def test_it_is_released_once_and_not_before(flowing: Flowing) -> None:
    verdict = adder(flowing)
    flowing.flows.seal("f")
    assert [*kept(flowing).values()] == [2]
    assert (flowing.counts(), flowing.fetch()) == ((0, 0, 1), [])
    for _ in range(3):
        flowing.end(verdict)
    assert flowing.counts() == (1, 0, MANY)
    came = all_of(flowing)
    assert sorted(came) == sorted(["on_success", "on_complete", *(f"a{n}" for n in range(MANY))])
    assert {flowing.held[f"a{n}"].meta["parent"] for n in (0, 999, MANY - 1)} == {"a"}
    assert flowing.counts() == (MANY + 1, 0, 0)
    assert not kept(flowing)


def test_the_commit_moves_only_counts(flowing: Flowing) -> None:
    """Then a page comes with each script that carries on."""
    verdict = adder(flowing, 4000)
    assert [*kept(flowing).values()] == [3]
    fields = flowing.rig.redis.hlen
    before = fields("{rsq:0}::flow:f")
    flowing.end(verdict)
    sizes = [fields("{rsq:0}::flow:f")]
    while flowing.rig.link.run_one(flowing.rig.queue.go_on_call()):
        sizes.append(fields("{rsq:0}::flow:f"))
    steps = [after - was for was, after in zip([before, *sizes], sizes, strict=False)]
    assert sum(steps) - 4000 in range(3)  # and what names the page
    assert max(steps) <= 1001
    assert len(flowing.fetch(5000)) == 4000


@pytest.mark.parametrize("number", [1000, 1001, 2000])
def test_pages_that_are_just_full(flowing: Flowing, number: int) -> None:
    flowing.end(adder(flowing, number))
    flowing.flows.seal("f")
    assert len(all_of(flowing)) == number + 2


def test_canvases(flowing: Flowing) -> None:
    """Edges, values, errbacks and sinks count from where each page comes to stand."""
    opened(flowing)
    flowing.flows.add("f", "1", group(["a"]))
    flowing.fetch()
    for n in range(600):
        flowing.adds("a", [*chain(f"x{n}", f"y{n}"), Node(call(f"e{n}"), errback=True)])
    flowing.end(flowing.ok("a"))
    flowing.flows.seal("f")
    flowing.go_on()
    assert sorted(flowing.fetch()) == sorted(f"x{n}" for n in range(600))
    flowing.end(*(flowing.ok(f"x{n}", n) for n in range(600)))
    flowing.go_on()
    assert sorted(flowing.fetch()) == sorted(f"y{n}" for n in range(600))
    assert [flowing.args(f"y{n}") for n in range(600)] == [[n] for n in range(600)]
    flowing.end(*(flowing.ok(f"y{n}") for n in range(600)))
    assert flowing.fetch() == ["on_complete", "on_success"]


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way] != "succeeded"], ids=lambda way: way.__name__)
def test_nothing_is_left_however_it_ends(flowing: Flowing, way: object, taken: bool) -> None:
    verdict = adder(flowing)
    delivery, rig = verdict.delivery, flowing.rig
    if taken:
        rig.take("alice", delivery)
        rig.commit("alice", revoked(delivery))
    elif way.__name__ == "dies":  # type: ignore[attr-defined]
        flowing.end(flowing.dead("a"))
    else:
        way(rig, delivery)  # type: ignore[operator]
    if way.__name__ == "is_lost_with_its_host" and not taken:  # type: ignore[attr-defined]
        # It may come after all, see below.
        assert all(rig.redis.pttl(name) <= LOST_TTL_MS for name in kept(flowing))
    else:
        assert not kept(flowing)
    flowing.go_on()
    rig.hire("alice")
    assert not {*flowing.fetch()} & {f"a{n}" for n in range(MANY)}
    assert flowing.counts()[2] <= 1
    assert rig.redis.hlen(f"{rig.keys.prefix}:calls") == 0


class TestNextRun:
    """What a run has added that came to no end is gone with the next one."""

    def test_it_is_retried(self, flowing: Flowing) -> None:
        verdict = adder(flowing)
        flowing.rig.commit(
            "alice", Retried(verdict.delivery, "retried", {**verdict.delivery.meta, "attempt": 2}, HOUR_MS, "failed")
        )
        assert not kept(flowing)
        flowing.rig.ripen("a")
        flowing.fetch()
        flowing.end(adds(flowing, 1200))
        flowing.flows.seal("f")
        assert len(all_of(flowing)) == 1200 + 2

    def test_its_worker_was_killed(self, flowing: Flowing) -> None:
        first = adder(flowing)
        (name,) = kept(flowing)
        flowing.rig.retire("alice", first.delivery)
        flowing.rig.hire("alice")
        flowing.fetch()
        assert name in kept(flowing)
        flowing.end(adds(flowing, 1200))
        assert not {name} & {*kept(flowing)}
        flowing.flows.seal("f")
        assert len(all_of(flowing)) == 1200 + 2

    def test_it_is_handed_back(self, flowing: Flowing) -> None:
        flowing.rig.commit("alice", Released(adder(flowing).delivery))
        flowing.fetch()
        flowing.end(flowing.ok("a"))
        assert not kept(flowing)
        assert flowing.counts() == (1, 0, 0)


class TestFence:
    def test_the_lease_is_lost(self, flowing: Flowing) -> None:
        verdict = adder(flowing, 1000)
        flowing.rig.miss("alice")
        with pytest.raises(LeaseLost):
            flowing.adds("a", group(["b"]))
        assert not kept(flowing)
        assert {*flowing.rig.commit("alice", verdict)} == {-1}

    def test_the_run_is_over(self, flowing: Flowing) -> None:
        verdict = adder(flowing, 1000)
        flowing.end(verdict)
        flowing.go_on()
        with pytest.raises(LeaseLost, match=r"this run of tests\.task\[a\] is over"):
            flowing.adds("a", group(["b"]))
        assert not kept(flowing)

    def test_the_token_is_spent(self, flowing: Flowing) -> None:
        verdict = adder(flowing, 1000)
        flowing.rig.take("alice", verdict.delivery)
        flowing.adds("a", group(["b"]))
        assert [*kept(flowing).values()] == [1]
        flowing.end(verdict)
        flowing.go_on()
        assert not kept(flowing)
        flowing.adds("a", group(["c"]))
        with pytest.raises(LeaseLost):
            flowing.adds("a", group(f"d{n}" for n in range(1000)))


def test_one_that_was_taken_for_lost_brings_it_after_all(flowing: Flowing) -> None:
    verdict = adder(flowing)
    flowing.flows.seal("f")
    flowing.rig.take("alice", verdict.delivery)
    flowing.rig.miss("alice")
    flowing.rig.hire("alice")
    assert flowing.fetch() == ["on_death", "on_complete"]
    assert [*kept(flowing).values()] == [2]
    flowing.end(verdict)
    came = all_of(flowing)
    assert {f"a{n}" for n in range(MANY)} <= {*came}
    assert not kept(flowing)


class TestCancelled:
    def test_before_it_succeeds(self, flowing: Flowing) -> None:
        verdict = adder(flowing)
        assert flowing.flows.cancel("f")
        flowing.end(verdict)
        flowing.go_on()
        assert (flowing.fetch(), kept(flowing)) == ([], {})

    @pytest.mark.parametrize("scripts", range(4))
    def test_after_it_has_succeeded(self, flowing: Flowing, scripts: int) -> None:
        """Whatever has come to stand in the flow by then: all ends, and who waits hears of it."""
        flowing.end(adder(flowing))
        for _ in range(scripts):
            flowing.rig.link.run_one(flowing.rig.queue.go_on_call())
        assert flowing.flows.cancel("f")
        flowing.go_on()
        started = {f"a{n}" for n in range(MANY) if flowing.result(f"a{n}") is None}
        assert {delivery.id for delivery in flowing.rig.get("alice", 5000) if not delivery.revoked} == set()
        ok, bad, still = flowing.counts()
        assert (ok, bad + still) == (1, MANY)
        assert still == len(started)  # these were on their way, and end by themselves
        assert not kept(flowing)

    def test_it_is_forgotten(self, flowing: Flowing) -> None:
        flowing.end(adder(flowing))
        flowing.fetch()
        flowing.flows.drop("f")
        flowing.go_on()
        assert (flowing.fetch(), kept(flowing)) == ([], {})


def test_pages_that_are_lost(flowing: Flowing) -> None:
    """By a failover: the flow says so, and cannot go on; the outcome of the call stands, and that of its neighbours."""
    verdict = adder(flowing)
    flowing.flows.add("f", "2", group(["b"]))
    flowing.fetch()
    (name,) = kept(flowing)
    flowing.rig.redis.hdel(name, "0")
    opened(flowing, "g")
    flowing.flows.add("g", "1", group(["x"]))
    flowing.fetch()
    flowing.end(verdict, flowing.ok("x"))
    assert (flowing.result("a"), flowing.counts("g")) == (("SUCCESS", None), (1, 0, 0))
    assert flowing.state() == "failed"
    assert flowing.rig.redis.hget("{rsq:0}::flow:f", "error") == b"of what a has added 2 pages are gone"
    assert not kept(flowing)


def test_what_could_not_be_sent_goes_with_the_outcome(flowing: Flowing, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise BrokerUnavailable("away")

    opened(flowing)
    flowing.flows.add("f", "1", group(["a"]))
    flowing.fetch()
    with monkeypatch.context() as patch:
        patch.setattr(flowing.flows, "keep", away)
        for first in range(0, MANY, 500):
            with pytest.raises(BrokerUnavailable):
                flowing.adds("a", group(f"a{n}" for n in range(first, first + 500)))
    flowing.end(flowing.ok("a"))
    flowing.flows.seal("f")
    assert len(all_of(flowing)) == MANY + 2


def test_they_are_kept_again(flowing: Flowing) -> None:
    """A reply was lost."""
    opened(flowing)
    flowing.flows.add("f", "1", group(["a"]))
    flowing.fetch()
    adding = flowing.adds("a", group(f"a{n}" for n in range(800)))
    for first in (800, 1600):
        adding.add(800, lambda base, first=first: group(f"a{n}" for n in range(first, first + 800)))  # type: ignore[misc]
        for _, each in adding.kept_calls(flowing.rig.queue.settings, flowing.rig.keys.prefix, flowing.held["a"]) * 2:
            assert flowing.rig.link.run_one(each) == 1
    flowing.end(flowing.ok("a"))
    flowing.flows.seal("f")
    assert len(all_of(flowing)) == 2402


class TestChord:
    """What is added to a chord: its body waits for all of it, and gets it in order."""

    def test_the_body_waits(self, flowing: Flowing) -> None:
        flowing.start(chord(["a", "b"]))
        flowing.fetch()
        for first in range(0, MANY, 500):
            flowing.adds("a", beside(*(f"a{n}" for n in range(first, first + 500)), waiting=2))
        flowing.end(flowing.ok("a", "a"), flowing.ok("b", "b"))
        flowing.go_on()
        flowing.fetch(5000)
        assert "body" not in flowing.held
        for n in range(MANY):
            flowing.end(flowing.ok(f"a{n}", n))
            assert n == MANY - 1 or n % 500 or flowing.fetch() == []
        assert flowing.fetch() == ["body"]
        assert bound(flowing, flowing.held["body"]) == ["a", "b", *range(MANY)]

    def test_two_add_at_once(self, flowing: Flowing) -> None:
        flowing.start(chord(["a", "b"]))
        flowing.fetch()
        for task_id in "ab":
            for first in range(0, 1500, 500):
                flowing.adds(task_id, beside(*(f"{task_id}{n}" for n in range(first, first + 500)), waiting=2))
        flowing.end(flowing.ok("a", "a"), flowing.ok("b", "b"))
        came: list[str] = []
        while more := [*flowing.fetch(), *(["-"] if flowing.go_on() else [])]:
            came += [task_id for task_id in more if task_id != "-"]
            flowing.end(*(flowing.ok(task_id, task_id) for task_id in more if task_id not in ("-", "body")))
        assert (len(came), came[-1]) == (3001, "body")
        expected = [f"{task_id}{n}" for task_id in "ab" for n in range(1500)]
        assert bound(flowing, flowing.held["body"]) == ["a", "b", *expected]

    def test_it_fails(self, flowing: Flowing) -> None:
        flowing.start(chord(["a", "b"]))
        flowing.fetch()
        for first in range(0, 1500, 500):
            members = beside(*(f"a{n}" for n in range(first, first + 500)), waiting=2)
            flowing.adds("a", members)
        flowing.end(flowing.ok("a", "a"), flowing.dead("b"))
        assert len(all_of(flowing)) == 1500
        assert flowing.result("body") == ("FAILURE", "b")


def test_many_that_add_do_so_in_several_scripts(flowing: Flowing) -> None:
    """One script is told of so many nodes, whoever adds them."""
    opened(flowing)
    members = [f"m{n}" for n in range(5)]
    flowing.flows.add("f", "1", group(members))
    flowing.fetch()
    for task_id in members:
        flowing.adds(task_id, group(f"{task_id}.{n}" for n in range(400)))
    verdicts = [flowing.ok(task_id) for task_id in members]
    calls = flowing.rig.queue.commit_calls("alice", verdicts)
    assert [script for script, *_ in calls] == [scripts.COMPLETE] * 3
    flowing.end(*verdicts)
    flowing.flows.seal("f")
    assert len(all_of(flowing)) == 2002
