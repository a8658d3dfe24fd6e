"""The emitter: what bodies emit on its way to the server, while that is there and while it is away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from rsq import OutputFull
from rsq.broker.connection import Endpoint, Link
from rsq.broker.emitter import MOST_BYTES, Emitter, Output
from rsq.broker.pool import LinkPool
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import Delivery, Message
from rsq.calls.outcome import Completed
from rsq.settings import Settings
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.servers import Server

MS = 3_600_000
KIB = 1024


class Desk:
    """A server of its own, and a run of one call there."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.queue = WorkerQueue("q", Settings(url=server.url))
        self.link = Link(Endpoint(server.url), 20)
        self.outputs: list[Output] = []
        self.emitter = Emitter(LinkPool(Endpoint(server.url), 1))

    def output(self, task_id: str = "a") -> Output:
        delivery = self.start(task_id)
        delivery.output = Output(self.emitter, self.queue.keys.prefix, delivery, 1_000_000, MS)
        output: Output = delivery.output
        self.outputs.append(output)
        return output

    def close(self) -> None:
        """Nothing is written any more: the server is about to end."""
        for output in self.outputs:
            output.drop()
        self.link.close()

    def start(self, task_id: str) -> Delivery:
        self.queue.register(self.link, "alice")
        self.link.call_packed(self.queue.plain_enqueue(Message(task_id, "task", b"body", "q")))
        (delivery,) = self.queue.fetch(self.link, "alice", 1).deliveries
        delivery.consumer = "alice"
        return delivery

    def values(self, task_id: str = "a") -> list[bytes]:
        with self.server.client() as redis:
            return [
                fields[b"value"] for _, fields in redis.xrange(self.queue.keys.output(task_id)) if b"value" in fields
            ]


@pytest.fixture
def desk(own_server: MakeServer) -> Iterator[Desk]:
    desk = Desk(own_server())
    with closing(desk):
        yield desk


def numbered(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


def test_values_are_written_beside_the_body_and_in_order(desk: Desk) -> None:
    output = desk.output()
    for value in numbered(3000):
        output.emit(value)
    wait_until(lambda: len(desk.values()) == 3000, 60, "all to be written")
    assert desk.values() == numbered(3000)
    wait_until(lambda: not output.values, 60, "all to be confirmed")


def test_a_fault_of_its_own_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [RuntimeError("a fault of rsq's own")]
    packed = Output.packed

    def breaks_once(*arguments: Any) -> bytes:
        if faults:
            raise faults.pop()
        return packed(*arguments)

    monkeypatch.setattr(Output, "packed", breaks_once)
    output = desk.output()
    for value in numbered(3):
        output.emit(value)
    wait_until(lambda: desk.values() == numbered(3), 60, "all to be written")


def test_a_full_buffer_holds_the_body_up(desk: Desk) -> None:
    output = desk.output()
    desk.server.freeze()
    emitted: list[int] = []

    def emit() -> None:
        for n in range(100):
            output.emit(b"%02d" % n + bytes(64 * KIB))
            emitted.append(n)

    thread = threading.Thread(target=emit)
    thread.start()
    most = MOST_BYTES // (64 * KIB)
    wait_until(lambda: len(emitted) >= most - 1, 60, "the buffer to be full")
    thread.join(0.3)
    assert thread.is_alive()
    assert len(emitted) <= most
    desk.server.thaw()
    thread.join(60)
    assert not thread.is_alive()
    wait_until(lambda: not output.values, 60, "all to be confirmed")
    assert [value[:2] for value in desk.values()] == [b"%02d" % n for n in range(100)]


def test_a_coroutine_is_told_and_may_wait(desk: Desk) -> None:
    output = desk.output()
    desk.server.freeze()

    async def emit() -> None:
        with pytest.raises(OutputFull, match=r"await self\.aemit"):
            for _ in range(100):
                output.emit(bytes(64 * KIB))
        waiting = asyncio.create_task(output.aemit(b"last"))
        waiting_more = asyncio.create_task(output.aemit(bytes(64 * KIB)))
        await asyncio.wait([waiting_more], timeout=0.2)
        assert not waiting_more.done()  # and the loop goes on meanwhile
        desk.server.thaw()
        await asyncio.wait_for(asyncio.gather(waiting, waiting_more), 60)

    asyncio.run(emit())


def test_one_value_may_be_larger_than_the_buffer(desk: Desk) -> None:
    output = desk.output()
    for _ in range(2):
        output.emit(bytes(2 * MOST_BYTES))
    wait_until(lambda: len(desk.values()) == 2, 60, "both to be written")


def test_a_server_that_restarts_gets_each_value_once(desk: Desk) -> None:
    output = desk.output()
    for n, value in enumerate(numbered(4000)):
        output.emit(value)
        if n in (1000, 2000, 3000):
            with desk.server.client() as redis:
                redis.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: not output.values, 60, "all to be confirmed")
    assert desk.values() == numbered(4000)


def test_the_outcome_waits_for_nothing_and_lacks_nothing(desk: Desk) -> None:
    """It goes by another connection, while batches are on their way."""
    output = desk.output()
    for value in numbered(5000):
        output.emit(value)
    calls = desk.queue.commit_calls("alice", [Completed(output.delivery, "succeeded", b"done", MS)])
    assert desk.link.run_many(calls)[-1] == 1
    output.drop()
    assert desk.values() == numbered(5000)


def test_after_its_run_an_output_takes_nothing(desk: Desk) -> None:
    output = desk.output()
    output.emit(b"x")
    assert (
        desk.link.run_many(desk.queue.commit_calls("alice", [Completed(output.delivery, "succeeded", b"", 0)]))[-1] == 1
    )
    output.emit(b"late")
    output.drop()
    assert desk.values() == [b"x"]
    assert not output.values


def test_what_is_fenced_is_dropped_and_holds_nobody_up(desk: Desk) -> None:
    output = desk.output()
    with desk.server.client() as redis:
        redis.zrem(desk.queue.keys.consumers, "alice")
    output.emit(b"x")
    wait_until(lambda: output.closed, 60, "the fence to be noticed")
    for _ in range(100):
        output.emit(bytes(64 * KIB))
    assert not output.values


def test_one_output_that_is_refused_leaves_the_others_alone(desk: Desk) -> None:
    bad, good = desk.output("bad"), desk.output("good")
    with desk.server.client() as redis:
        redis.set(desk.queue.keys.output("bad"), "something else")
    bad.emit(b"x")
    for value in numbered(10):
        good.emit(value)
    wait_until(lambda: desk.values("good") == numbered(10), 60, "the good one to be written")
    bad.drop()
