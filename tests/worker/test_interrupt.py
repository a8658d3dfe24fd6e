"""An error that is thrown into a body reaches that one and no other. No server."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from rsq.errors import LeaseLost
from rsq.message import Delivery
from rsq.worker.interrupt import ThreadInterrupt
from tests.worker.test_parts import delivery


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_a_thread_is_interrupted_inside_its_body_and_nowhere_else() -> None:
    interrupt = ThreadInterrupt()
    running: list[Delivery] = []
    ended = threading.Event()
    inside = outside = 0

    def serve() -> None:
        nonlocal inside, outside
        for number in range(3000):
            mine = delivery(number)
            running[:] = [mine]
            try:
                try:
                    interrupt.enter(mine)
                    for _ in range(number % 500):
                        pass
                    interrupt.leave()
                except LeaseLost as error:
                    interrupt.leave()
                    meant = interrupt.meant(mine, error)
                    assert str(meant) == mine.id
                    inside += 1
                for _ in range(50):
                    pass
            except LeaseLost:
                outside += 1
        ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    while not ended.is_set():
        for each in tuple(running):  # it grows meanwhile
            interrupt.throw(each, LeaseLost(each.id))
    thread.join(60)
    assert outside == 0
    assert inside > 0


def test_what_is_thrown_after_the_end_is_dropped() -> None:
    interrupt = ThreadInterrupt()
    first, second = delivery(1), delivery(2)
    interrupt.enter(first)
    interrupt.leave()
    interrupt.enter(second)
    interrupt.throw(first, LeaseLost("too late"))
    for _ in range(1000):
        pass
    interrupt.leave()


async def test_a_coroutine_is_cancelled_once_and_not_the_next_one() -> None:
    interrupt = ThreadInterrupt()

    async def body(mine: Delivery, thrown: bool) -> str:
        interrupt.enter_coroutine(mine)
        if thrown:
            interrupt.throw(mine, LeaseLost("gone"))
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError as error:
            interrupt.leave_coroutine()
            return str(interrupt.meant(mine, error))
        interrupt.leave_coroutine()
        interrupt.throw(mine, LeaseLost("too late"))
        await asyncio.sleep(0.01)
        return "ended"

    assert await asyncio.create_task(body(delivery(1), True)) == "gone"
    assert await asyncio.create_task(body(delivery(2), False)) == "ended"


def test_a_coroutine_on_the_loop_of_a_thread_is_cancelled_even_when_it_is_thrown_before_it_began() -> None:
    interrupt, loop = ThreadInterrupt(), asyncio.new_event_loop()
    mine = delivery(1)
    told: list[str] = []

    async def body() -> None:
        await asyncio.sleep(60)

    def serve() -> None:
        interrupt.enter(mine)
        began.set()
        try:
            while not thrown.wait(0.001):
                pass
            interrupt.run(loop, body())
        except BaseException as error:
            interrupt.leave()
            told.append(str(interrupt.meant(mine, error)))

    began, thrown = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    began.wait(10)
    thrown.set()
    interrupt.throw(mine, LeaseLost("gone"))
    thread.join(30)
    loop.close()
    assert told == ["gone"]
