"""An error that is thrown into a body reaches that one and no other. No server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from typing import Any

import pytest

from rsq.calls.message import Delivery
from rsq.errors import LeaseLost, SoftTimeLimitExceeded, TimeLimitExceeded
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
        for number in count():
            if number >= 3000 and inside:
                break
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


# -- a soft limit in a coroutine


async def told(body: Callable[[], Coroutine[Any, Any, object]], *errors: BaseException) -> object:
    """Run a body as the executors do, throw these into it one after the other, and give what became of it."""
    interrupt, mine = ThreadInterrupt(), delivery(1)

    async def run() -> object:
        interrupt.enter_coroutine(mine)
        try:
            return await interrupt.tell(body())
        except BaseException as error:
            return interrupt.meant(mine, error)
        finally:
            interrupt.leave_coroutine()

    task = asyncio.create_task(run())
    for error in errors:
        await asyncio.sleep(0.01)
        interrupt.throw(mine, error)
    return await asyncio.wait_for(task, 10)


SOFT = SoftTimeLimitExceeded("soft")


async def test_a_coroutine_sees_its_soft_limit_as_what_it_is() -> None:
    async def body() -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded as error:
            await asyncio.wait_for(asyncio.sleep(0), 1)
            return f"cleaned up: {error}"
        return "ended"

    assert await told(body, SOFT) == "cleaned up: soft"


async def test_what_a_coroutine_lets_pass_is_its_failure_and_no_cancellation() -> None:
    async def body() -> None:
        await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))

    error = await told(body, SOFT)
    assert type(error) is SoftTimeLimitExceeded
    assert str(error) == "soft"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with 3.11")
async def test_a_task_group_ends_with_its_soft_limit() -> None:
    ended: list[str] = []

    async def member(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    async def body() -> str:
        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
                group.create_task(member("a"))
                group.create_task(member("b"))
        except SoftTimeLimitExceeded:
            ended.append("group")
            async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
                group.create_task(asyncio.sleep(0))
            return "cleaned up"
        return "ended"

    assert await told(body, SOFT) == "cleaned up"
    assert sorted(ended) == ["a", "b", "group"]


async def test_other_errors_remain_cancellations() -> None:
    seen: list[type] = []

    async def body() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except BaseException as error:
                seen.append(type(error))
                if isinstance(error, asyncio.CancelledError) and not isinstance(error, SoftTimeLimitExceeded):
                    raise

    assert str(await told(body, SOFT, TimeLimitExceeded("hard"))) == "hard"
    assert [issubclass(each, SoftTimeLimitExceeded) for each in seen] == [True, False]


async def test_a_time_out_of_its_own_is_no_soft_limit() -> None:
    async def body() -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            try:
                await asyncio.wait_for(asyncio.sleep(60), 0.01)
            except (TimeoutError, asyncio.TimeoutError):
                return "timed out"
        return "ended"

    assert await told(body, SOFT) == "timed out"


def test_threads_can_be_traced_after_it() -> None:
    """By a debugger or for coverage. In a process of its own, for it may hang."""
    code = """
import sys, threading
from rsq.errors import LeaseLost
from rsq.worker.interrupt import ThreadInterrupt
from tests.worker.test_parts import delivery

def serve():
    interrupt = ThreadInterrupt()
    interrupt.enter(mine := delivery(1))
    try:
        interrupt.throw(mine, LeaseLost("gone"))
        interrupt.leave()
    except LeaseLost:
        interrupt.leave()

thread = threading.Thread(target=serve)
thread.start()
thread.join()

def trace(frame, event, argument):
    frame.f_trace_opcodes = True
    return trace

sys.settrace(trace)
(lambda: None)()
sys.settrace(None)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
