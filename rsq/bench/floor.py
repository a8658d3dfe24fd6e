"""The floor: the same work with redis-py, hiredis and msgpack alone, in the same shape, and with no promise kept.

No lease, no fence, no retry, no answer to a lost reply: what no queue in Python on Redis Streams can fall below without
another client library. It imports nothing of rsq, and any program may call it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]
import redis
import redis.asyncio

STREAM, GROUP, CONSUMER = "floor:stream", "floor", "floor-1"
DELAYED, MESSAGES = "floor:delayed", "floor:messages"
ANSWERS = "floor:answers"
BATCH = 500
CHUNK = 1000
TTL_MS = 86_400_000
TASK = "rsq.bench.tasks.add"


@dataclass(frozen=True)
class Cost:
    """What some tasks took: seconds on the clock, and seconds of this process's processor time."""

    tasks: int
    seconds: float
    cpu_s: float


def add(x: int, y: int) -> int:
    return x + y


def connect(url: str) -> Any:
    """A client. Its type is left open, since each reply of redis-py may be of any shape that any option could bring."""
    return redis.Redis.from_url(url, protocol=2)


def script(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text("utf-8")


def make_group(client: Any) -> None:
    """An empty stream with its group."""
    client.delete(STREAM)
    client.xgroup_create(STREAM, GROUP, "0", mkstream=True)


def call_of(*args: object) -> dict[str, Any]:
    """A fresh call, as its stream entry."""
    return {"id": os.urandom(16).hex(), "task": TASK, "body": msgpack.packb([args, {}]), "meta": b""}


# -- producers


def enqueue_single(url: str, count: int) -> float:
    """Seconds for `count` calls, one XADD after the other."""
    client = connect(url)
    make_group(client)
    began = time.perf_counter()
    for _ in range(count):
        client.xadd(STREAM, call_of(1, 2))
    return time.perf_counter() - began


def enqueue_bulk(url: str, count: int) -> float:
    """Seconds for `count` calls in pipelines."""
    client = connect(url)
    make_group(client)
    began = time.perf_counter()
    for first in range(0, count, CHUNK):
        pipeline = client.pipeline(transaction=False)
        for _ in range(first, min(first + CHUNK, count)):
            pipeline.xadd(STREAM, call_of(1, 2))
        pipeline.execute()
    return time.perf_counter() - began


def enqueue_delayed(url: str, count: int) -> None:
    """`count` delayed calls, due already."""
    client = connect(url)
    make_group(client)
    pipeline = client.pipeline(transaction=False)
    for _ in range(count):
        call = call_of(1, 2)
        packed = msgpack.packb([call["task"], call["body"], call["meta"]], use_bin_type=False)
        pipeline.hset(MESSAGES, call["id"], packed)
        pipeline.zadd(DELAYED, {call["id"]: 0})
    pipeline.execute()


def keep_results(url: str, count: int) -> None:
    """`count` results as a worker would keep them, to be weighed."""
    client = connect(url)
    pipeline = client.pipeline(transaction=False)
    for _ in range(count):
        pipeline.set(f"floor:result:{os.urandom(16).hex()}", result_of(3), px=TTL_MS)
    pipeline.execute()


# -- workers


def drain(url: str, warm_up: int, keep: bool, delayed: bool = False) -> Cost:
    """Work until the stream is empty, and give what it took after the first `warm_up` tasks.

    keep     keep and publish the results
    delayed  the tasks are delayed and due: make them ready first, a batch at a time
    """
    client = connect(url)
    commit, promote = client.register_script(script("commit")), client.register_script(script("promote"))
    consumer = f"{CONSUMER}-{os.getpid()}"
    client.ping()
    began, cpu_began, seen, skipped = time.perf_counter(), time.process_time(), 0, 0
    while True:
        if delayed:
            promote(keys=[STREAM, DELAYED, MESSAGES], args=[int(time.time() * 1000), BATCH])
        reply = client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=BATCH)
        if not reply:
            return Cost(seen - skipped, time.perf_counter() - began, time.process_time() - cpu_began)
        entries = reply[0][1]
        commit(keys=[STREAM], args=settle(entries, keep))
        if seen < warm_up <= seen + len(entries):
            began, cpu_began, skipped = time.perf_counter(), time.process_time(), seen + len(entries)
        seen += len(entries)


def settle(entries: list[tuple[bytes, dict[bytes, bytes]]], keep: bool) -> list[Any]:
    """Run a batch of tasks; gives the arguments of the script that ends them."""
    tasks: dict[bytes, Callable[..., object]] = {TASK.encode(): add}
    arguments: list[Any] = [GROUP, TTL_MS]
    for entry_id, fields in entries:
        args, kwargs = msgpack.unpackb(fields[b"body"])
        value = tasks[fields[b"task"]](*args, **kwargs)
        if keep:
            arguments += (entry_id, b"floor:result:" + fields[b"id"], result_of(value))
        else:
            arguments += (entry_id, "", "")
    return arguments


def result_of(value: object) -> bytes:
    packed: bytes = msgpack.packb(["SUCCESS", 1, 0.0, value])
    return packed


def serve(url: str) -> None:
    """Answer one call at a time on the channel ANSWERS, until a call named ``stop``."""
    client = connect(url)
    commit = client.register_script(script("commit"))
    while True:
        entries = client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=1, block=1000)
        if not entries:
            continue
        entry_id, fields = entries[0][1][0]
        if fields[b"task"] == b"stop":
            return
        args, kwargs = msgpack.unpackb(fields[b"body"])
        commit(keys=[STREAM], args=[GROUP, TTL_MS, entry_id, ANSWERS, result_of(add(*args, **kwargs))])


# -- callers


def read_results(url: str, keys: Sequence[str]) -> float:
    """Seconds for results that are there, one GET after the other."""
    client = connect(url)
    client.ping()
    began = time.perf_counter()
    for key in keys:
        msgpack.unpackb(client.get(key))
    return time.perf_counter() - began


def round_trips(url: str, count: int) -> list[float]:
    """Seconds of each of `count` calls of `serve`, from the send to the answer."""
    client = connect(url)
    channel = client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(ANSWERS)
    channel.get_message(timeout=1)
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        client.xadd(STREAM, call_of(1, 2))
        while (message := channel.get_message(timeout=1)) is None:
            pass
        msgpack.unpackb(message["data"])
        taken.append(time.perf_counter() - began)
    return taken


def round_trips_async(url: str, count: int) -> list[float]:
    """`round_trips` by redis-py's asyncio client."""

    async def run() -> list[float]:
        client: Any = redis.asyncio.Redis.from_url(url, protocol=2)
        channel = client.pubsub(ignore_subscribe_messages=True)
        await channel.subscribe(ANSWERS)
        await channel.get_message(timeout=1)
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            await client.xadd(STREAM, call_of(1, 2))
            while (message := await channel.get_message(timeout=1)) is None:
                pass
            msgpack.unpackb(message["data"])
            taken.append(time.perf_counter() - began)
        await channel.aclose()
        await client.aclose()
        return taken

    return asyncio.run(run())


def stop_server(url: str) -> None:
    """End `serve`."""
    connect(url).xadd(STREAM, {"task": "stop"})
