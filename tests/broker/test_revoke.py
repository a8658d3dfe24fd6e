"""revoke.lua: what is delayed ends at once, all else is marked; and how each way of reading finds the marks."""

from __future__ import annotations

import pytest

from rsq.broker import scripts
from rsq.broker.queue import FORGET_MS
from rsq.broker.queue_control import purge
from rsq.broker.reads import BlockingRead
from rsq.calls.message import Delivery
from rsq.calls.outcome import REVOKED_TTL_MS, Retried, revoked, unpack_result
from rsq.calls.placement import Placement
from rsq.states import State
from tests.broker.conftest import FAR, HOUR_MS, ODD_IDS, Rig, adopt, completed, entry, ids

LATER = Placement(delay_ms=HOUR_MS)


def revoke(rig: Rig, *task_ids: str, terminate: bool = False) -> list[str]:
    return [answer.decode() for answer in rig.link.run_one(rig.queue.revoke_call(task_ids, terminate))]


def marked(deliveries: list[Delivery]) -> list[str]:
    return [delivery.id for delivery in deliveries if delivery.revoked]


def state_of(rig: Rig, task_id: str) -> tuple[State, str]:
    result = unpack_result(rig.redis.get(rig.keys.result(task_id)))
    return result.state, result.reason


def test_a_delayed_one_ends_at_once(rig: Rig) -> None:
    rig.enqueue("a", LATER)
    rig.enqueue("b", LATER)
    rig.redis.hset(rig.keys.crashes, "a", "1 signal SIGKILL")
    with rig.pushes("a") as pushed:
        assert revoke(rig, "a") == ["revoked"]
    assert [task_id for task_id, _ in pushed] == ["a"]
    assert state_of(rig, "a") == (State.REVOKED, "revoked")
    assert 0 < rig.ttl_ms("result:a") <= REVOKED_TTL_MS
    rig.redis.delete(rig.keys.result("a"))
    found = rig.snapshot()
    assert set(found.pop("delayed")) == {"b"}
    assert found == {"messages": {"b": ["0", "tests.task", "body", ""]}, "stats": {"revoked": "1"}}


def test_a_retry_that_waits_ends_at_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    (delivery,) = rig.get("alice")
    rig.commit("alice", Retried(delivery, "retried", {"attempt": 2}, HOUR_MS, "why"))
    assert revoke(rig, "a") == ["revoked"]
    assert "delayed" not in rig.snapshot()


def test_a_waiting_one_is_marked_for_a_day(rig: Rig) -> None:
    rig.add("a")
    with rig.span() as span:
        assert revoke(rig, "a", "never-sent") == ["marked", "marked"]
    forget = span.plus(FORGET_MS)
    assert rig.snapshot() == {"stream": [entry("a")], "revoked": {"a": forget, "never-sent": forget}}
    assert 0 < rig.ttl_ms("revoked") <= FORGET_MS


def test_with_terminate_the_mark_says_so(rig: Rig) -> None:
    with rig.span() as span:
        revoke(rig, "a", terminate=True)
    found = rig.snapshot()
    assert found == {"revoked": {"a": span.plus(FORGET_MS)}}
    assert found["revoked"]["a"] % 1 == 0.5
    assert 0 < rig.ttl_ms("revoked") <= FORGET_MS
    revoke(rig, "a")
    assert rig.snapshot()["revoked"]["a"] % 1 == 0.5, "asked for again without it, it stays"


def test_one_that_has_ended_is_left_alone(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", completed(rig.get("alice")[0]))
    before = rig.dumps()
    assert revoke(rig, "a") == ["done"]
    assert rig.dumps() == before


def test_twice_is_once(rig: Rig) -> None:
    rig.enqueue("a", LATER)
    rig.add("b")
    assert revoke(rig, "a", "b") == ["revoked", "marked"]
    before = rig.snapshot()
    assert revoke(rig, "a") == ["revoked"]  # the reply to the first try may have been lost
    assert revoke(rig, "b") == ["marked"]
    after = rig.snapshot()
    assert (before.pop("revoked").keys(), before) == (after.pop("revoked").keys(), after)


def test_old_marks_go(rig: Rig) -> None:
    rig.redis.zadd(rig.keys.revoked, {"old": 1})
    revoke(rig, "a")
    assert set(rig.snapshot()["revoked"]) == {"a"}


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_odd_ids(rig: Rig, task_id: str) -> None:
    rig.hire("alice")
    rig.enqueue(task_id, LATER)
    assert revoke(rig, task_id) == ["revoked"]
    rig.redis.delete(rig.keys.result(task_id))
    rig.add(task_id)
    assert revoke(rig, task_id) == ["marked"]
    assert marked(rig.get("alice")) == [task_id]


# -- how it is found


def test_a_fetch_tells(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("claimed", "held")
    rig.get("alice")
    rig.lapse("alice")
    rig.add("fresh", "other")
    rig.add("urgent", priority=5)
    rig.redis.xadd(rig.keys.stream(), {"odd": "entry"})
    revoke(rig, "claimed", "fresh", "urgent", "gone")
    assert sorted(marked(rig.fetch("bob", 20).deliveries)) == ["claimed", "fresh", "urgent"]


def test_what_is_promoted_by_a_fetch_is_looked_at(rig: Rig) -> None:
    rig.hire("alice")
    revoke(rig, "a")
    rig.enqueue("a", LATER)
    rig.ripen("a")
    assert marked(rig.fetch("alice").deliveries) == ["a"]


def test_a_plain_read_tells_and_stays_plain(rig: Rig) -> None:
    rig.hire("alice")
    rig.get("alice")
    rig.add("a", "b")
    revoke(rig, "b")
    deliveries, _, plain = rig.queue.read(rig.link, "alice", 9)
    assert (ids(deliveries), marked(deliveries), plain) == (["a", "b"], ["b"], True)


def test_a_blocking_read_tells(rig: Rig) -> None:
    rig.hire("alice")
    rig.get("alice")
    rig.add("a", "b")
    revoke(rig, "b")
    ((_, deliveries, _),) = BlockingRead("alice", [(rig.queue, [0])])(rig.link, 9, 1000).got
    assert (ids(deliveries), marked(deliveries)) == (["a", "b"], ["b"])


def test_what_is_adopted_is_looked_at(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    rig.get("alice")
    revoke(rig, "a")
    deliveries, _ = adopt(rig.link, rig.queue, "alice", set(), [0])
    assert marked(deliveries) == ["a"]


def test_what_runs_can_be_asked_about(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    deliveries = rig.get("alice")
    assert rig.queue.revocations(rig.link, deliveries) == [(False, False)] * 3
    revoke(rig, "a")
    revoke(rig, "b", terminate=True)
    assert rig.queue.revocations(rig.link, deliveries) == [(True, False), (True, True), (False, False)]
    assert rig.queue.revocations(rig.link, []) == []


# -- what becomes of the marks


def test_the_mark_goes_with_the_call(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b", "c")
    a, b, c = rig.get("alice")
    revoke(rig, "a", "b", "c", terminate=True)
    rig.commit("alice", revoked(a), completed(b))
    rig.run(scripts.BURY, "alice", 0, 0, 10, HOUR_MS, 0, "", c.entry_id, "c", "t", "", "", "failed", "", 1, "", 0)
    found = rig.snapshot()
    assert "revoked" not in found
    assert found["stats"] == {"revoked": "1", "succeeded": "1", "dead": "1"}
    assert state_of(rig, "a") == (State.REVOKED, "revoked")


def test_a_purge_forgets_it(rig: Rig) -> None:
    rig.add("a")
    revoke(rig, "a")
    assert purge(rig.link, rig.queue) == 1
    assert rig.snapshot() == {"stats": {"purged": "1"}}


def test_the_retry_of_a_revoked_call_comes_back_at_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    revoke(rig, "a")
    with rig.span() as span:
        rig.commit("alice", *(Retried(each, "retried", {"attempt": 2}, HOUR_MS, "why") for each in (a, b)))
    assert rig.snapshot()["delayed"] == {"a": span.plus(0), "b": span.plus(HOUR_MS)}
    assert marked(rig.get("alice")) == ["a"]


def test_a_worker_that_is_fenced_settles_nothing(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    (old,) = rig.get("alice")
    rig.lapse("alice")
    revoke(rig, "a")
    (new,) = rig.get("bob")
    assert rig.commit("alice", revoked(old)) == [-1]
    assert new.revoked
    assert rig.commit("bob", revoked(new)) == [1]
    assert rig.snapshot()["consumers"] == {"bob": FAR}
