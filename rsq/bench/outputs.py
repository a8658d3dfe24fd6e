"""What outputs cost: values that one process emits, how soon they are seen, and many who watch at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from rsq.bench import floor
from rsq.bench.report import Sample
from rsq.bench.rig import Rig
from rsq.bench.scenarios import Samples, percentile
from rsq.bench.tasks import app, emit_moments, emit_numbers
from rsq.calls.output import Item
from rsq.result import AsyncResult

PAUSE_S = 0.002
"""Between two values whose way is measured."""

LOOK_EVERY_S = 0.05


def outputs(rig: Rig) -> Samples:
    """Values emitted by one process, the way of one to who watches, 10,000 watchers of as many outputs."""
    count = rig.size(100_000)

    def emit() -> float:
        with rig.worker():
            emit_numbers.delay(1).get(timeout=60)
            began = time.perf_counter()
            emit_numbers.delay(count).get(timeout=300)
            return time.perf_counter() - began

    seconds, bare = rig.take_turns(emit, partial(floor.enqueue_bulk, rig.url, count))
    yield Sample("values emitted by a process", "1/s", "more", count / seconds, count / bare)
    rig.empty()
    with rig.worker():
        ways = sorted(_ways(emit_moments.delay(rig.size(1000), PAUSE_S)))
    for percent in (50, 99):
        yield Sample(f"from emit to a watcher, p{percent}", "ms", "less", percentile(ways, percent) * 1000)
    rig.empty()
    yield from asyncio.run(_many(rig, rig.size(10_000)))


def _ways(result: AsyncResult[None]) -> list[float]:
    """How long each value was on its way, in seconds."""
    return [time.monotonic() - seen.value for seen in result.stream(timeout=60) if isinstance(seen, Item)]


async def _many(rig: Rig, count: int) -> list[Sample]:
    """So many outputs of ten values, each with a watcher of its own."""
    results = await asyncio.to_thread(emit_numbers.map_async, [(10,)] * count)
    before = _subscribed(rig)
    watchers = [asyncio.create_task(_seen(result)) for result in results]
    began = time.perf_counter()
    await asyncio.to_thread(_wait_for_channels, rig, 2 * count)
    attached = time.perf_counter() - began
    connections = _subscribed(rig) - before
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, rig.worker())
        began = time.perf_counter()
        seen = await asyncio.gather(*watchers)
        took = time.perf_counter() - began
    await app.aclose()
    assert seen == [10] * count, "each watcher sees each value once"
    return [
        Sample(f"{count:,} watchers: until all have begun", "s", "less", attached),
        Sample(f"{count:,} watchers: connections", "", "less", connections),
        Sample(f"{count:,} watchers: values seen", "1/s", "more", 10 * count / took),
    ]


async def _seen(result: AsyncResult[None]) -> int:
    return len([seen async for seen in result.stream(timeout=300) if isinstance(seen, Item)])


def _subscribed(rig: Rig) -> int:
    clients: bytes = rig.call("CLIENT", "LIST", "TYPE", "pubsub")
    return len(clients.splitlines())


def _wait_for_channels(rig: Rig, count: int) -> None:
    while len(rig.call("PUBSUB", "CHANNELS")) < count:
        time.sleep(LOOK_EVERY_S)


OUTPUTS: dict[str, Callable[[Rig], Samples]] = {"outputs": outputs}
