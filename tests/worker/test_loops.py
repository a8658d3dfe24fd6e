"""What a body may do to the loop that it runs on. No server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from rsq.worker.interrupt import InCoroutine
from rsq.worker.loops import RunnerTask, close_loop, run_to_end
from tests.worker.test_parts import delivery


async def attempt(body: Coroutine[Any, Any, object], ends: list[Any]) -> None:
    """As `Attempts.arun` does it."""
    way = InCoroutine()
    way.enter(delivery(1))
    try:
        ends.append(await body)
    except asyncio.CancelledError as error:
        ends.append("handed back" if way.is_stray(error) else "failed")
    finally:
        way.leave()


def runner(coroutine: Coroutine[Any, Any, None]) -> RunnerTask:
    return RunnerTask(coroutine, loop=asyncio.get_running_loop())


async def cancels_all() -> str:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)
    return "went on"


def test_a_body_that_cancels_all_tasks_ends_itself_alone() -> None:
    ends: list[Any] = []
    neighbours: list[Any] = []

    async def serve() -> str:
        other = runner(attempt(asyncio.sleep(60), neighbours))
        await asyncio.sleep(0)
        await asyncio.wait([other, runner(attempt(cancels_all(), ends))])
        await asyncio.sleep(0.001)
        return "serves on"

    loop = asyncio.new_event_loop()
    assert run_to_end(loop, serve()) == "serves on"
    close_loop(loop)
    assert (ends, neighbours) == (["failed"], ["handed back"])


def test_a_body_that_stops_its_loop_goes_on() -> None:
    async def stops() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.001)
        return "ended"

    ends: list[Any] = []
    loop = asyncio.new_event_loop()
    run_to_end(loop, attempt(stops(), ends))
    close_loop(loop)
    assert ends == ["ended"]


def test_a_body_that_cancels_itself_as_its_last_act_has_ended() -> None:
    async def cancels_itself() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "ended"

    ends: list[Any] = []
    loop = asyncio.new_event_loop()
    run_to_end(loop, attempt(cancels_itself(), ends))
    close_loop(loop)
    assert ends == ["ended"]


def test_what_bodies_leave_on_their_loop_may_clean_up() -> None:
    told: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.001)
            told.append("cleaned up")

    kept: list[Any] = []

    async def body() -> None:
        kept.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    run_to_end(loop, attempt(body(), []))
    close_loop(loop)
    assert told == ["cleaned up"]
