"""The small parts of a child: board, inbox, prefetch. No server."""

from __future__ import annotations

import os
import threading
import time

from rsq.bell import Bell
from rsq.calls.message import Delivery
from rsq.worker.board import Board, Running
from rsq.worker.children import Child
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.outlook import BUSY_SWEEP_S, SWEEP_S, WHOLE_SWEEP_S, Outlook
from rsq.worker.prefetch import BYTES_AHEAD, GROWTH, MOST_AHEAD, PAGE, Prefetch


def delivery(number: int) -> Delivery:
    fields = [b"id", b"x%d" % number, b"task", b"t", b"body", b"", b"meta", b""]
    return Delivery("default", 0, b"%d-1" % number, fields)


def test_the_board_is_seen_by_the_parent_after_the_child_is_dead() -> None:
    board = Board(2, slots=2)
    pid = os.fork()
    if pid == 0:
        mine = board.child(1)
        mine.slots[0].start(1.5, 3, 7, False, b"1700000000000-12", b"task-id", b"shop.mail.send")
        mine.slots[1].start(2.5, 0, 0, True, b"2-1", b"y" * 100, "ä".encode() * 99)
        mine.slots[1].limit(62.5, 60.0)
        mine.done = 12
        lane = mine.lanes[0]
        lane.generation = 3
        lane.beat = 4.5
        lane.commit_beat = 5.5
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = board.child(1)
    assert theirs.running() == [
        Running(1.5, 3, 7, False, b"1700000000000-12", "task-id", "shop.mail.send"),
        Running(2.5, 0, 0, True, b"2-1", "y" * 100, "ä" * 60, 62.5, 60.0),
    ]
    assert (theirs.done, theirs.lanes[0].generation, theirs.beat, theirs.commit_beat) == (12, 3, 4.5, 5.5)
    assert board.child(0).running() == []
    theirs.slots[1].unlimit()
    assert theirs.running()[1] == Running(2.5, 0, 0, True, b"2-1", "y" * 100, "ä" * 60)
    theirs.slots[0].end()
    assert [entry.task_id for entry in theirs.running()] == ["y" * 100]
    theirs.clear()
    assert theirs.running() == []
    assert theirs.lanes[0].generation == 0


def test_a_child_that_has_just_died_is_told_nothing() -> None:
    """Its end of the pipe is closed: that is for `reap` to find out, and no end of the supervisor."""
    read, write = os.pipe()
    child = Child(0, 2**22 + 1, "host-1", 1, 0.0, None, write, Board(1, slots=1).child(0))
    os.close(read)
    child.let_go([time.monotonic() + 10.0], {})
    child.dismiss()
    os.close(write)


def test_an_identity_takes_a_new_name_for_each_lost_lease() -> None:
    board = Board(1, slots=1).child(0).lanes[0]
    identity = Identity("host-1", 0, 2, board)
    first = identity.consumer
    assert not identity.lease_holds()
    identity.change(time.monotonic() + 60)
    assert identity.consumer != first
    assert identity.lease_holds()
    assert board.generation == 1
    assert Identity("host-1", 0, 2, board).consumer == identity.consumer


def test_only_the_generation_whose_lease_is_lost_is_fenced() -> None:
    board = Board(1, slots=1).child(0).lanes[0]
    identity = Identity("host-1", 0, 0, board)

    def fenced() -> bool:
        return board.is_fenced

    board.fence(0)
    assert fenced() is True
    identity.change(time.monotonic() + 60)
    assert fenced() is False
    board.fence(0)  # by one who asked before the name was changed
    assert fenced() is False
    board.fence(1)
    assert fenced() is True


def test_a_bell_rings_once_however_often_it_is_rung() -> None:
    bell = Bell()
    assert not bell.wait(0)
    ringers = [threading.Thread(target=bell.set) for _ in range(8)]
    for thread in ringers:
        thread.start()
    for thread in ringers:
        thread.join()
    assert bell.is_set()
    assert bell.wait()
    assert not bell.is_set()
    bell.set()
    bell.clear()
    assert not bell.wait(0.001)


def test_the_inbox_gives_in_order_and_says_when_it_is_hungry() -> None:
    inbox = Inbox()
    inbox.put([delivery(n) for n in range(4)])
    inbox.low_water = 1
    for number in range(4):
        first = inbox.peek()
        assert first is not None
        assert first.id == f"x{number}"
        assert not inbox.hungry.is_set() or number == 3
        assert inbox.remove(first)
    assert inbox.hungry.is_set()


def test_what_was_drained_cannot_be_taken() -> None:
    inbox = Inbox()
    inbox.put([delivery(1), delivery(2)])
    first = inbox.peek()
    assert first is not None
    assert [d.id for d in inbox.drain()] == ["x1", "x2"]
    assert not inbox.remove(first)
    inbox.put([delivery(3)])
    assert not inbox.remove(first)
    assert [d.id for d in inbox.held()] == ["x3"]


def test_closing_the_inbox_frees_whoever_waits() -> None:
    inbox = Inbox()
    got: list[Delivery | None] = []
    waiter = threading.Thread(target=lambda: got.append(inbox.peek()))
    waiter.start()
    assert inbox.hungry.wait(10)
    inbox.close()
    waiter.join(10)
    assert got == [None]
    inbox.put([delivery(1)])
    assert inbox.peek() is None


def test_the_inbox_between_two_threads_loses_nothing() -> None:
    inbox = Inbox()
    total = 20_000
    got: list[str] = []

    def consume() -> None:
        while len(got) < total:
            first = inbox.peek()
            assert first is not None
            if inbox.remove(first):
                got.append(first.id)

    consumer = threading.Thread(target=consume)
    consumer.start()
    for start in range(0, total, 100):
        inbox.put([delivery(n) for n in range(start, start + 100)])
        if start % 700 == 0:
            inbox.put(inbox.drain())  # what is taken back may be put in again
    consumer.join(60)
    assert len(got) == total
    assert len(set(got)) == total


def test_prefetch_holds_hundreds_of_short_tasks_and_no_long_one() -> None:
    short = Prefetch(prefetch_ms=100, slots=1)
    done, ahead = 0, []
    for _ in range(10):
        done += 100
        ahead.append(short.update(done, done * 0.000001))
    assert ahead[0] <= GROWTH
    assert ahead[-1] == MOST_AHEAD
    long = Prefetch(prefetch_ms=100, slots=1)
    assert [long.update(n, n * 0.5) for n in range(1, 5)] == [0, 0, 0, 0]


def test_prefetch_follows_a_change_and_ignores_silence() -> None:
    prefetch = Prefetch(prefetch_ms=100, slots=1)
    for number in range(1, 100):
        prefetch.update(number * 100, number * 0.1)
    assert prefetch.ahead == 100
    assert prefetch.update(9900, 9.9) == 100
    assert prefetch.update(9901, 19.9) == 0


def test_prefetch_takes_what_it_can_afford_to_hand_back() -> None:
    prefetch = Prefetch(prefetch_ms=100, slots=1)
    done = 0

    def run(tasks: int) -> int:
        nonlocal done
        for _ in range(tasks):
            done += 1
            prefetch.update(done, done * 0.001)
        return prefetch.ahead

    # Of nothing but short tasks it holds more, the longer it has seen no other.
    assert run(10) <= 1
    assert run(1000) in range(10, 16)
    # Each fiftieth is stuck: one that waits behind it is two in a hundred.
    for _ in range(200):
        prefetch.stuck()
        assert run(50) <= 16
    assert run(1) <= 1
    assert 1 < run(10_000) < run(60_000) <= 110


def test_prefetch_can_be_turned_off() -> None:
    prefetch = Prefetch(prefetch_ms=0, slots=1)
    assert prefetch.update(1000, 0.001) == 0


def test_prefetch_holds_so_many_bytes_however_short_the_tasks_are() -> None:
    prefetch = Prefetch(prefetch_ms=100, slots=1)
    done = 0

    def ahead(size_bytes: int, messages: int) -> int:
        nonlocal done
        for _ in range(messages):
            done += 1
            prefetch.saw(1, size_bytes)
            prefetch.update(done, done * 0.000001)
        return prefetch.update(done, done * 0.000001)

    mib = 1024 * 1024
    assert ahead(mib, 10) == BYTES_AHEAD // mib
    assert prefetch.page == BYTES_AHEAD // mib
    assert ahead(20 * mib, 300) == 0
    assert prefetch.page == 1, "one at a time is always asked for"
    assert ahead(100, 3000) == MOST_AHEAD
    assert prefetch.page == PAGE
    prefetch.saw(PAGE, PAGE * mib)
    assert prefetch.page == BYTES_AHEAD // mib, "a page of them says it all"


def test_the_outlook_asks_for_a_whole_fetch_first_and_then_when_a_look_is_due() -> None:
    outlook = Outlook()
    assert outlook.wants_fetch(0.0)
    outlook.fetching(100.0)
    assert outlook.saw("q", [0], delayed=True)
    outlook.due(100.4)
    outlook.fetched(100.0, backlog=False, paused=False, plain=True)
    assert (outlook.sweep_at, outlook.waits_for_due) == (100.4, True)
    assert not outlook.wants_fetch(100.3)
    assert outlook.wants_fetch(100.4)
    outlook.calm(100.3)
    assert (outlook.sweep_at, outlook.waits_for_due) == (100.3 + SWEEP_S, False)
    outlook.woken()
    assert outlook.wants_fetch(100.3)
    outlook.fetching(100.3)
    assert not outlook.saw("q", [0], delayed=True), "nothing new"
    assert outlook.saw("q", [9, 0], delayed=True)
    assert outlook.saw("q", [9, 0], delayed=False)
    outlook.fetched(100.3, backlog=False, paused=False, plain=False)
    for second in range(60):
        outlook.calm(100.3 + second)
    assert outlook.sweep_at == 100.3 + WHOLE_SWEEP_S


def test_plain_reads_are_for_a_plain_backlog_and_a_short_while() -> None:
    outlook = Outlook()
    assert not outlook.allows_plain_read(0.0)
    outlook.fetching(100.0)
    outlook.fetched(100.0, backlog=True, paused=False, plain=True)
    assert outlook.allows_plain_read(100.0)
    assert not outlook.allows_plain_read(100.0 + BUSY_SWEEP_S)
    outlook.due(100.05)
    assert not outlook.allows_plain_read(100.06), "something is due"
    outlook.read_up()
    assert not outlook.allows_plain_read(100.0)
    assert outlook.wants_fetch(100.0), "what is left shows in a fetch"
    outlook.fetched(100.0, backlog=True, paused=False, plain=False)
    assert not outlook.allows_plain_read(100.0)
