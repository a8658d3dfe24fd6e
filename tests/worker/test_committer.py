"""Who writes a verdict: the thread that brings it, or the committer's own. On a real server."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, cast

import pytest

from rsq.broker.adding import Adding
from rsq.broker.connection import Endpoint, Link
from rsq.broker.dead_letters import dead_letters
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.calls.outcome import Completed, Released
from rsq.settings import Settings
from rsq.worker.board import Board
from rsq.worker.committer import MOST_VERDICTS, MOST_WAITING, Committer
from rsq.worker.identity import Identity
from rsq.worker.turnstile import Turnstile
from tests.broker.flowing import group
from tests.conftest import MakeServer
from tests.helpers import wait_until


class Office:
    """A queue, its consumer, and a committer whose thread sleeps."""

    def __init__(self, redis: Any, url: str, turnstile: Turnstile | None = None) -> None:
        self.redis = redis
        self.link = Link(Endpoint(url), 5)
        self.queue = WorkerQueue("default", Settings(url=url))
        self.queue.register(self.link, "alice")
        self.caught_up = threading.Event()
        self.failed = threading.Event()
        self.identity = Identity("alice", 0, 1, Board(1, slots=1).child(0).lanes[0])
        self.board = self.identity.board
        self.board.lease_until = time.monotonic() + 600
        self.written = Link(Endpoint(url), 5)
        self.committer = Committer(
            self.written,
            {"default": self.queue},
            self.identity,
            on_lease_lost=lambda consumer: None,
            on_failure=self.failed.set,
            on_caught_up=self.caught_up.set,
            turnstile=turnstile,
        )

    def deliveries(self, number: int) -> list[Delivery]:
        for count in range(number):
            self.redis.xadd(self.queue.keys.stream(), {"id": f"x{count}", "task": "t", "body": b"", "meta": b""})
        fetched = self.queue.fetch(self.link, "alice", number).deliveries
        for delivery in fetched:
            delivery.consumer = "alice"
        return fetched

    def start(self) -> None:
        self.committer.start()
        wait_until(lambda: self.committer._sleeping, what="the committer to sleep")

    def succeeded(self) -> int:
        return int(self.redis.hget(self.queue.keys.stats, "succeeded") or 0)


def has_written(office: Office, number: int) -> bool:
    return office.succeeded() == number


def done(delivery: Delivery) -> Completed:
    return Completed(delivery, "succeeded", b"", 0)


@pytest.fixture
def office(redis: Any, url: str) -> Iterator[Office]:
    office = Office(redis, url)
    yield office
    office.committer.close(10)
    office.link.close()


def test_a_verdict_that_comes_alone_is_written_by_who_brings_it(office: Office) -> None:
    office.start()
    office.committer.leave_to_me()
    (delivery,) = office.deliveries(1)
    office.committer.put(done(delivery))
    assert office.committer.left
    assert office.committer.held() == [delivery]
    office.committer.write_left(idle=True)
    assert office.succeeded() == 1
    assert office.committer.held() == []
    assert not office.committer.left


def test_who_has_more_to_do_leaves_it_to_the_committer(office: Office) -> None:
    office.start()
    office.committer.leave_to_me()
    (delivery,) = office.deliveries(1)
    office.committer.put(done(delivery))
    office.committer.write_left(idle=False)
    wait_until(lambda: office.succeeded() == 1)
    wait_until(lambda: office.committer.held() == [])


def test_what_another_thread_brings_wakes_the_committer(office: Office) -> None:
    office.start()
    office.committer.leave_to_me()
    (delivery,) = office.deliveries(1)
    other = threading.Thread(target=office.committer.put, args=(done(delivery),))
    other.start()
    other.join()
    assert not office.committer.left
    wait_until(lambda: office.succeeded() == 1)


def test_what_could_not_be_written_at_once_is_written_by_the_committer(office: Office) -> None:
    office.start()
    office.committer.leave_to_me()
    first, second = office.deliveries(2)
    office.committer.put(done(first))
    office.committer.write_left(idle=True)
    office.redis.client_kill_filter(_type="normal", skipme=True)
    office.committer.put(done(second))
    office.committer.write_left(idle=True)
    wait_until(lambda: office.succeeded() == 2)
    wait_until(lambda: office.committer.held() == [])
    assert not office.failed.is_set()


def test_it_says_when_it_has_caught_up(office: Office) -> None:
    number = MOST_WAITING + MOST_VERDICTS // 2
    for delivery in office.deliveries(number):
        office.committer.put(done(delivery))
    behind = [office.committer.is_behind]
    office.start()
    assert office.caught_up.wait(10)
    behind.append(office.committer.is_behind)
    assert behind == [True, False]
    wait_until(lambda: office.succeeded() == number)


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError("not a word")


def test_one_that_cannot_be_packed_takes_no_other_along(office: Office) -> None:
    deliveries = office.deliveries(3)
    for delivery in deliveries:
        office.committer.put(done(delivery))
    broken = office.deliveries(1)[0]
    office.committer._verdicts.insert(1, Completed(broken, "succeeded", b"x", cast(Any, Unspeakable())))
    office.start()
    wait_until(lambda: office.committer.held() == [], what="all to be written")
    assert office.succeeded() == 3
    (letter,) = dead_letters(office.link, office.queue)
    assert (letter.id, letter.reason) == (broken.id, "internal")
    assert not office.failed.is_set()


def test_one_that_takes_several_scripts_is_written_as_it_is(office: Office) -> None:
    """Alone, too, beside one that cannot be written."""
    office.start()
    (delivery,) = office.deliveries(1)
    delivery.meta = {"flow": ["f", 0]}
    adding = Adding("f")
    for name in "ab":
        nodes = group(f"{name}{number}" for number in range(1000))
        adding.add(len(nodes), lambda base, nodes=nodes: nodes)  # type: ignore[misc]
    delivery.added = {"f": adding}
    verdict = done(delivery)
    assert len(office.queue.commit_calls("alice", [verdict])) == 2
    assert office.committer._write_singly("alice", "default", [verdict]) == [verdict]
    assert office.succeeded() == 1


def test_all_that_waits_is_written_before_who_asks_goes_on(office: Office) -> None:
    office.start()
    office.committer.leave_to_me()
    for delivery in office.deliveries(3):
        office.committer.put(done(delivery))
    office.committer.write_all()
    assert office.succeeded() == 3
    assert office.committer.held() == []


def test_nobody_waits_for_it_longer_than_he_may(office: Office) -> None:
    for delivery in office.deliveries(1):  # and no thread that would write it
        office.committer.put(done(delivery))
    office.board.lease_until = time.monotonic() + 0.05
    office.committer.write_all()
    assert not office.identity.lease_holds()
    assert office.succeeded() == 0
    office.start()


def test_the_board_tells_of_a_commit_that_hangs(own_server: MakeServer) -> None:
    server = own_server()
    with server.client() as client:
        office = Office(client, server.url)
        office.start()
        (delivery,) = office.deliveries(1)
        before = time.monotonic()
        assert office.board.commit_beat == 0.0
        server.freeze()
        office.committer.put(done(delivery))
        wait_until(lambda: office.board.commit_beat >= before, what="it to be told")
        server.thaw()
        wait_until(lambda: office.board.commit_beat == 0.0, what="it to be written")
        assert office.succeeded() == 1
        assert office.committer.close(10)
        office.link.close()


def test_one_whose_server_hangs_keeps_no_other_from_writing(redis: Any, url: str, own_server: MakeServer) -> None:
    server, turnstile = own_server(), Turnstile()
    with server.client() as client:
        offices = [Office(client, server.url, turnstile), Office(redis, url, turnstile)]
        hangs, serves = offices
        for each in offices:
            each.start()
        (stuck,) = hangs.deliveries(1)
        server.freeze()
        hangs.committer.put(done(stuck))
        wait_until(lambda: hangs.board.commit_beat > 0, what="it to hang")
        for number, delivery in enumerate(serves.deliveries(20), 1):
            serves.committer.put(done(delivery))
            wait_until(partial(has_written, serves, number), what="the other one to write")
        assert hangs.committer.held() == [stuck]
        server.thaw()
        wait_until(lambda: hangs.committer.held() == [], what="it to be written")
        assert hangs.succeeded() == 1
        for each in offices:
            assert each.committer.close(10)
            each.link.close()


def test_what_ends_the_thread_is_told(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(patient: bool = True) -> None:
        raise GeneratorExit

    monkeypatch.setattr(office.committer, "_commit", fails)
    office.start()
    office.committer.put(done(office.deliveries(1)[0]))
    assert office.failed.wait(10)


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="CPython 3.12 traces no instructions, or crashes")
def test_verdicts_come_while_it_takes_up_others(office: Office) -> None:
    """From a lane of another thread, between any two instructions of its own."""
    (delivery,) = office.deliveries(1)
    events = iter(range(5000))

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name != "_commit":
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode" and next(events, None) is not None:
            office.committer._verdicts.append(Released(delivery))
        return trace

    threading.settrace(trace)
    try:
        office.start()
    finally:
        threading.settrace(None)
    office.committer.put(Released(delivery))
    wait_until(lambda: office.failed.is_set() or not office.committer.held(), what="all to be written")
    assert not office.failed.is_set()
