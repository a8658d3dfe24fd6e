"""bury.lua: a call that is given up is kept for people, and its caller hears of it."""

from __future__ import annotations

import pytest

from rsq import codec
from rsq.broker import scripts
from rsq.broker.connection import Link
from rsq.broker.dead_letters import dead_letters
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery, pack_meta
from rsq.calls.outcome import Buried, Released, Retried, Verdict
from rsq.calls.placement import Placement
from rsq.settings import Settings
from tests.broker.conftest import FAR, HOUR_MS, MIB, ODD_IDS, Rig, completed, entry, ids, text

ERROR = {"type": "ValueError", "message": "no", "traceback": "..."}


def given_up(delivery: Delivery, result: bytes = b"failure") -> Buried:
    return Buried(delivery, "failed", ERROR, result, HOUR_MS if result else 0)


def letter(delivery: Delivery, **changed: str) -> dict[str, str]:
    """The dead letter of a delivery, as `Rig.snapshot` shows it."""
    return {
        "id": delivery.id,
        "task": "tests.task",
        "body": "body",
        "meta": "",
        "reason": "failed",
        "error": text(codec.encode(ERROR)),
        "attempts": "1",
        "priority": "0",
        "sent": delivery.entry_id.decode().partition("-")[0],
        **changed,
    }


def test_a_dead_letter_has_all_that_is_known(rig: Rig) -> None:
    rig.hire("alice")
    rig.enqueue("a", attempt=4)
    rig.enqueue("b", priority=3)
    b, a = rig.get("alice")
    assert rig.commit("alice", given_up(a), given_up(b, result=b"")) == [1, 1]
    assert rig.snapshot() == {
        "consumers": {"alice": FAR},
        "dead": [letter(a, attempts="4", meta=text(pack_meta({"attempt": 4}))), letter(b, priority="3")],
        "result:a": "failure",
        "ended": [{"ids": "b"}],
        "stats": {"dead": "2"},
    }
    assert HOUR_MS - 60_000 < rig.ttl_ms("result:a") <= HOUR_MS


@pytest.mark.parametrize("task_id", ODD_IDS)
def test_people_read_what_was_buried(rig: Rig, task_id: str) -> None:
    rig.hire("alice")
    body = codec.encode_call((bytes(MIB - 100),), {}, MIB)
    rig.enqueue(task_id, priority=9, body=body, headers={"x": 1})
    (delivery,) = rig.get("alice")
    rig.commit("alice", given_up(delivery))
    (found,) = dead_letters(rig.link, rig.queue)
    assert (found.id, found.task, found.reason, found.error) == (task_id, "tests.task", "failed", ERROR)
    assert (found.attempts, found.priority, found.body) == (1, 9, body)
    assert found.sent_ms == int(delivery.entry_id.partition(b"-")[0])
    assert found.meta == pack_meta({"headers": {"x": 1}})


def test_what_could_not_be_read_is_kept_whole(rig: Rig) -> None:
    rig.hire("alice")
    rig.redis.xadd(rig.keys.stream(), {b"\xff": b"\x00"})
    (delivery,) = rig.get("alice")
    rig.commit("alice", given_up(delivery))
    (found,) = dead_letters(rig.link, rig.queue)
    assert codec.decode(found.body) == [b"\xff", b"\x00"]


def test_fenced(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    (a,) = rig.get("alice")
    rig.retire("alice")
    before = rig.dumps()
    assert rig.commit("alice", given_up(a)) == [-1]
    assert rig.dumps() == before
    rig.redis.flushall()
    assert rig.commit("alice", given_up(a)) == [-1]
    assert rig.dumps() == {}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("result", [b"failure", b""])
def test_twice_counts_once(rig: Rig, early: bool, result: bytes) -> None:
    rig.hire("alice")
    rig.add("a")
    (a,) = rig.get("alice")
    if early:
        rig.take("alice", a)
    assert rig.commit("alice", given_up(a, result)) == [1]
    before = rig.snapshot()
    assert rig.commit("alice", given_up(a, result)) == [0]
    assert rig.snapshot() == before
    assert (before["dead"], before["stats"]) == ([letter(a)], {"dead": "1"})
    assert "taken:alice" not in before


def test_an_empty_batch_is_nothing(rig: Rig) -> None:
    rig.hire("alice")
    before = rig.dumps()
    assert rig.run(scripts.BURY, "alice", 0, 0, 10, HOUR_MS, 0, "") == 0
    assert rig.dumps() == before


def test_its_crashes_are_forgotten(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("a")
    rig.retire("alice", *rig.get("alice"))
    rig.commit("bob", *map(given_up, rig.get("bob")))
    snapshot = rig.snapshot()
    assert "crashes" not in snapshot
    assert snapshot["stats"] == {"crashed": "1", "dead": "1"}


def test_what_was_deleted_by_hand_is_not_buried(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a", "b")
    a, b = rig.get("alice")
    rig.redis.xdel(rig.keys.stream(), a.entry_id)
    assert rig.commit("alice", given_up(a), given_up(b)) == [1]
    snapshot = rig.snapshot()
    assert snapshot["dead"] == [letter(b)]
    assert "result:a" not in snapshot
    assert "stream pending" not in snapshot


def test_a_deleted_stream(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    deliveries = rig.get("alice")
    rig.redis.delete(rig.keys.stream())
    assert rig.commit("alice", *map(given_up, deliveries)) == [0]
    assert rig.snapshot() == {"consumers": {"alice": FAR}}


def test_thousands_at_once(rig: Rig) -> None:
    rig.hire("alice")
    names = [f"a{number}" for number in range(2000)]
    rig.add(*names)
    assert rig.commit("alice", *map(given_up, rig.get("alice", room=2000))) == [2000]
    assert [found.id for found in dead_letters(rig.link, rig.queue, newest_first=False)] == names


# -- bounds


def bounded(rig: Rig, link: Link, **settings: float) -> Rig:
    return Rig(rig.redis, link, WorkerQueue("q", Settings(**settings)))  # type: ignore[arg-type]  # whatever a test bounds


def test_the_oldest_go_when_there_are_too_many(rig: Rig, link: Link) -> None:
    rig = bounded(rig, link, dead_max_length=200)
    rig.hire("alice")
    names = [f"a{number:04}" for number in range(1000)]
    rig.add(*names)
    while batch := rig.get("alice", room=50):
        rig.commit("alice", *map(given_up, batch))
    kept = [fields[b"id"].decode() for _, fields in rig.redis.xrange(rig.keys.dead)]
    assert 200 <= len(kept) <= 400  # the server trims in nodes of about a hundred
    assert kept == names[-len(kept) :]


def test_the_old_go_whatever_their_number(rig: Rig, link: Link) -> None:
    rig = bounded(rig, link, dead_max_age_s=60)
    for number in range(300):
        rig.redis.xadd(rig.keys.dead, {"id": f"old{number}"}, id=f"{1000 + number}-0")
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *map(given_up, rig.get("alice")))
    kept = [fields[b"id"].decode() for _, fields in rig.redis.xrange(rig.keys.dead)]
    assert len(kept) < 150
    assert kept[-1] == "a"


def test_the_last_letter_decides_how_long_they_stay(rig: Rig, link: Link) -> None:
    rig = bounded(rig, link, dead_max_age_s=60)
    rig.hire("alice")
    rig.add("a")
    rig.commit("alice", *map(given_up, rig.get("alice")))
    assert 0 < rig.ttl_ms("dead") <= 60_000


def test_all_verdicts_in_one_commit(rig: Rig) -> None:
    rig.hire("alice", "bob")
    rig.add("done", "again", "dead", "back", "kept")
    done, again, dead, back, _ = rig.get("alice")
    verdicts: list[Verdict] = [
        completed(done),
        Retried(again, "retried", {}, HOUR_MS, ""),
        given_up(dead),
        Released(back),
    ]
    assert rig.commit("alice", *verdicts) == [1, 1, 1, 1]
    assert rig.commit("alice", *verdicts) == [0, 0, 0, 0]
    snapshot = rig.snapshot()
    assert snapshot["stats"] == {"succeeded": "1", "retried": "1", "dead": "1"}
    assert snapshot["stream"][:2] == [entry("back"), entry("kept")]
    assert snapshot["stream pending"] == {"back": ("released", 0), "kept": ("alice", 1)}
    assert ids(rig.get("bob")) == ["back"]


def test_an_age_beyond_the_epoch_keeps_everything_and_holds_nothing_up(rig: Rig, link: Link) -> None:
    """Redis knows no time before 1970: it would refuse the trimming when the entry has left its stream already."""
    rig = bounded(rig, link, dead_max_age_s=99 * 365 * 86_400)
    rig.hire("alice")
    rig.enqueue("a", Placement(dedupe_key="k", dedupe_until="done"))
    (a,) = rig.get("alice")
    assert rig.commit("alice", given_up(a)) == [1]
    assert [each.id for each in dead_letters(rig.link, rig.queue)] == ["a"]
    assert rig.enqueue("b", Placement(dedupe_key="k", dedupe_until="done")) == ("accepted", "b")
