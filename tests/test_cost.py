"""What a call costs, counted and not timed, against a baseline: no machine is too slow or too busy for it.

Python's own instructions stand for the processor time of the hot path, the server's count of commands for its work.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter as Counted
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

import pytest

from rsq import App

BASELINE = {"delay": 640, "map_async": 490, "drain, kept": 1050, "drain, ignored": 930}
"""Instructions a task. After a change that is worth it: what the failing test names."""

AT_MOST = 1.5
"""Versions of Python differ by a fifth; a doubling is what is to be caught."""


pytestmark = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="CPython 3.12 counts nothing, or crashes, when instructions are traced"
)


class Counter:
    """Counts the instructions that Python carries out in the threads that are traced."""

    def __init__(self) -> None:
        self._ticks = count()

    @property
    def value(self) -> int:
        return next(self._ticks)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode":
            next(self._ticks)
        return self.trace


@contextmanager
def counted_here() -> Iterator[Counter]:
    """The instructions of this thread."""
    counter, before = Counter(), sys.gettrace()
    sys.settrace(counter.trace)
    try:
        yield counter
    finally:
        sys.settrace(before)


@contextmanager
def counted_in_new_threads() -> Iterator[Counter]:
    """The instructions of all threads that begin meanwhile."""
    counter = Counter()
    threading.settrace(counter.trace)
    try:
        yield counter
    finally:
        threading.settrace(None)


def check(what: str, cost: float) -> None:
    assert BASELINE[what] / 2 < cost < BASELINE[what] * AT_MOST, f"{what}: {cost:.0f} instructions a task"


@pytest.fixture
def shop(url: str) -> Iterator[App]:
    # How much is fetched at once follows from measured times: on a busy machine less of them would fit into 0.1 s.
    app = App("shop", url=url, prefetch_ms=60_000)
    app.task(name="kept")(lambda a, b: a + b)
    app.task(name="ignored", ignore_result=True)(lambda a, b: a + b)
    yield app
    app.close()


def commands(redis: Any) -> Counted[str]:
    """How often each command was called so far, in scripts too."""
    stats = redis.info("commandstats")
    return Counted({name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()})


@pytest.mark.parametrize("what", ["delay", "map_async"])
def test_the_cost_of_a_send(shop: App, redis: Any, what: str) -> None:
    task = shop.tasks["kept"]
    send: dict[str, Callable[[], object]] = {
        "delay": lambda: [task.delay(1, 2) for _ in range(100)],
        "map_async": lambda: task.map_async([(1, 2)] * 100),
    }
    send[what]()
    before = commands(redis)
    with counted_here() as counter:
        send[what]()
    check(what, counter.value / 100)
    assert (commands(redis) - before - Counted(["info"])).total() == 100


@pytest.mark.parametrize("what", ["kept", "ignored"])
def test_the_cost_of_a_run(shop: App, redis: Any, what: str) -> None:
    task = shop.tasks[what]

    def cost_of(number: int) -> tuple[int, Counted[str]]:
        with shop.testing.isolated(shop.settings.url):
            task.map_async([(1, 2)] * number)
            before = commands(redis)
            with counted_in_new_threads() as counter, shop.testing.worker() as worker:
                worker.wait_idle(60)
            return counter.value, commands(redis) - before

    few, many = cost_of(1000), cost_of(4000)
    check(f"drain, {what}", (many[0] - few[0]) / 3000)
    asked = many[1] - few[1]
    # For a result that is kept, and nothing else; what ends a call ends hundreds.
    assert asked["publish"] == (3000 if what == "kept" else 0)
    assert asked["xack"] + asked["xdel"] < 1500
