"""Where a queue lies: assigned once, at its first use, and only a queue that was never used goes elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link
from rsq.broker.partitions import partitions_of, spread_numbers
from rsq.calls.placement import Placement
from rsq.settings import Settings
from tests.broker.conftest import Rig

FLEET = keys.fleet("rsq")


def assign(rig: Rig, count: int, *queues: str, numbers: str = "0 1 2") -> list[int]:
    return [int(each) for each in rig.link.run(scripts.ASSIGN, FLEET, count, numbers, *queues)]


def stored(rig: Rig) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = rig.redis.hgetall(keys.partitions("rsq"))
    return found


# -- assign


def test_a_new_queue_goes_where_the_fewest_are(rig: Rig) -> None:
    assert assign(rig, 3, "a", "b", "c", "d", "e") == [0, 1, 2, 0, 1]
    assert assign(rig, 3, "f") == [2]
    assert assign(rig, 3, "a", "e", "new") == [0, 1, 0]


def test_what_is_assigned_stays_whatever_the_number_is(rig: Rig) -> None:
    assert assign(rig, 3, "a", "b", "c") == [0, 1, 2]
    assert assign(rig, 2, "c", "d", "e", "f") == [2, 0, 1, 0]
    assert assign(rig, 4, "c", "g", numbers="0 1 2 3") == [2, 3]


def test_the_numbers_that_were_taken_first_stand(rig: Rig) -> None:
    """Others may propose others, since slots have moved meanwhile."""
    assert assign(rig, 3, "a", "b", "c", numbers="0 4 7") == [0, 4, 7]
    assert assign(rig, 3, "d", "e", "f", numbers="0 1 2") == [0, 4, 7]
    assert assign(rig, 4, "g", numbers="0 1 2 3") == [1]
    assert stored(rig)[b""] == b"0 4 7 1"


def test_a_queue_that_was_used_with_one_partition_lies_in_the_first(rig: Rig) -> None:
    rig.redis.sadd(keys.queues("rsq"), "old")
    rig.redis.sadd(keys.queues("rsq"), "older")
    assert assign(rig, 3, "new", "old", "older", "newer") == [0, 0, 0, 1]


def test_many_at_once_are_told_the_same(url: str, rig: Rig) -> None:
    settings = Settings(url=url, partitions=5)
    names = [f"q{number}" for number in range(20)]

    def ask(turn: int) -> dict[str, int]:
        with closing(Link(Endpoint.of(settings), 20)) as link:
            mine = names[turn:] + names[:turn]
            return partitions_of(link, settings, mine)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(ask, range(16)))
    assert all(each == told[0] for each in told)
    assert sorted(told[0].values()) == sorted([*range(5)] * 4)


def test_with_one_partition_nothing_is_stored(url: str, rig: Rig) -> None:
    settings = Settings(url=url)
    with closing(Link(Endpoint.of(settings), 20)) as link:
        assert partitions_of(link, settings, ["a", "b"]) == {"a": 0, "b": 0}
    assert stored(rig) == {}


@pytest.mark.parametrize(
    ("masters", "numbers"),
    [
        ({}, [0, 1, 2, 3]),  # one server
        ({0: "x", 1: "x", 2: "y", 3: "z"}, [0, 2, 3, 1]),
        ({0: "x", 1: "x", 2: "x", 3: "y"}, [0, 3, 1, 7]),
    ],
)
def test_numbers_are_chosen_so_that_each_master_has_as_many(masters: dict[int, str], numbers: list[int]) -> None:
    assert spread_numbers(4, lambda number: masters.get(number, masters.get(number % 4))) == numbers


# -- vacate


def test_a_queue_that_was_never_used_leaves(rig: Rig) -> None:
    assert rig.run(scripts.VACATE) == b"moved"
    assert rig.run(scripts.VACATE) == b"moved"
    assert rig.snapshot() == {"paused": "moved"}


def use(rig: Rig, how: str) -> None:
    match how:
        case "sent":
            rig.add("a")
        case "urgent":
            rig.add("a", priority=9)
        case "done":
            rig.hire("alice")
            rig.add("a")
            rig.get("alice")
            rig.redis.xtrim(rig.keys.stream(), maxlen=0)
        case "delayed":
            rig.enqueue("a", Placement(delay_ms=3_600_000))


@pytest.mark.parametrize("how", ["sent", "urgent", "done", "delayed"])
def test_a_queue_that_was_used_stays(rig: Rig, how: str) -> None:
    use(rig, how)
    before = rig.snapshot()
    assert rig.run(scripts.VACATE) == b"used"
    assert rig.snapshot() == before


def test_a_queue_that_a_worker_reads_stays(rig: Rig) -> None:
    rig.hire("alice")
    assert rig.run(scripts.VACATE) == b"worked"
    rig.redis.delete(rig.keys.consumers)
    assert rig.run(scripts.VACATE) == b"moved"


def test_a_queue_that_is_paused_stays(rig: Rig) -> None:
    rig.redis.set(rig.keys.paused, "pause")
    assert rig.run(scripts.VACATE) == b"paused"


def test_nothing_is_taken_in_where_a_queue_was(rig: Rig) -> None:
    rig.run(scripts.VACATE)
    answer: Any = rig.link.run_one(rig.queue.enqueue_call(rig.message("a"), Placement()))
    assert answer == [b"moved", b"a"]
    assert rig.snapshot() == {"paused": "moved"}
