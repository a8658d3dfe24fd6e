"""The reading side of a child, one step after the other: the test owns the loop. On a real server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rsq.bell import Bell
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery
from rsq.calls.outcome import Completed, unpack_result
from rsq.clock import ServerClock
from rsq.errors import LeaseLost
from rsq.keys import GROUP
from rsq.settings import Settings
from rsq.states import State
from rsq.worker import strays
from rsq.worker.board import Board
from rsq.worker.committer import Committer
from rsq.worker.fetcher import HAND_OVER_S, Fetcher
from rsq.worker.identity import Identity
from rsq.worker.inbox import Inbox
from rsq.worker.leases import Leases
from rsq.worker.prefetch import BYTES_AHEAD, Prefetch
from rsq.worker.turns import Turns
from tests.clusters import Cluster
from tests.helpers import wait_until
from tests.proxy import Proxy
from tests.servers import Server

MIB = 1024 * 1024


class Body:
    """An executor of one slot whose bodies take no time, and end when the test says so."""

    slots = 1

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.done = 0
        self.busy_s = 0.0
        self.ran: list[str] = []

    def running(self) -> list[tuple[Delivery, float]]:
        return []

    def interrupt(self, delivery: Delivery, error: BaseException) -> None:
        raise AssertionError("nothing runs")

    def run(self, most: int = 1_000_000) -> None:
        """Run what waits."""
        while self._inbox.held() and most > 0:
            first = self._inbox.peek()
            assert first is not None
            assert self._inbox.remove(first)
            self.ran.append(first.id)
            self.done += 1
            self.busy_s += 0.00001
            most -= 1


class Desk:
    """A child's fetcher, and what is around it."""

    def __init__(self, redis: Any, url: str) -> None:
        self.redis = redis
        settings = Settings(url=url, lease_s=600)
        self.link = Link(Endpoint(url), 5)
        self.queues = [WorkerQueue("q", settings), WorkerQueue("other", settings)]
        self.queue = self.queues[0]
        self.board = Board(1, slots=1).child(0)
        self.identity = Identity("host-1", 0, 1, self.board.lanes[0])
        self.inbox = Inbox()
        self.body = Body(self.inbox)
        self.committer = Committer(
            Link(Endpoint(url), 5),
            {queue.name: queue for queue in self.queues},
            self.identity,
            on_lease_lost=lambda consumer: self.fetcher.fence(consumer),
            on_failure=lambda: None,
            on_caught_up=lambda: None,
        )
        self.fetcher = Fetcher(
            Link(Endpoint(url), 5),
            Turns(self.queues, {}),
            self.identity,
            self.board,
            self.inbox,
            self.body,
            self.committer,
            Prefetch(100, 1),
            ServerClock(),
            lambda: Link(Endpoint(url), 5),
        )
        for queue in self.queues:
            queue.register(self.link, self.identity.consumer)
        self.identity.board.lease_until = time.monotonic() + 600

    def steps_until(self, condition: Callable[[], object], what: str) -> None:
        def take_one() -> object:
            self.fetcher.step()
            return condition()

        wait_until(take_one, 20, what)

    def add(self, *bodies: bytes, queue: str = "q") -> None:
        for body in bodies:
            stream = f"{{rsq:0}}:{queue}:stream"
            self.redis.xadd(stream, {"id": f"x{self.redis.xlen(stream)}", "task": "t", "body": body, "meta": b""})

    def pending(self, queue: str = "q") -> dict[str, int]:
        """How many entries each consumer holds."""
        rows = self.redis.xinfo_consumers(f"{{rsq:0}}:{queue}:stream", GROUP)
        return {row["name"].decode(): row["pending"] for row in rows if row["pending"]}

    def unregister(self, queue: str = "q") -> None:
        """As others do with a consumer that is late; as long as it holds nothing its name goes, too."""
        at = f"{{rsq:0}}:{queue}"
        self.redis.zrem(f"{at}:consumers", self.identity.consumer)
        self.redis.xgroup_delconsumer(f"{at}:stream", GROUP, self.identity.consumer)


@pytest.fixture
def desk(redis: Any, url: str) -> Iterator[Desk]:
    desk = Desk(redis, url)
    desk.committer.start()
    yield desk
    desk.fetcher.stop()
    desk.committer.close(10)
    desk.link.close()


def test_a_line_that_loses_one_page_after_the_other_is_tried_again_at_once(
    redis: Any, server: Server | Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What was delivered and never seen comes page by page, and each that comes through counts."""
    with Proxy(server) as proxy:
        desk = Desk(redis, proxy.url)
        desk.add(*[b""] * 60)
        stream = desk.queue.keys.stream()
        redis.xreadgroup(GROUP, desk.identity.consumer, {stream: ">"}, count=60)
        proxy.plan("cut_reply", at=proxy.sha(scripts.FETCH))
        for pages in range(2, 7):
            proxy.plan(*["pass_request"] * pages, "cut_reply", at=b"XREADGROUP")
        desk.committer.start()
        desk.fetcher.start()
        wait_until(lambda: len(desk.inbox) == 60, 20, "all of them to be there")
        desk.fetcher.stop()
        desk.committer.close(10)
        desk.link.close()
    waits = [message for message in caplog.messages if "trying again in" in message]
    assert len(waits) == 6
    assert all(message.endswith("trying again in 0.1 s") for message in waits), waits


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for strays at each step."""
    monkeypatch.setattr(strays, "LOOK_S", 0)


def test_what_the_server_counts_as_ones_own_though_it_is_done_comes_again(redis: Any, always: None, desk: Desk) -> None:
    """A failover to a replica that lacked the outcome, of which this connection has seen nothing."""
    desk.add(b"")
    stream = desk.queue.keys.stream()
    desk.steps_until(desk.inbox.held, "the delivery")
    delivery = desk.inbox.peek()
    assert delivery is not None
    before = redis.dump(stream)
    desk.body.run()
    desk.committer.put(Completed(delivery, "succeeded", b"", 0))
    wait_until(lambda: not desk.pending(), what="the outcome to be written")
    redis.restore(stream, 0, before, replace=True)
    desk.steps_until(desk.inbox.held, "the same again")
    desk.body.run()
    assert desk.body.ran == ["x0", "x0"]
    # Its outcome is not written yet, and that is no reason to run it once more.
    desk.committer.put(Completed(delivery, "succeeded", b"", 0))
    desk.steps_until(lambda: not desk.pending() and not desk.committer.held(), "the outcome to be written")
    assert desk.body.ran == ["x0", "x0"]


def test_what_was_acknowledged_early_and_is_done_by_ones_own_word_alone_is_told_as_lost(
    redis: Any, always: None, desk: Desk
) -> None:
    desk.add(b"")
    desk.steps_until(desk.inbox.held, "the delivery")
    delivery = desk.inbox.peek()
    assert delivery is not None
    delivery.taken = desk.queue.take(desk.link, desk.identity.consumer, delivery)
    key = desk.queue.keys.result(delivery.id)
    for _ in range(3):
        desk.inbox.hungry.set()  # so that a step without room does not wait
        desk.fetcher.step()
    assert not redis.exists(key)
    desk.body.run()
    desk.steps_until(lambda: redis.exists(key), "its caller to be told")
    assert unpack_result(redis.get(key)).state is State.FAILURE
    assert not redis.exists(desk.queue.keys.taken(desk.identity.consumer))


def test_what_came_to_an_idle_executor_is_begun_before_anything_else(desk: Desk) -> None:
    """The fetcher would keep the interpreter from it: so it waits, for nothing that was asked for before."""

    class Hungry(Bell):
        def wait(self, timeout_s: float = -1) -> bool:
            waits.append((timeout_s, self.is_set()))
            desk.body.run()
            return True

    waits: list[tuple[float, bool]] = []
    desk.fetcher.step()
    desk.inbox.hungry = Hungry()
    desk.inbox.hungry.set()
    desk.add(b"")
    desk.fetcher.step()
    assert desk.body.ran == ["x0"]
    assert waits == [(HAND_OVER_S, False)]


def test_nothing_is_read_past_ones_own_lease(desk: Desk) -> None:
    desk.fetcher.step()
    desk.add(b"")
    desk.identity.board.lease_until = time.monotonic()
    for _ in range(3):
        desk.fetcher.step()
    assert desk.pending() == {}
    desk.identity.board.lease_until = time.monotonic() + 600
    desk.steps_until(desk.inbox.held, "the renewed lease to be used")
    assert desk.pending() == {desk.identity.consumer: 1}


def test_a_lease_that_ran_out_and_is_lost_gives_a_new_name(desk: Desk) -> None:
    desk.identity.board.lease_until = time.monotonic()
    desk.unregister()
    with pytest.raises(LeaseLost):
        desk.fetcher.step()


def test_an_idle_read_ends_with_the_lease(desk: Desk) -> None:
    desk.fetcher.step()
    until = desk.identity.board.lease_until = time.monotonic() + 0.2
    desk.fetcher.step()
    desk.add(b"")
    wait_until(lambda: time.monotonic() > until, what="the lease to end")
    desk.fetcher.step()
    assert desk.pending() == {}


def test_what_was_read_without_a_lease_is_for_others_with_the_new_name(desk: Desk) -> None:
    old = desk.identity.consumer
    desk.fetcher.step()
    desk.unregister()
    desk.add(b"", b"")
    desk.steps_until(desk.inbox.held, "it to read under the name that was struck")
    assert set(desk.pending()) == {old}
    desk.fetcher.fence(old)
    desk.fetcher.step()
    assert desk.identity.consumer != old

    def both_ran() -> bool:
        desk.body.run()
        return len(desk.body.ran) == 2

    desk.steps_until(both_ran, "whoever fetches next to find them")
    assert desk.pending() == {desk.identity.consumer: 2}


def test_the_lease_of_a_new_name_counts_from_when_it_was_asked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    register, asked_at = WorkerQueue.register, time.monotonic()

    def slow(queue: WorkerQueue, *given: Any) -> None:
        register(queue, *given)
        time.sleep(0.1)

    monkeypatch.setattr(WorkerQueue, "register", slow)
    desk.fetcher.fence(desk.identity.consumer)
    desk.fetcher.step()
    answered_at = time.monotonic()
    assert asked_at + 600 <= desk.identity.board.lease_until <= answered_at + 600 - 0.2
    name = desk.identity.next_name()
    until = Leases(desk.link, desk.queues).register(name)
    assert answered_at + 600 <= until <= time.monotonic() + 600 - 0.2


def test_a_body_is_told_once_that_its_lease_is_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it goes on, and the next name is lost, too."""
    desk.add(b"")
    desk.steps_until(desk.inbox.held, "the delivery")
    body = desk.inbox.peek()
    assert body is not None
    assert desk.inbox.remove(body)
    told: list[BaseException] = []
    monkeypatch.setattr(desk.body, "running", lambda: [(body, time.monotonic())])
    monkeypatch.setattr(desk.body, "interrupt", lambda delivery, error: told.append(error))
    for _ in range(2):
        desk.fetcher.fence(desk.identity.consumer)
        desk.fetcher.step()
    assert [type(error) for error in told] == [LeaseLost]
    assert desk.identity.consumer.endswith(".2")


def test_what_was_fetched_on_a_queue_whose_lease_holds_goes_back_at_once(desk: Desk) -> None:
    old = desk.identity.consumer
    desk.add(b"", queue="other")
    desk.fetcher.step()
    assert desk.pending("other") == {old: 1}
    desk.unregister("q")
    desk.fetcher.fence(old)
    desk.fetcher.step()
    wait_until(lambda: old not in desk.pending("other"), what="it to be handed back")


def test_large_bodies_are_held_ahead_by_their_bytes(desk: Desk) -> None:
    """However short their tasks are."""
    number = 3 * BYTES_AHEAD // MIB
    desk.add(*[b"%d" % number + bytes(MIB) for number in range(number)])
    most = 0
    while len(desk.body.ran) < number:
        for _ in range(12):
            desk.inbox.hungry.set()  # so that a step without room does not wait
            desk.fetcher.step()
            most = max(most, len(desk.inbox))
        desk.body.run(3)
    assert most <= BYTES_AHEAD // MIB + 1
    assert desk.body.ran == [f"x{place}" for place in range(number)]
