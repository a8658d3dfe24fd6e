"""The app that the workers of a chaos run load. Each body tells the journal that it began and how it ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from rsq import App, Signature, Task, every
from rsq.broker import adding
from rsq.broker.connection import Endpoint, Link
from rsq.calls.request import current
from rsq.errors import BrokerError, LeaseLost, Replace
from rsq.keys import PARTITION, QueueKeys
from tests.chaos.chronicle import tick_serial
from tests.chaos.journal import Journal
from tests.chaos.kinds import EARLY, LIMITED

JOURNAL = "RSQ_CHAOS_JOURNAL"
SERVER = "RSQ_CHAOS_SERVER"
"""URL of the server itself: what a body looks up must not be lost on the way."""

BULK = "bulk"
QUEUES = ("default", BULK)
RECOVERS_AT = 3
"""The attempt of `recovers` that succeeds."""

Value: TypeAlias = tuple[int, str]
"""What the good ones return: their serial number and the consumer that ran them."""

# A call that is hit by one fault after the other must not be given up for it.
app = App("chaos", task_defaults={"retry_backoff": 0.2, "max_crashes": 1000})

# What a member adds is kept on the server until it succeeds, as else it is of more than a thousand. In workers alone.
if JOURNAL in os.environ:
    adding.KEPT_AT_ONCE = 2

# Taken at import, which is after the fork: it stays when the supervisor is gone.
WORKER = os.getppid()


@cache
def journal() -> Journal:
    return Journal(Path(os.environ[JOURNAL]))


@cache
def server() -> Link:
    return Link(Endpoint(os.environ[SERVER]), timeout_s=1.0)


def environment() -> dict[str, str]:
    """What worker and beat are told beside the URL."""
    return {"RSQ_PARTITIONS": str(app.settings.partitions)}


def partition_of(queue: str) -> int:
    """Where it lies: each in one of its own, where there are several."""
    return QUEUES.index(queue) if app.settings.partitions > 1 else PARTITION


def keys_of(queue: str) -> QueueKeys:
    return QueueKeys(app.settings.namespace, queue, partition_of(queue))


def leases(queue: str) -> list[str] | None:
    """The consumers that the server holds to be alive now, or None when it does not answer."""
    try:
        return [name.decode() for name in server().call("ZRANGE", keys_of(queue).consumers, 0, -1)]
    except BrokerError:
        return None


def entry_name(queue: str, priority: int, entry_id: str) -> str:
    """Names an entry among those of all streams: two streams may use the same entry id."""
    return f"{queue}/{priority}/{entry_id}"


@contextmanager
def told(serial: int, **more: Any) -> Iterator[str]:
    """What runs inside is in the journal. Gives the consumer, to be part of the outcome: it tells who committed it."""
    delivery = current.get()
    assert delivery is not None
    kind = delivery.task.rpartition(".")[2]
    journal().write(
        "started",
        at=time.monotonic(),
        id=delivery.id,
        serial=serial,
        kind=kind,
        attempt=delivery.attempt,
        # Not for an early one: nobody may begin it again, so what changes hands does not matter.
        entry="" if kind in EARLY else entry_name(delivery.queue, delivery.priority, delivery.entry_id.decode()),
        consumer=delivery.consumer,
        worker=WORKER,
        deliveries=delivery.deliveries,
        crashes=delivery.crashes,
        leases=leases(delivery.queue),
        **more,
    )
    how = "raised"
    try:
        yield delivery.consumer
        how = "returned"
    except LeaseLost:
        how = "stopped"
        raise
    except Replace:
        how = "replaced"
        raise
    finally:
        journal().write("finished", id=delivery.id, how=how)


@app.task
def plain(serial: int, seconds: float = 0.0) -> Value:
    with told(serial) as consumer:
        time.sleep(seconds)
    return serial, consumer


@app.task(bind=True)
def emits(self: Task[..., Any], serial: int, count: int, pause_s: float) -> Value:
    with told(serial) as consumer:
        for n in range(count):
            self.emit([serial, n])
            time.sleep(pause_s)
    return serial, consumer


@app.task(ignore_result=True)
def quiet(serial: int) -> None:
    with told(serial):
        pass


@app.task(queue=BULK)
def bulk(serial: int) -> Value:
    with told(serial) as consumer:
        return serial, consumer


def big_body(serial: int, size_bytes: int) -> bytes:
    return serial.to_bytes(8, "big") * (size_bytes // 8)


@app.task
def big(serial: int, body: bytes, echoes: bool) -> tuple[Any, ...]:
    with told(serial) as consumer:
        if body != big_body(serial, len(body)):
            raise ValueError(f"{len(body)} bytes that nobody sent")
    return (serial, consumer, body) if echoes else (serial, consumer)


@app.task(max_crashes=2)
def poison(serial: int) -> None:
    with told(serial):
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def recovers(self: Task[..., Any], serial: int) -> Value:
    with told(serial) as consumer:
        if self.request.attempt < RECOVERS_AT:
            raise ValueError(f"attempt {self.request.attempt}")
    return serial, consumer


@app.task(max_retries=1)
def fails(serial: int) -> None:
    with told(serial) as consumer:
        raise ValueError(consumer)


@app.task(acks_late=False)
def once(serial: int, seconds: float) -> Value:
    with told(serial) as consumer:
        time.sleep(seconds)
    return serial, consumer


@app.task(bind=True, acks_late=False, max_retries=1)
def once_again(self: Task[..., Any], serial: int) -> Value:
    """At most once, each of its two attempts: the second follows at once."""
    with told(serial) as consumer:
        if self.request.attempt == 1:
            raise self.retry(countdown=0)
    return serial, consumer


@app.task(acks_late=False, ignore_result=True)
def once_quiet(serial: int) -> None:
    with told(serial):
        pass


@app.task(bind=True)
def revocable(self: Task[..., Any], serial: int, seconds: float, fails: bool) -> Value:
    with told(serial) as consumer:
        time.sleep(seconds)
        if fails and self.request.attempt == 1:
            raise ValueError("the first attempt")
    return serial, consumer


@app.task(max_concurrency=LIMITED["limited"])
def limited(serial: int, seconds: float) -> Value:
    with told(serial) as consumer:
        time.sleep(seconds)
    return serial, consumer


# -- parts of flows: what comes before them stands in front of their arguments


PATIENCE = 100
"""Retries of a call that asks the server in its body: it may be away for as long as such a question waits."""


def given_serials(given: Any) -> list[int]:
    """Whose values these are, in their order: a value begins with its serial number, lists hold values or lists."""
    if given and isinstance(given[0], int):
        serial, _, *body = given
        if body and body[0] != big_body(serial, len(body[0])):
            raise ValueError(f"{len(body[0])} bytes that {serial} did not give")
        return [serial]
    return [serial for each in given for serial in given_serials(each)]


def give(given: Any, serial: int, seconds: float, size_bytes: int) -> tuple[Any, ...]:
    with told(serial, given=given_serials(given)) as consumer:
        time.sleep(seconds)
    return (serial, consumer, big_body(serial, size_bytes)) if size_bytes else (serial, consumer)


@app.task(bind=True)
def step(
    self: Task[..., Any], *given: Any, serial: int, seconds: float = 0.0, size_bytes: int = 0, late: bool = False
) -> tuple[Any, ...]:
    """`late`: its first attempt fails."""
    if late and self.request.attempt == 1:
        with told(serial, given=given_serials(given)):
            raise ValueError("the first attempt")
    return give(given, serial, seconds, size_bytes)


@app.task(queue=BULK)
def bulk_step(*given: Any, serial: int, seconds: float = 0.0, size_bytes: int = 0) -> tuple[Any, ...]:
    return give(given, serial, seconds, size_bytes)


@app.task(ignore_result=True)
def hidden_step(*given: Any, serial: int, seconds: float = 0.0, size_bytes: int = 0) -> tuple[Any, ...]:
    return give(given, serial, seconds, size_bytes)


@app.task(bind=True, max_retries=PATIENCE)
def replaces(
    self: Task[..., Any],
    *given: Any,
    serial: int,
    by: Signature[Any],
    seconds: float = 0.0,
    size_bytes: int = 0,
    late: bool = False,
) -> None:
    """Gives its place to a canvas."""
    with told(serial, given=given_serials(given)):
        time.sleep(seconds)
        if late and self.request.attempt == 1:
            raise ValueError("the first attempt")
        self.replace(by)


@app.task(bind=True, max_retries=PATIENCE)
def adds(
    self: Task[..., Any],
    *given: Any,
    serial: int,
    members: list[Signature[Any]],
    seconds: float = 0.0,
    size_bytes: int = 0,
    late: bool = False,
) -> Value:
    """Adds calls to the batch of which it is part. `late`: its first attempt does so, too, and fails."""
    with told(serial, given=given_serials(given)) as consumer:
        app.batches.current.add(*members)
        time.sleep(seconds)
        if late and self.request.attempt == 1:
            raise ValueError("the first attempt")
    return serial, consumer


@app.task
def named_step(
    *given: Any, serial: int, seconds: float = 0.0, size_bytes: int = 0, left: Any = (), right: Any = ()
) -> tuple[Any, ...]:
    return give((*given, left, right), serial, seconds, size_bytes)


@app.task
def callback(*, serial: int) -> Value:
    """Of a batch."""
    with told(serial, given=[]) as consumer:
        return serial, consumer


def healed(serial: int, journal_path: Path) -> Path:
    """Once this file is there, `breaks` does so no more."""
    return journal_path.with_name(f"healed-{serial}")


@app.task(max_retries=0)
def breaks(*given: Any, serial: int, seconds: float = 0.0, size_bytes: int = 0) -> tuple[Any, ...]:
    if not healed(serial, journal().path).exists():
        with told(serial, given=given_serials(given)) as consumer:
            raise ValueError(consumer)
    return give(given, serial, seconds, size_bytes)


@app.task
def errback(task_id: str, *, serial: int) -> Value:
    with told(serial, about=task_id) as consumer:
        return serial, consumer


# -- events that others write


EVENTS = "{chaos}:events"

app.stream(EVENTS, retain=100)


@app.on(EVENTS, group="one", queue="default", id_field="one")
def on_one(event: Mapping[str, str]) -> None:
    with told(int(event["one"])):
        pass


@app.on(EVENTS, group="two", queue=BULK, order_by="key", bind=True)
def on_two(self: Task[..., Any], event: Mapping[str, str]) -> None:
    """One after the other, of each key."""
    with told(int(event["two"])):
        if event["late"] == "1" and self.request.attempt == 1:
            raise ValueError("the first attempt")


@app.task(bind=True)
def tick(self: Task[..., Any]) -> Value:
    serial = tick_serial(self.request.id)
    with told(serial) as consumer:
        return serial, consumer


@app.task(bind=True)
def tock(self: Task[..., Any]) -> Value:
    serial = tick_serial(self.request.id)
    with told(serial) as consumer:
        return serial, consumer


app.schedule = {
    "tick": {"task": tick.name, "schedule": every(seconds=1)},
    "tock": {"task": tock.name, "schedule": every(seconds=1), "catchup": "all", "catchup_limit": 1000},
}
