"""arrived: one bounded look for calls whose replies were lost, and what it says where it cannot see everything."""

from __future__ import annotations

import math
from time import monotonic

import pytest

from rsq.broker import scripts
from rsq.broker.connection import Link
from rsq.broker.deadline import Deadline
from rsq.broker.partitions import Queues
from rsq.broker.producer import Sending
from rsq.broker.queue import Queue
from rsq.calls.outcome import Buried
from rsq.calls.placement import Placement
from rsq.settings import Settings
from tests.broker.conftest import HOUR_MS, MIB, Rig, completed
from tests.servers import Server

MOST = 5000


def look(rig: Rig, *ids: str, priority: int = 0, since_ms: int = 10_000) -> list[int]:
    return rig.arrived([rig.message(task_id, priority) for task_id in ids], since_ms)


def test_a_chunk_is_looked_for_at_once(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("done", "failed", "quiet", "running")
    for delivery in rig.get("alice", room=3):
        rig.commit("alice", completed(delivery, result=b"" if delivery.id == "quiet" else b"x"))
    rig.get("alice")
    rig.add("ready")
    rig.add("urgent", priority=9)
    rig.enqueue("delayed", Placement(delay_ms=HOUR_MS))
    known = ["done", "failed", "quiet", "running", "ready", "delayed"]
    assert look(rig, "one", *known, "urgent", "two") == [0, *[1] * len(known), 0, 0]
    assert look(rig, "urgent", "ready", priority=9) == [1, 0]


@pytest.mark.parametrize(("answer_s", "ahead_ms"), [(math.inf, 0), (1.0, 900)])
def test_the_clock_of_a_server_that_took_over_may_be_ahead(rig: Rig, answer_s: float, ahead_ms: int) -> None:
    """What it has was stamped by its predecessor."""
    began, at_ms = monotonic(), rig.now_ms()
    entry = ("id", "a", "task", "t", "body", "", "meta", "")
    rig.redis.xadd(rig.keys.stream(), dict(zip(entry[::2], entry[1::2], strict=True)), id=f"{at_ms - ahead_ms}-0")
    endpoint = rig.link.endpoint
    sending = Sending(Queues(rig.queue.settings, endpoint), 5.0, answer_s=answer_s)
    talk = sending._look(rig.queue, [(rig.message("a"), Placement())], Deadline(60.0), began)
    assert rig.link.follow(talk) == [True]


def test_what_was_there_before_is_no_answer(rig: Rig) -> None:
    (entry_id,) = rig.add("a")
    at_ms = int(entry_id.partition("-")[0])
    ask = [rig.message("a")], Placement()
    for from_ms, found in ((at_ms, 1), (at_ms + 1, 0)):
        call = rig.queue.arrived_call([(message, ask[1]) for message in ask[0]], from_ms)
        assert rig.link.run_one(call) == [found]


@pytest.mark.parametrize("where", ["stream", "ended"])
def test_the_look_is_bounded_and_newest_first(rig: Rig, where: str) -> None:
    rig.hire("alice")

    def bring(*ids: str) -> None:
        rig.add(*ids)
        while where == "ended" and (batch := rig.get("alice", room=1)):
            rig.commit("alice", *(completed(delivery, result=b"") for delivery in batch))

    bring("old")
    if where == "stream":
        rig.add(*(f"x{number}" for number in range(MOST)))
    else:
        for number in range(MOST):
            rig.redis.xadd(f"{rig.keys.prefix}:ended", {"ids": f"x{number}"})
        rig.redis.pexpire(f"{rig.keys.prefix}:ended", 20_000)
    bring("new")
    # What lies beyond is neither there nor not there.
    assert look(rig, "new", "old", "never") == [1, -1, -1]
    if where == "stream":
        assert look(rig, "never", priority=3) == [0]


def test_the_look_is_bounded_in_bytes(rig: Rig) -> None:
    rig.add("old")
    rig.add(*(f"x{number}" for number in range(80)), body=bytes(MIB))
    rig.add("new")
    assert look(rig, "new", "x79", "old") == [1, 1, -1]


def test_too_long_ago_nobody_can_tell(rig: Rig) -> None:
    rig.add("there")
    assert look(rig, "there", "never", since_ms=19_000) == [1, 0]
    assert look(rig, "there", "never", since_ms=21_000) == [1, -1]


def test_a_patient_producer_prolongs_the_window_for_both_sides(rig: Rig, link: Link, server: Server) -> None:
    patient = Queue("q", Settings(url=server.url, broker_timeout_s=45.0))
    assert link.run_one(patient.enqueue_call(rig.message("first"), Placement()))[0] == b"accepted"
    assert 300_000 < rig.ttl_ms("window") <= 360_000
    rig.enqueue("second")  # of one who is less patient
    rig.hire("alice")
    first, second = rig.get("alice")
    rig.commit("alice", completed(first, result=b"", ttl_ms=0), completed(second, result=b"x", ttl_ms=1000))
    assert 170_000 < rig.ttl_ms("ended") <= 180_000
    rig.redis.delete(rig.keys.result("second"))
    assert look(rig, "first", "second", "never", since_ms=170_000) == [1, 1, 0]
    assert look(rig, "never", since_ms=181_000) == [-1]


def test_a_window_has_a_bound(rig: Rig, link: Link, server: Server) -> None:
    endless = Queue("q", Settings(url=server.url, broker_timeout_s=1e9))
    link.run_one(endless.enqueue_call(rig.message("a"), Placement()))
    assert rig.redis.get(f"{rig.keys.prefix}:window") == b"3600000"


def test_a_call_that_was_found_gets_its_marker(rig: Rig) -> None:
    rig.add("a")
    assert rig.arrived([rig.message("a"), rig.message("b")], 1000, Placement(unique=True)) == [1, 0]
    assert rig.redis.exists(f"{rig.keys.prefix}:dedupe:id:a", f"{rig.keys.prefix}:dedupe:id:b") == 1


def test_a_call_that_died_without_a_result_is_found(rig: Rig) -> None:
    rig.hire("alice")
    rig.add("a")
    (delivery,) = rig.get("alice")
    rig.commit("alice", Buried(delivery, "failed", {}, b"", 0))
    assert look(rig, "a", "b") == [1, 0]
    rig.run(scripts.PURGE, 1000)
