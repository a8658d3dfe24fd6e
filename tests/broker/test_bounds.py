"""What one call of a worker's script may touch, whatever lies in the queue: entries and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rsq.calls.placement import Placement
from tests.broker.conftest import HOUR_MS, MIB, Rig, adopt, ids

STEP = 16


def calls(redis: Any, command: str) -> int:
    """How often the server has run a command since the last reset."""
    return int(redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def fresh(rig: Rig, bodies: list[bytes]) -> None:
    for number, body in enumerate(bodies):
        rig.add(f"a{number}", body=body)


def orphaned(rig: Rig, bodies: list[bytes]) -> None:
    fresh(rig, bodies)
    rig.hire("old")
    while rig.get("old", room=1000):
        pass
    rig.lapse("old")


def due(rig: Rig, bodies: list[bytes]) -> None:
    for number, body in enumerate(bodies):
        rig.enqueue(f"a{number}", Placement(delay_ms=HOUR_MS), body=body)
    rig.ripen(*(f"a{number}" for number in range(len(bodies))))


@pytest.mark.parametrize("lie", [fresh, orphaned])
@pytest.mark.parametrize("size", [MIB // 4, MIB, 3 * MIB])
def test_a_fetch_hands_out_a_mebibyte_or_one_body(rig: Rig, lie: Callable[[Rig, list[bytes]], None], size: int) -> None:
    rig.hire("alice")
    lie(rig, [bytes(size)] * 12)
    got: list[str] = []
    while len(got) < 12:
        fetched = rig.fetch("alice", room=1000)
        assert 1 <= len(fetched.deliveries) <= max(1, MIB // size)
        got += ids(fetched.deliveries)
        assert fetched.cut or len(got) == 12
    assert got == [f"a{number}" for number in range(12)]
    assert not rig.fetch("alice", room=1000).cut


@pytest.mark.parametrize("lie", [fresh, orphaned])
def test_large_ones_behind_small_ones_pass_the_bound_by_one_step(
    rig: Rig, lie: Callable[[Rig, list[bytes]], None]
) -> None:
    rig.hire("alice")
    lie(rig, [b"small"] * 200 + [bytes(MIB)] * 40)
    first = [len(delivery.body) for delivery in rig.get("alice", room=1000)]
    assert first[:200] == [len(b"small")] * 200
    assert len(first) <= 200 + STEP
    assert len(rig.get("alice", room=1000)) == 1


def test_what_is_due_is_moved_a_mebibyte_or_one_body_at_a_time(rig: Rig) -> None:
    rig.hire("alice")
    due(rig, [bytes(MIB)] * 3 + [bytes(MIB // 4)] * 8)
    moved = []
    while left := rig.redis.zcard(rig.keys.delayed):
        fetched = rig.fetch("alice", room=0)
        moved.append(left - rig.redis.zcard(rig.keys.delayed))
        assert (fetched.next_due_ms is not None) == (sum(moved) < 11)
    assert max(moved) <= 4
    assert moved[:3] == [1, 1, 1]


def test_small_ones_are_not_held_up_by_it(rig: Rig) -> None:
    rig.hire("alice")
    fresh(rig, [b"small"] * 1000)
    rig.redis.config_resetstat()
    fetched = rig.fetch("alice", room=1000)
    assert (len(fetched.deliveries), fetched.cut) == (1000, False)
    assert calls(rig.redis, "xreadgroup") <= 1000 // STEP + 8


def test_adopted_in_pages(rig: Rig) -> None:
    rig.hire("alice")
    fresh(rig, [bytes(MIB)] * 5 + [b"small"] * 100)
    while rig.get("alice", room=1000):
        pass
    rig.redis.config_resetstat()
    deliveries, _ = adopt(rig.link, rig.queue, "alice", set(), [0])
    assert ids(deliveries) == [f"a{number}" for number in range(105)]
    assert calls(rig.redis, "xreadgroup") >= 5 + 100 // STEP


@pytest.mark.parametrize("paused", [False, True])
def test_a_look_without_room_costs_the_same_however_many_run(rig: Rig, paused: bool) -> None:
    """It asks whether there is a group, not what each of thousands of consumers holds."""
    rig.hire("alice")
    for number in range(300):
        rig.add("a")
        rig.redis.xreadgroup("rsq", f"c{number}", {rig.keys.stream(): ">"}, count=1)
    if paused:
        rig.redis.set(rig.keys.paused, "pause")
    with rig.redis.monitor() as monitor:
        rig.fetch("alice", room=0)
        rig.redis.ping()
        asked = []
        while (command := monitor.next_command()["command"]) != "PING":
            asked.append(command.split())
    pending = [words for words in asked if words[0] == "XPENDING"]
    assert pending
    assert all(len(words) >= 6 for words in pending), "without a range it lists all consumers"
