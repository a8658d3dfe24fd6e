"""The scripts without workers: one queue, one call of a transition, and what is on the server before and after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link
from rsq.broker.faults import checked
from rsq.broker.reads import adopting
from rsq.broker.replies import Begin, Fetched
from rsq.broker.rows import CutShort
from rsq.broker.scripts import Script
from rsq.broker.wire import Argument
from rsq.broker.worker_queue import Rules, WorkerQueue
from rsq.calls.message import Delivery, Message
from rsq.calls.outcome import Completed, Verdict
from rsq.calls.placement import PLAIN, Placement
from rsq.settings import Settings
from tests.servers import Server, on_cluster

FAR = 4_102_444_800_000
"""End of the leases that tests write by hand: the year 2100, ms since the epoch."""

HOUR_MS = 3_600_000

ODD_IDS = ["a", "a-b", "0", "ID:1", "{x}", "[a-z]*", "%d+", "'\"\\", "x" * 100, "~!@#$^&()=+|;<>?,./"]
"""Task ids that are allowed and would break a careless script."""

MIB = 1024 * 1024


def adopt(
    link: Link, queue: WorkerQueue, consumer: str, known: set[bytes], priorities: Iterable[int]
) -> tuple[list[Delivery], list[bytes]]:
    """All of `adopting`, of several priorities."""
    deliveries: list[Delivery] = []
    wakes: list[bytes] = []
    for priority in priorities:
        for some, others in adopting(link, queue, consumer, known, priority):
            deliveries += some
            wakes += others
    return deliveries, wakes


@dataclass(frozen=True)
class Between:
    """Equal to every number from `low` to `high`: for times that the server's clock decides."""

    low: float
    high: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (int, float)) and self.low <= other <= self.high


class Span:
    """Server time around a call, in ms: what the call itself read lies between."""

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self.end_ms = FAR

    def plus(self, ms: int) -> Between:
        return Between(self.start_ms + ms, self.end_ms + ms)


class Rig:
    """One queue, with a link to call its scripts and a client to look behind them."""

    def __init__(self, redis: Any, link: Link, queue: WorkerQueue) -> None:
        self.redis = redis
        self.link = link
        self.queue = queue
        self.keys = queue.keys
        self._asked = 0

    # -- seeds

    def hire(self, *consumers: str) -> None:
        """Consumers with a lease that outlives every test."""
        for consumer in consumers:
            self.run(scripts.REGISTER, consumer, HOUR_MS)
            self.redis.zadd(self.keys.consumers, {consumer: FAR})

    def lapse(self, consumer: str) -> None:
        """The consumer's lease ran out, and nobody has noticed yet."""
        self.redis.zadd(self.keys.consumers, {consumer: 1}, xx=True)

    def ripen(self, *ids: str) -> None:
        """Delayed messages are due, in this order."""
        self.redis.zadd(self.keys.delayed, {task_id: 1 + place for place, task_id in enumerate(ids)}, xx=True)

    def message(self, task_id: str, priority: int = 0, body: bytes = b"body", **meta: Any) -> Message:
        return Message(task_id, "tests.task", body, self.queue.name, priority, meta)

    def add(self, *ids: str, priority: int = 0, body: bytes = b"body") -> list[str]:
        """Plain messages by the hot path; gives their entry ids."""
        packed = [self.queue.plain_enqueue(self.message(task_id, priority, body)) for task_id in ids]
        return [entry_id.decode() for entry_id in self.link.pipeline_packed(packed)]

    # -- calls

    def run(self, script: Script, *arguments: Argument) -> Any:
        return self.link.run(script, self.keys.prefix, *arguments)

    def enqueue(
        self,
        task_id: str,
        placement: Placement = PLAIN,
        *,
        priority: int = 0,
        body: bytes = b"body",
        since_ms: int | None = None,
        **meta: Any,
    ) -> tuple[str, str | int]:
        """By the script, whatever the placement; gives what it answers.

        since_ms  as a producer repeats a first try of so long ago: it looks whether that arrived; `unknown`: nobody
                  can tell
        """
        message = self.message(task_id, priority, body, **meta)
        if since_ms is not None:
            (found,) = self.arrived([message], since_ms, placement)
            if found:
                return "accepted" if found == 1 else "unknown", task_id
        call = self.queue.enqueue_call(message, placement, repeated=since_ms is not None)
        verdict, value = self.link.run_one(call)
        return verdict.decode(), value.decode() if isinstance(value, bytes) else value

    def arrived(self, messages: list[Message], since_ms: int, placement: Placement = PLAIN) -> list[int]:
        """What a producer finds that looks for calls which it first tried so long ago."""
        call = self.queue.arrived_call([(message, placement) for message in messages], self.now_ms() - since_ms)
        found: list[int] = self.link.run_one(call)
        return found

    def fetch(self, consumer: str, room: int = 10) -> Fetched:
        fetched = self.queue.fetch(self.link, consumer, room)
        for delivery in fetched.deliveries:
            delivery.consumer = consumer
        return fetched

    def get(self, consumer: str, room: int = 10) -> list[Delivery]:
        """Fetch as a worker does: what only wakes it is settled at once."""
        fetched = self.fetch(consumer, room)
        if fetched.wakes:
            self.link.run_one(self.queue.drop_wakes_call(consumer, fetched.wakes))
        return fetched.deliveries

    def commit(self, consumer: str, *verdicts: Verdict) -> list[int]:
        """Answers of the scripts, one for each kind and stream."""
        return checked(self.link.run_many(self.queue.commit_calls(consumer, verdicts)))

    def take(self, consumer: str, delivery: Delivery) -> bool:
        """As the runner does it."""
        delivery.taken = self.queue.take(self.link, consumer, delivery)
        return delivery.taken

    def begin(self, consumer: str, call: str | Delivery, rules: Rules, revision: int = 0) -> Begin:
        """Of a call that is only named each time another delivery asks."""
        if isinstance(call, str):
            self._asked += 1
            fields = [b"id", call.encode(), b"task", b"tests.task", b"body", b"body", b"meta", b""]
            call = Delivery(self.queue.name, 0, f"{self._asked}-0".encode(), fields)
        return self.queue.begin(self.link, consumer, call, rules, revision)

    def retire(
        self, consumer: str, *running: Delivery, how: str = "signal SIGKILL", overdue: Iterable[Delivery] = ()
    ) -> int:
        rows = [CutShort(each.priority, each.entry_id, each.id, int(each.taken), "", b"lost") for each in running]
        rows += [
            CutShort(each.priority, each.entry_id, each.id, int(each.taken), "2.5", b"overdue") for each in overdue
        ]
        return int(self.link.run_one(self.queue.retire_call(consumer, how, HOUR_MS, rows)))

    def miss(self, consumer: str) -> None:
        """Its lease ran out, and nobody has heard of it for so long that what it took is lost."""
        self.hire("witness")
        self.lapse(consumer)
        self.run(scripts.RENEW, HOUR_MS, "witness")
        self.redis.zadd(f"{self.keys.prefix}:missing", {consumer: 1}, xx=True)
        for _ in range(2):
            self.run(scripts.RENEW, HOUR_MS, "witness")

    def reconcile(self) -> list[str]:
        """As if nobody had done so for long."""
        self.redis.delete(f"{self.keys.prefix}:reconciled")
        return [text(name) for name in self.run(scripts.RECONCILE, HOUR_MS, HOUR_MS)]

    # -- looks

    @contextmanager
    def span(self) -> Iterator[Span]:
        """Server time before and after the block."""
        span = Span(self.now_ms())
        yield span
        span.end_ms = self.now_ms() + 1

    def now_ms(self) -> int:
        """The server's clock."""
        seconds, microseconds = self.redis.time()
        return int(seconds * 1000 + microseconds // 1000)

    @contextmanager
    def pushes(self, *task_ids: str) -> Iterator[list[tuple[str, bytes]]]:
        """What is published about these calls during the block, as (task id, data); filled at its end."""
        channels = {self.keys.result(task_id).encode(): task_id for task_id in task_ids}
        end = f"{self.keys.prefix}:end".encode()
        got: list[tuple[str, bytes]] = []
        with self.redis.pubsub() as pubsub:
            subscribe, publish = (pubsub.ssubscribe, "SPUBLISH") if on_cluster() else (pubsub.subscribe, "PUBLISH")
            subscribe(*channels, end)
            for _ in range(len(channels) + 1):
                assert pubsub.get_message(timeout=20)["type"].endswith("subscribe")
            yield got
            self.redis.execute_command(publish, end, "")
            while (message := pubsub.get_message(timeout=20))["channel"] != end:
                got.append((channels[message["channel"]], message["data"]))

    def dumps(self) -> dict[bytes, bytes]:
        """Every key of the server, byte for byte: equal only if nothing was changed at all."""
        return {key: self.redis.dump(key) for key in self.redis.scan_iter(count=1000)}

    def ttl_ms(self, name: str) -> int:
        """Life left to a key of the queue, named without its tag; negative when it has no end or is not there."""
        return int(self.redis.pttl(f"{self.keys.prefix}:{name}"))

    def snapshot(self) -> dict[str, Any]:
        """The whole server as plain values; keys of the queue without its tag. Left out: entry ids, TTLs.

        A stream is the list of its entries, each a dict; an empty one is not told. Beside it ``<stream> pending`` maps
        each pending task id (entry id where the entry is gone) to (consumer, deliveries), and ``<stream> strays`` is
        the set of the group's consumers that have no lease. How many wake entries there were, and when a consumer was
        last heard, is not told.
        """
        found: dict[str, Any] = {}
        for key in self.redis.scan_iter(count=1000):
            name = text(key).removeprefix(f"{self.keys.prefix}:")
            match self.redis.type(key):
                case b"string":
                    found[name] = text(self.redis.get(key))
                case b"hash":
                    found[name] = {text(k): text(v) for k, v in self.redis.hgetall(key).items()}
                case b"zset":
                    found[name] = {
                        text(k): int(v) if v == int(v) else v for k, v in self.redis.zrange(key, 0, -1, withscores=True)
                    }
                case b"set":
                    found[name] = {text(member) for member in self.redis.smembers(key)}
                case b"stream":
                    found |= self._stream(key, name)
        found.get("stats", {}).pop("wakes", None)
        found.pop("wakes", None)
        found.pop("heard", None)
        if found.get("stats") == {}:
            del found["stats"]
        if calls := found.get("calls"):
            found["calls"] = {
                task_id: plain(msgpack.unpackb(packed.encode("latin-1"), raw=True, strict_map_key=False))
                for task_id, packed in calls.items()
            }
        if messages := found.get("messages"):
            found["messages"] = {task_id: unpacked(packed) for task_id, packed in messages.items()}
        return found

    def _stream(self, key: bytes, name: str) -> dict[str, Any]:
        entries = {text(entry_id): fields for entry_id, fields in self.redis.xrange(key)}
        found: dict[str, Any] = {}
        if entries:
            found[name] = [{text(k): text(v) for k, v in fields.items()} for fields in entries.values()]
        if not any(group["name"] == keys.GROUP.encode() for group in self.redis.xinfo_groups(key)):
            return found
        pending: dict[str, tuple[str, int]] = {}
        for row in self.redis.xpending_range(key, keys.GROUP, "-", "+", 10_000):
            entry_id = text(row["message_id"])
            task_id = text(entries[entry_id].get(b"id", b"wake")) if entry_id in entries else entry_id
            pending[task_id] = (text(row["consumer"]), row["times_delivered"])
        if pending:
            found[f"{name} pending"] = pending
        leases = {*self.redis.zrange(self.keys.consumers, 0, -1)}
        consumers = {info["name"] for info in self.redis.xinfo_consumers(key, keys.GROUP)}
        if strays := {text(consumer) for consumer in consumers - leases}:
            found[f"{name} strays"] = strays
        return found

    def ready(self, priority: int = 0) -> list[str]:
        """Task ids in one stream, in order; a wake entry shows as ``wake``."""
        entries = self.redis.xrange(self.keys.stream(priority))
        return [text(fields.get(b"id", b"wake")) for _, fields in entries]


def text(data: bytes) -> str:
    """Bytes as text, one character a byte: whatever is in them, it can be compared and read."""
    return data.decode("latin-1")


def unpacked(packed: str) -> list[str]:
    """Priority, task, body and meta of a delayed message."""
    return [text(part) for part in msgpack.unpackb(packed.encode("latin-1"), raw=True)]


def plain(value: Any) -> Any:
    """A record with texts in place of bytes."""
    match value:
        case bytes():
            return text(value)
        case dict():
            return {plain(k): plain(v) for k, v in value.items()}
        case list():
            return [plain(each) for each in value]
    return value


def entry(task_id: str, body: str = "body", meta: str = "") -> dict[str, str]:
    """A stream entry as `Rig.snapshot` shows it."""
    return {"id": task_id, "task": "tests.task", "body": body, "meta": meta}


WAKE = {"wake": ""}


def completed(delivery: Delivery, result: bytes = b"done", ttl_ms: int = HOUR_MS) -> Completed:
    return Completed(delivery, "succeeded", result, ttl_ms if result else 0)


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.id for delivery in deliveries]


@pytest.fixture
def link(server: Server) -> Iterator[Link]:
    with_link = Link(Endpoint(server.url), 20)
    yield with_link
    with_link.close()


@pytest.fixture
def queue(server: Server) -> WorkerQueue:
    return WorkerQueue("q", Settings(url=server.url))


@pytest.fixture
def rig(redis: Any, link: Link, queue: WorkerQueue) -> Rig:
    return Rig(redis, link, queue)
