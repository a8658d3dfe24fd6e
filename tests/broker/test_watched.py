"""What one who watches makes of pushes and of what he reads, in whatever order they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from msgpack import packb  # type: ignore[import-untyped, unused-ignore]

from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.listener import ResultListener
from rsq.broker.pool import LinkPool
from rsq.broker.waiting import looking
from rsq.broker.watched import MOST_ARRIVED, Watched
from rsq.calls.output import Gap, Item, NewRun, Place, Seen
from tests.broker.conftest import Rig


class Watcher:
    """Somebody who watches call `a`, with what he has got so far."""

    def __init__(self, rig: Rig, after: Place | None = None) -> None:
        self.rig = rig
        self.output, self.result = rig.keys.output("a"), rig.keys.result("a")
        self.watched = Watched([(self.output, self.result)], after)

    def look(self) -> None:
        self.rig.link.follow(looking([self.watched], Deadline(20)))

    def write(self, *entries: str, **fields: bytes) -> None:
        for entry_id in entries:
            self.rig.redis.xadd(self.output, fields or {"value": packed(entry_id)}, id=entry_id)
        self.rig.redis.expire(self.output, 100)

    def push(self, first: str, *entries: str, way: str = "") -> None:
        head = f"{first} {way}\n" if way else f"{first}\n"
        self.watched.came(self.output.encode(), head.encode() + b"".join(map(packed, entries)))

    def got(self) -> list[Any]:
        found: list[Any] = []
        while self.watched.arrived:
            seen: Seen = self.watched.arrived.popleft()
            found.append(seen.cursor if isinstance(seen, Item) else seen)
        return found

    def read_on(self) -> list[Any]:
        """What he gets who looks as often as is needed."""
        found = self.got()
        while self.watched.behind:
            self.look()
            found += self.got()
        return found


def packed(value: str) -> bytes:
    data: bytes = packb(value)
    return data


@pytest.fixture
def watcher(rig: Rig) -> Watcher:
    return Watcher(rig)


def ids(run: int, first: int, last: int) -> list[str]:
    return [f"{run}-{n}" for n in range(first, last + 1)]


def test_what_is_there_is_read_page_by_page(watcher: Watcher) -> None:
    watcher.write(*ids(1, 1, 1500))
    watcher.look()
    assert watcher.read_on() == ids(1, 1, 1500)
    assert watcher.watched


def test_pushes_bring_the_rest(watcher: Watcher) -> None:
    watcher.look()
    watcher.push("1-1", "1-1", "1-2")
    watcher.push("1-3", "1-3")
    assert watcher.got() == ids(1, 1, 3)
    assert not watcher.watched.behind


def test_a_push_that_is_not_the_next_one_has_the_output_read(watcher: Watcher) -> None:
    watcher.look()
    watcher.push("1-1", "1-1")
    watcher.write(*ids(1, 1, 5))
    watcher.push("1-4", "1-4", "1-5")
    assert watcher.got() == ["1-1"]
    assert watcher.watched.behind
    watcher.push("1-3", "1-3")
    assert watcher.read_on() == ids(1, 2, 5)
    assert not watcher.watched.behind


def test_a_push_that_comes_before_the_first_look_is_not_forgotten(watcher: Watcher) -> None:
    """It was published after that had been answered, and is read before the answer is."""
    questions = watcher.watched.questions()
    replies = watcher.rig.link.pipeline_packed(questions)
    watcher.write("1-1")
    watcher.push("1-1", "1-1")
    for request, reply in zip(questions, replies, strict=True):
        watcher.watched.answered(request, reply)
    assert watcher.read_on() == ["1-1"]


def test_a_push_of_what_was_read_adds_nothing(watcher: Watcher) -> None:
    watcher.write(*ids(1, 1, 3))
    watcher.look()
    watcher.push("1-2", "1-2", "1-3", "1-4")
    assert watcher.got() == ids(1, 1, 4)


def test_one_without_values_has_them_read(watcher: Watcher) -> None:
    watcher.look()
    watcher.write("1-1", "1-2")
    watcher.push("1-1")
    assert watcher.read_on() == ids(1, 1, 2)


def test_what_was_told_and_is_gone_is_not_looked_for_without_end(watcher: Watcher) -> None:
    watcher.look()
    watcher.push("1-7", "1-7")
    assert watcher.read_on() == []
    assert not watcher.watched.behind


def test_trimmed_values_are_a_gap(watcher: Watcher) -> None:
    watcher.write(*ids(1, 8, 9))
    watcher.write("3-15")
    watcher.look()
    assert watcher.read_on() == [Gap(7), "1-8", "1-9", Gap(5), NewRun(3), "3-15"]


def test_an_end_behind_trimmed_values_tells_of_them_too(watcher: Watcher) -> None:
    watcher.write("2-8", end=b"dead")
    watcher.look()
    assert watcher.got() == [Gap(7)]
    assert (watcher.watched.way, bool(watcher.watched)) == ("dead", False)


def test_the_slow_one_reads_on_where_he_is(watcher: Watcher) -> None:
    watcher.look()
    for n in range(1, 4 * MOST_ARRIVED):
        watcher.write(f"1-{n}")
        watcher.push(f"1-{n}", f"1-{n}")
    assert len(watcher.watched.arrived) == MOST_ARRIVED
    watcher.rig.redis.xtrim(watcher.output, maxlen=10, approximate=False)
    last = 4 * MOST_ARRIVED - 1
    expected = [*ids(1, 1, MOST_ARRIVED), Gap(last - 10 - MOST_ARRIVED), *ids(1, last - 9, last)]
    assert watcher.read_on() == expected


def test_the_result_ends_it_where_nothing_was_emitted(watcher: Watcher) -> None:
    watcher.look()
    watcher.watched.came(watcher.result.encode(), b"done")
    assert (watcher.watched.result, bool(watcher.watched)) == (b"done", False)


@pytest.mark.parametrize("order", ["result first", "end first"])
def test_the_end_comes_once_all_has(watcher: Watcher, order: str) -> None:
    watcher.look()
    watcher.push("1-1", "1-1")
    acts: list[Callable[[], None]] = [
        lambda: watcher.watched.came(watcher.result.encode(), b"done"),
        lambda: watcher.push("1-2", way="succeeded"),
    ]
    for act in acts if order == "result first" else acts[::-1]:
        act()
    assert watcher.got() == ["1-1"]
    assert not watcher.watched


def test_a_result_without_an_end_is_one_all_the_same(watcher: Watcher) -> None:
    """What was known of the call was deleted by hand."""
    watcher.write("1-1")
    watcher.look()
    watcher.write("1-2")
    watcher.rig.redis.set(watcher.result, b"done", ex=100)
    watcher.watched.came(watcher.result.encode(), b"done")
    assert watcher.read_on() == ["1-1", "1-2"]
    assert not watcher.watched


def test_one_goes_on_behind_a_place(rig: Rig) -> None:
    watcher = Watcher(rig, Place(1, 2))
    watcher.write(*ids(1, 1, 3))
    watcher.write("2-4")
    watcher.look()
    assert watcher.read_on() == ["1-3", NewRun(2), "2-4"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_output_that_was_deleted_and_began_anew_is_seen_from_its_beginning(rig: Rig, when: str) -> None:
    """The call was sent again from the dead letters."""
    watcher = Watcher(rig, Place(3, 50))
    if when == "before":
        watcher.write("1-1", "1-2")
    watcher.look()
    if when == "after":
        watcher.push("1-1", "1-1", "1-2")
    assert watcher.read_on() == ["1-1", "1-2"]


def test_the_queue_need_not_be_known(rig: Rig) -> None:
    there, elsewhere = (rig.keys.output("a"), rig.keys.result("a")), ("{rsq:0}:x:output:a", "{rsq:0}:x:result:a")
    watcher = Watcher(rig)
    watcher.watched = Watched([elsewhere, there])
    watcher.write(*ids(1, 1, 30))
    rig.redis.set(watcher.result, b"done", ex=100)
    watcher.look()
    assert watcher.read_on() == ids(1, 1, 30)
    assert not watcher.watched


@pytest.mark.parametrize("data", [b"", b"junk", b"1-1", b"-1\n", b"1-x\n\x01"])
def test_what_others_publish_is_passed_over(watcher: Watcher, data: bytes) -> None:
    watcher.look()
    watcher.watched.came(watcher.output.encode(), data)
    assert watcher.read_on() == []


@pytest.fixture
def listener(rig: Rig) -> Iterator[ResultListener]:
    with closing(LinkPool(Endpoint(rig.link.endpoint.url), 20)) as pool:
        listener = ResultListener(rig.link.endpoint, pool)
        yield listener
        listener.close()


def test_with_no_time_all_pages_are_read(watcher: Watcher, listener: ResultListener) -> None:
    watcher.write(*ids(1, 1, 600))
    seen = list(listener.arriving(watcher.watched, 0))
    assert [each.cursor for each in seen if isinstance(each, Item)] == ids(1, 1, 600)
