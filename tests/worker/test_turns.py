"""Whom a child asks for how many messages, and what -Q may say."""

from __future__ import annotations

from collections import Counter

import pytest

from rsq import SettingsError
from rsq.broker.worker_queue import WorkerQueue
from rsq.settings import Settings
from rsq.worker.turns import Turns, parse_queues


def drive(turns: Turns, rooms: list[int], held: dict[str, int]) -> Counter[str]:
    """What each queue gave, where it holds so much."""
    got: Counter[str] = Counter()
    for room in rooms:
        for queue, count in turns.share_out(room):
            assert 0 < count <= room
            given = min(count, held[queue.name])
            held[queue.name] -= given
            room -= given
            got[queue.name] += given
            turns.gave(given)
        assert room >= 0
        assert room == 0 or not any(held.values())
    return got


def turns_of(**weights: int) -> Turns:
    return Turns([WorkerQueue(name, Settings(url="redis://x")) for name in weights], weights)


@pytest.mark.parametrize("room", [1, 2, 3, 7, 10, 64, 333])
def test_the_shares_hold(room: int) -> None:
    got = drive(turns_of(a=6, b=3, c=1), [room] * (10_000 // room), {"a": 9999, "b": 9999, "c": 9999})
    whole = room * (10_000 // room)
    assert abs(got["a"] - 0.6 * whole) <= 1
    assert abs(got["b"] - 0.3 * whole) <= 1
    assert abs(got["c"] - 0.1 * whole) <= 1


def test_rooms_of_all_sizes() -> None:
    rooms = [1 + number * 7 % 40 for number in range(1000)]
    got = drive(turns_of(a=5, b=2), rooms, {"a": 99999, "b": 99999})
    assert abs(got["a"] - sum(rooms) * 5 / 7) <= 1


def test_one_slot_takes_turns_smoothly() -> None:
    turns = turns_of(a=2, b=1)
    order = [next(iter(drive(turns, [1], {"a": 9, "b": 9}))) for _ in range(6)]
    assert order == ["a", "b", "a", "a", "b", "a"]


@pytest.mark.parametrize("room", [1, 5, 50])
def test_what_one_does_not_have_the_others_give(room: int) -> None:
    turns = turns_of(a=9, b=3, c=1)
    assert drive(turns, [room] * 40, {"a": 0, "b": 9999, "c": 0}) == Counter(b=40 * room)


def test_an_idle_time_is_not_made_up_for() -> None:
    turns = turns_of(a=1, b=1)
    drive(turns, [10] * 100, {"a": 0, "b": 9999})
    got = drive(turns, [10] * 10, {"a": 9999, "b": 9999})
    assert abs(got["a"] - got["b"]) <= 2


def test_strict_order() -> None:
    queues = [WorkerQueue(name, Settings(url="redis://x")) for name in ("a", "b", "c")]
    assert drive(Turns(queues, {}), [10], {"a": 4, "b": 99, "c": 99}) == Counter(a=4, b=6)
    assert Turns(queues, {}).first == queues[:1]


def test_a_queue_that_could_not_give_all_at_once_is_not_passed_over() -> None:
    """Its bodies are large: what one call may bring is bounded in bytes."""
    strict = Turns([WorkerQueue(name, Settings(url="redis://x")) for name in ("a", "b")], {})
    asked = []
    for queue, _ in strict.share_out(10):
        asked.append(queue.name)
        strict.gave(1, has_more=True)
    assert asked == ["a"]
    weighted, got = turns_of(a=3, b=1), Counter[str]()
    for _ in range(400):
        for queue, count in weighted.share_out(8):
            given = 1 if queue.name == "a" else min(count, 2)
            got[queue.name] += given
            weighted.gave(given, has_more=given < count)
    assert got["a"] == 400, "asked each time"


def test_what_the_option_says() -> None:
    assert parse_queues("a, b ,c,") == {"a": 0, "b": 0, "c": 0}
    assert list(parse_queues("z:6, b : 3")) == ["z", "b"]
    assert parse_queues("a:6,b:3") == {"a": 6, "b": 3}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a:0", "weight of queue a must be a whole number from 1 to 1000, as in a:3, not '0'"),
        ("a:x,b:1", "not 'x'"),
        ("a:", "not ''"),
        ("a:1.5", "not '1.5'"),
        ("a:9999", "not '9999'"),
        ("a:6,b", "give each queue a weight, b too, or give none"),
        ("a,b,a", "queue a is named twice"),
        ("a b", "queue name 'a b' cannot be used"),
        (":3", "queue name '' cannot be used"),
        (",", "names no queue"),
    ],
)
def test_mistakes(text: str, what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        parse_queues(text)
