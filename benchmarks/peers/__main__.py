"""`python -m peers NAME URL TASKS TRIPS PART...`, in this directory's parent and with the peer's own interpreter.

Measures one peer against the server at URL, which it empties, and prints one JSON line for each figure:
``{"figure", "unit", "better", "value"}``, or ``{"figure", "error"}`` for what the peer cannot do. A part is ``plain``,
or ``flows``: chains and chords, of a peer that has them.

A peer is a module beside this one, with a class `Peer(url, keep)`; `keep` tells whether its results are kept.

    opened()       optional, an asynchronous context in which the following are called
    send()         one call
    send_many(n)   n calls in bulk, where the peer can
    round_trip()   one call, and its result
    send_chains(n, steps)  optional, n chains of so many steps at once; each step is one body
    send_chord(n)          optional, n members, and a body that adds up their results, which is one body more
    work()         its worker, in this process, until it is terminated
    VERSION        what it is

Any of these may be a coroutine function.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peers.counting import TOLD_BY

WARM_UP_SHARE = 10
"""One task in so many runs before the clock starts."""

STEPS = 100
"""Of a chain."""

PATIENCE_S = 120.0
LOOK_EVERY_S = 0.005

try:
    from uvloop import run
except ImportError:
    from asyncio import run


def empty(url: str) -> None:
    """Delete everything on the server."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379)) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        connection.recv(64)


async def call(act: Callable[..., Any], *arguments: object) -> Any:
    answer = act(*arguments)
    return await answer if inspect.isawaitable(answer) else answer


async def each(act: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    taken = []
    gc.collect()
    if inspect.iscoroutinefunction(act):
        for _ in range(count):
            began = time.perf_counter()
            await act()
            taken.append(time.perf_counter() - began)
    else:
        for _ in range(count):
            began = time.perf_counter()
            act()
            taken.append(time.perf_counter() - began)
    return taken


@contextlib.asynccontextmanager
async def opened(peer: Any) -> AsyncIterator[Any]:
    async with peer.opened() if hasattr(peer, "opened") else contextlib.nullcontext():
        yield peer


@contextlib.contextmanager
def worker(name: str, url: str, keep: bool, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The peer's worker in a process of its own."""
    command = [sys.executable, "-m", "peers", name, url, "work", str(int(keep))]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            yield process
        except TimeoutError:
            log.seek(0)
            raise RuntimeError(f"the worker did not get on: {log.read()[-600:].decode(errors='replace')}") from None
        finally:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def enqueue(peer: Any, url: str, tasks: int) -> AsyncIterator[tuple[str, str, str, float]]:
    async with opened(peer):
        await call(peer.send)
        taken = await each(peer.send, tasks)
        yield "enqueue one by one", "tasks/s", "more", tasks / sum(taken)
        if hasattr(peer, "send_many"):
            empty(url)
            await call(peer.send)
            gc.collect()
            began = time.perf_counter()
            await call(peer.send_many, tasks)
            yield "enqueue in bulk", "tasks/s", "more", tasks / (time.perf_counter() - began)


async def drain(peer: Any, name: str, url: str, keep: bool, tasks: int) -> AsyncIterator[tuple[str, str, str, float]]:
    warm_up = max(1, tasks // WARM_UP_SHARE)
    async with opened(peer):
        if hasattr(peer, "send_many"):
            await call(peer.send_many, warm_up + tasks)
        else:
            await each(peer.send, warm_up + tasks)
    took_s = await worked_off(name, url, keep, warm_up, warm_up + tasks)
    yield f"drain, results {'kept' if keep else 'ignored'}", "tasks/s", "more", tasks / took_s


async def worked_off(name: str, url: str, keep: bool, first: int, last: int) -> float:
    """Seconds from one body to another, by their numbers, of a worker that begins now."""
    with tempfile.TemporaryDirectory() as directory:
        stamp = Path(directory) / "took"
        with worker(name, url, keep, {TOLD_BY: f"{first}:{last}:{stamp}"}) as process:
            deadline = time.monotonic() + PATIENCE_S
            while not stamp.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError
                await asyncio.sleep(LOOK_EVERY_S)
        return float(stamp.read_text())


async def wait(peer: Any, name: str, url: str, trips: int) -> AsyncIterator[tuple[str, str, str, float]]:
    with worker(name, url, True, {}):
        async with opened(peer):
            # Until the worker is there, and both sides have their connections.
            await asyncio.wait_for(each(peer.round_trip, 20), PATIENCE_S)
            taken = sorted(await each(peer.round_trip, trips))
    for percent in (50, 99):
        yield f"round trip p{percent}", "ms", "less", 1000 * taken[min(trips - 1, trips * percent // 100)]


async def drain_flows(peer: Any, name: str, url: str, tasks: int) -> AsyncIterator[tuple[str, str, str, float]]:
    """From the first body to the last one."""
    chains = max(1, tasks // STEPS)
    for figure, send, count in (
        (f"steps of chains of {STEPS}", lambda: peer.send_chains(chains, STEPS), chains * STEPS),
        ("members of a chord", lambda: peer.send_chord(tasks), tasks + 1),
    ):
        empty(url)
        async with opened(peer):
            await call(send)
        yield figure, "tasks/s", "more", (count - 1) / await worked_off(name, url, True, 1, count)


async def measure(name: str, url: str, tasks: int, trips: int, parts: Sequence[str]) -> None:
    kind: Callable[[str, bool], Any] = importlib.import_module(f"peers.{name}").Peer
    steps: list[tuple[str, Callable[[], AsyncIterator[tuple[str, str, str, float]]]]] = []
    if "plain" in parts:
        steps += [
            ("enqueue", lambda: enqueue(kind(url, False), url, tasks)),
            ("drain, results kept", lambda: drain(kind(url, True), name, url, True, tasks)),
            ("drain, results ignored", lambda: drain(kind(url, False), name, url, False, tasks)),
            ("round trip", lambda: wait(kind(url, True), name, url, trips)),
        ]
    if "flows" in parts and hasattr(kind, "send_chains"):
        steps.append(("flows", lambda: drain_flows(kind(url, True), name, url, tasks)))
    for step, figures in steps:
        empty(url)
        try:
            async for figure, unit, better, value in figures():
                line = {"figure": figure, "unit": unit, "better": better, "value": value}
                print(json.dumps(line), flush=True)
        except Exception as error:
            print(json.dumps({"figure": step, "error": f"{type(error).__name__}: {error}"[:800]}), flush=True)


def main() -> None:
    name, url, what, more, *parts = sys.argv[1:]
    if what != "work":
        run(measure(name, url, int(what), int(more), parts))
        return
    peer = importlib.import_module(f"peers.{name}").Peer(url, more == "1")
    if inspect.iscoroutinefunction(peer.work):
        run(peer.work())
    else:
        peer.work()


if __name__ == "__main__":
    main()
