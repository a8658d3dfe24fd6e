"""An error that is thrown into a body reaches that one and no other. No server."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from itertools import count
from queue import Queue
from types import FunctionType
from typing import Any

import pytest

from rsq import App
from rsq.calls.each import body_of
from rsq.calls.message import Delivery
from rsq.calls.yields import emitting
from rsq.errors import LeaseLost, ResultTimeout, SoftTimeLimitExceeded, TimeLimitExceeded
from rsq.worker.interrupt import SIGNAL, InCoroutine, InMainThread, InThread, may_strike
from rsq.worker.loops import RunnerTask
from rsq.worker.watch import Watch
from tests.helpers import wait_until
from tests.worker.test_parts import delivery


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def as_worker(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as if it stood in a module of the worker, where nothing is struck."""
    elsewhere = {**function.__globals__, "__name__": "rsq.worker.elsewhere"}
    return FunctionType(function.__code__, elsewhere, function.__name__, function.__defaults__, function.__closure__)


@pytest.mark.usefixtures("restless")
def test_a_thread_is_interrupted_inside_its_body_and_nowhere_else() -> None:
    interrupt = InThread()
    running: list[Delivery] = []
    ended = threading.Event()
    inside = outside = 0

    def body(number: int) -> None:
        for _ in range(number % 500):
            pass

    @as_worker
    def attempt(mine: Delivery, number: int) -> BaseException | None:
        try:
            try:
                interrupt.enter(mine)
                body(number)
            finally:
                interrupt.leave()
        except LeaseLost as error:
            interrupt.leave()
            return interrupt.meant(mine, error)
        return None

    def serve() -> None:
        nonlocal inside, outside
        for number in count():
            if number >= 3000 and inside:
                break
            mine = delivery(number)
            running[:] = [mine]
            try:
                error = attempt(mine, number)
                if error is not None:
                    assert str(error) == mine.id
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
    interrupt = InThread()
    first, second = delivery(1), delivery(2)
    interrupt.enter(first)
    interrupt.leave()
    interrupt.enter(second)
    interrupt.throw(first, LeaseLost("too late"))
    for _ in range(1000):
        pass
    interrupt.leave()


async def test_a_coroutine_is_cancelled_once_and_not_the_next_one() -> None:
    interrupt = InCoroutine()

    async def body(mine: Delivery, thrown: bool) -> str:
        interrupt.enter(mine)
        if thrown:
            interrupt.throw(mine, LeaseLost("gone"))
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError as error:
            interrupt.leave()
            return str(interrupt.meant(mine, error))
        interrupt.leave()
        interrupt.throw(mine, LeaseLost("too late"))
        await asyncio.sleep(0.01)
        return "ended"

    assert await runner(body(delivery(1), True)) == "gone"
    assert await runner(body(delivery(2), False)) == "ended"


def test_who_throws_before_the_coroutine_has_begun_is_told() -> None:
    assert InCoroutine().throw(delivery(1), LeaseLost("gone")) is False


def runner(coroutine: Coroutine[Any, Any, Any]) -> RunnerTask:
    """As the executors run it."""
    return RunnerTask(coroutine, loop=asyncio.get_running_loop())


# -- a soft limit in a coroutine


async def told(body: Callable[[], Coroutine[Any, Any, object]], *errors: BaseException) -> object:
    """Run a body as the executors do, throw these into it one after the other, and give what became of it."""
    interrupt, mine = InCoroutine(), delivery(1)

    async def run() -> object:
        interrupt.enter(mine)
        try:
            return await interrupt.listen(body())
        except BaseException as error:
            return interrupt.meant(mine, error)
        finally:
            interrupt.leave()

    task = runner(run())
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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with 3.11")
async def test_inside_the_block_of_a_task_group_it_may_come_as_a_group() -> None:
    """Python 3.11 and 3.12 take for a cancellation only what is nothing else. Where it fails the call it is itself."""
    seen: list[type] = []

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
                group.create_task(asyncio.sleep(60))
                await asyncio.sleep(60)
        except BaseException as error:
            seen.append(type(error))
            raise

    error = await told(body, SOFT)
    assert type(error) is SoftTimeLimitExceeded
    assert str(error) == "soft"
    grouped = seen[0].__name__ == "BaseExceptionGroup" or seen[0].__name__ == "ExceptionGroup"
    assert grouped == (sys.version_info < (3, 13))


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
from rsq.worker.interrupt import InThread
from tests.worker.test_parts import delivery

def serve():
    interrupt = InThread()
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


# -- where the main thread may be struck


class Held(logging.Handler):
    """Stands still while it writes, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.struck = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.inside.set()
            for _ in range(10**9):
                if self.go_on.is_set():
                    return
        except Exception:
            self.struck = True


def test_the_main_thread_is_not_struck_while_it_logs_but_after_it() -> None:
    way, watch, mine, handler = InMainThread(), Watch(kills=True), delivery(1), Held()
    before = signal.getsignal(SIGNAL)
    way.install()
    logger = logging.getLogger("tests.held")
    logger.addHandler(handler)
    heard: list[int] = []

    def throw() -> None:
        handler.inside.wait(60)
        watch.throw(way.throw, mine, SoftTimeLimitExceeded("soft"), lambda: True)
        wait_until(lambda: heard, 60, "it to be thrown again")
        handler.go_on.set()

    original = way._on_signal

    def counted(number: int, frame: Any) -> None:
        heard.append(number)
        original(number, frame)

    signal.signal(SIGNAL, counted)
    thread = threading.Thread(target=throw)
    thread.start()

    def body() -> None:
        logger.warning("at work")
        while True:
            pass

    @as_worker
    def attempt() -> None:
        way.enter(mine)
        body()

    try:
        with pytest.raises(SoftTimeLimitExceeded, match="soft"):
            attempt()
    finally:
        way.leave()
        logger.removeHandler(handler)
        thread.join(60)
        watch.close()
        signal.signal(SIGNAL, before)
    assert not handler.struck
    assert handler.lock is not None
    assert handler.lock.acquire(blocking=False)
    handler.lock.release()


class Looks:
    """Looks where it is destroyed."""

    def __init__(self, seen: list[bool]) -> None:
        self.seen = seen

    def __del__(self) -> None:
        self.seen.append(look())


def look() -> bool:
    return may_strike(sys._getframe())


def test_where_a_body_may_be_struck() -> None:
    seen: dict[str, list[bool]] = {"logging": [], "destructor": [], "body": [], "task": []}
    logger = logging.getLogger("tests.look")

    def keep(record: logging.LogRecord) -> bool:
        seen["logging"].append(look())
        return False

    logger.addFilter(keep)

    def body() -> None:
        logger.warning("x")
        Looks(seen["destructor"])
        seen["body"].append(look())
        seen["task"].append(calls(look))

    as_worker(lambda: body())()
    assert seen == {"logging": [False], "destructor": [False], "body": [True], "task": [True]}
    assert as_worker(lambda: may_strike(sys._getframe()))() is False


@App("looks").task(name="calls")
def calls(function: Callable[[], bool]) -> bool:
    return function()


@pytest.mark.parametrize(
    "wait", [threading.Event().wait, Queue[int]().get, Future[int]().result], ids=["event", "queue", "future"]
)
def test_a_wait_may_be_struck(wait: Callable[[], object]) -> None:
    thread = threading.Thread(target=lambda: as_worker(lambda: wait_in(wait))(), daemon=True)
    thread.start()
    wait_until(lambda: may_strike(sys._current_frames().get(thread.ident or 0)), 60, "it to wait")


def wait_in(wait: Callable[[], object]) -> None:
    wait()


@pytest.mark.parametrize("waiters", [1, 2], ids=["who reads", "who follows"])
def test_a_wait_for_a_result_may_be_struck(url: str, waiters: int) -> None:
    app = App("waits", url=url)

    def wait_for_nothing() -> None:
        with pytest.raises(ResultTimeout):
            app.AsyncResult("nobody", "default").get(timeout=5)

    wait = as_worker(lambda: wait_in(wait_for_nothing))
    threads = [threading.Thread(target=wait) for _ in range(waiters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        wait_until(lambda thread=thread: may_strike(sys._current_frames().get(thread.ident or 0)), 60, "it to wait")  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    app.close()


def test_what_calls_a_function_for_its_task_is_part_of_the_body() -> None:
    def strikes(_: object) -> bool:
        return may_strike(sys._getframe())

    def gives() -> Generator[bool, None, bool]:
        yield strikes(None)
        return strikes(None)

    emitted: list[object] = []

    async def aemit(value: object) -> None: ...

    goes_through = emitting(gives, emitted.append, aemit)
    assert as_worker(lambda: body_of(strikes, "map", False)([None, None]))() == [True, True]
    assert as_worker(lambda: goes_through())() is True
    assert emitted == [True]
