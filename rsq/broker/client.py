"""What an app holds of the broker: connections, queues, the producer, the result listeners; made when first needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import msgpack

from rsq import keys
from rsq.broker.aio import AsyncLink, PerLoop
from rsq.broker.aio_listener import AsyncResultListener
from rsq.broker.connection import Endpoint, Link, ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.emitter import Emitters, Output
from rsq.broker.exchange import Exchange, asking, repeating
from rsq.broker.flows import Flows
from rsq.broker.listener import ResultListener
from rsq.broker.partitions import Queues, stored_partitions
from rsq.broker.pool import LinkPool
from rsq.broker.producer import AsyncProducer, Producer, Sending
from rsq.broker.progress_writer import Reporter
from rsq.broker.queue import FORGET_MS, Queue
from rsq.broker.waiting import LOOK_STEP, InFlow, first_value
from rsq.broker.watched import Watched
from rsq.broker.wire import Command, packed
from rsq.calls.message import Delivery, check_id, unpack_meta
from rsq.calls.output import Place, Seen
from rsq.calls.stamps import check_stamps, marks_of
from rsq.clock import ServerClock
from rsq.settings import Settings
from rsq.states import State

T = TypeVar("T")

REVOKE_STEP = 500
"""Calls that one script revokes, so that it does not hold the server up."""

_REVOKED = ("done", "marked", "revoked")

CLOCK_TTL_S = 60.0
"""How long the measured difference between our clock and the server's is used."""


class Client:
    """The producer's side of the broker. For any number of threads; a forked child connects anew.

    home  the app whose client it is, or None
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home: Any = None
        self.endpoint = Endpoint.of(settings)
        self.pool = LinkPool(self.endpoint, settings.broker_timeout_s)
        self.queues = Queues(settings, self.endpoint)
        self._sending = Sending(self.queues, settings.broker_timeout_s, settings.wait_replicas, self.endpoint.answer_s)
        self._links = PerLoop(lambda: AsyncLink(self.endpoint))
        self.producer = Producer(self.pool, self._sending)
        self.aproducer = AsyncProducer(self._links, self._sending)
        self.listener = ResultListener(self.endpoint, self.pool)
        self.alistener = AsyncResultListener(self.endpoint, settings.broker_timeout_s)
        self.reporter = Reporter(self.pool)
        self.emitters = Emitters(self.pool)
        self.flows = Flows(settings, self.follow, self.afollow, self.target, self.queues)
        self._clock = ServerClock()

    @contextmanager
    def link(self) -> Iterator[Link]:
        """Borrow a connection."""
        link = self.pool.take()
        try:
            yield link
        finally:
            self.pool.give_back(link)

    def queue(self, name: str | None) -> Queue:
        """The queue of this name, to look at; None means the default queue. With partitions it is sought."""
        name = name or self.settings.default_queue
        return self.queues.get(name) or self.located([name])[0]

    def located(self, names: Iterable[str], use: bool = False) -> list[Queue]:
        """These queues, where the server says that they lie, whatever this process was told; see `Queues.finding`."""
        deadline = self._deadline()
        return self.follow(self.queues.finding(names, deadline, use))

    def target(self, name: str | None) -> Queue:
        """`queue`, to send to: it gets a partition if it has none. Raises BrokerError."""
        name = name or self.settings.default_queue
        return self.queues.get(name) or self.located([name], use=True)[0]

    async def atarget(self, name: str) -> Queue:
        """`target` for coroutines."""
        found = self.queues.get(name)
        if found is None:
            (found,) = await self._links.here().follow(self.queues.finding([name], self._deadline(), use=True))
        return found

    def ask(self, *commands: Command) -> list[Any]:
        """Put questions to the server, which may safely be repeated; replies in order.

        A borrowed connection may have died since it was used last: they are asked again until `broker_timeout_s` is
        over. Raises BrokerUnavailable then, and BrokerRefused.
        """
        return self.follow(asking([packed(*each) for each in commands], self._deadline(), self.endpoint.answer_s))

    def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """`ask` for calls of scripts."""
        return self.follow(repeating(partial(running, calls), self._deadline(), self.endpoint.answer_s))

    def _deadline(self) -> Deadline:
        return Deadline(self.settings.broker_timeout_s)

    def follow(self, talk: Exchange[T]) -> T:
        """Carry on a talk to its end, on a borrowed connection."""
        with self.link() as link:
            return link.follow(talk)

    async def afollow(self, talk: Exchange[T]) -> T:
        """`follow` for coroutines."""
        return await self._links.here().follow(talk)

    def queue_names(self) -> list[str]:
        """Every queue that a producer or a worker has used, and the default one; what can be no name is passed over."""
        namespace = self.settings.namespace
        known, placed = self.ask(("SMEMBERS", keys.queues(namespace)), ("HGETALL", keys.partitions(namespace)))
        self.queues.learn(stored_partitions(placed))
        names = {name.decode("utf-8", "replace") for name in known}
        return sorted({*filter(keys.is_queue, names), self.settings.default_queue})

    def now_ms(self) -> int:
        """The server's clock, from a difference measured once a minute."""
        if time.monotonic() - self._clock.read_at > CLOCK_TTL_S:
            ((seconds, micros),) = self.ask(("TIME",))
            self._clock.set(int(seconds) * 1000 + int(micros) // 1000)
        return self._clock.now_ms()

    # -- results by id

    def result_keys(self, task_id: str, queue: str | None) -> list[str]:
        """Where a result may lie: one key, or one for each known queue where the queue is not known."""
        names = [queue] if queue else self.queue_names()
        return [self.queue(name).keys.result(task_id) for name in names]

    async def aresult_keys(self, task_id: str, queue: str | None) -> list[str]:
        """`result_keys` for coroutines."""
        if queue and self.queues.get(queue):
            return self.result_keys(task_id, queue)
        return await asyncio.get_running_loop().run_in_executor(None, self.result_keys, task_id, queue)

    def read_result(self, task_id: str, queue: str | None) -> bytes | None:
        """The packed result, or None as long as there is none."""
        return first_value(self.ask(*(("GET", key) for key in self.result_keys(task_id, queue))))

    def read_results(self, wanted: Sequence[Sequence[str]]) -> list[bytes | None]:
        """Several packed results, each at the first of its keys that has one; None as long as there is none."""
        found: list[bytes | None] = []
        for first in range(0, len(wanted), LOOK_STEP):
            some = wanted[first : first + LOOK_STEP]
            replies = iter(self.ask(*(("GET", key) for keys in some for key in keys)))
            found += [first_value(list(islice(replies, len(keys)))) for keys in some]
        return found

    def forget_result(self, task_id: str, queue: str | None) -> None:
        """Delete the result, the output and the progress, if there are any."""
        names = [key for place in self.output_places(task_id, queue) for key in place]
        names += self.progress_keys(task_id, queue)
        self.ask(*(("DEL", key) for key in names))

    # -- handles that are saved

    def save_handle(self, group_id: str, packed: bytes, ttl_ms: int) -> None:
        """Keep the packed handle of a group."""
        self.ask(("SET", self._saved(group_id), packed, "PX", ttl_ms))

    def saved_handle(self, group_id: str) -> bytes | None:
        """The packed handle that is kept, or None."""
        (found,) = self.ask(("GET", self._saved(group_id)))
        return None if found is None else bytes(found)

    def forget_handle(self, group_id: str) -> None:
        """Keep it no longer."""
        self.ask(("DEL", self._saved(group_id)))

    def _saved(self, group_id: str) -> str:
        return keys.FlowKeys(self.queue(None).keys.prefix, check_id(group_id)).handle

    # -- revocation by id

    def revoke(self, ids: Sequence[str], queue: str | None, terminate: bool) -> dict[str, str]:
        """Have these calls not run; see `App.revoke`."""
        found = dict.fromkeys(ids, "done")
        for first in range(0, len(ids), REVOKE_STEP):
            some = [check_id(task_id) for task_id in ids[first : first + REVOKE_STEP]]
            names = [queue] if queue else self._queues_of(some)
            for replies in self.run([self.queue(name).revoke_call(some, terminate) for name in names]):
                for task_id, reply in zip(some, replies, strict=True):
                    # Where several queues are asked: what ended in one is marked in the others, for nothing.
                    found[task_id] = max(found[task_id], reply.decode(), key=_REVOKED.index)
        return found

    def revoke_stamped(self, stamps: Mapping[str, Any], terminate: bool) -> None:
        """Have no call start that has one of these stamps; see `Control.revoke_by_stamped_headers`."""
        until_ms = self.now_ms() + FORGET_MS + (0.5 if terminate else 0.0)
        marks = [value for mark in marks_of(check_stamps(stamps)) for value in (f"{until_ms:.1f}", mark)]
        for name in self.queue_names() if marks else ():
            key = self.queue(name).keys.revoked
            self.ask(("ZADD", key, *marks), ("PEXPIRE", key, FORGET_MS))

    def cancel_flow(self, flow_id: str, terminate: bool) -> bool:
        """End a flow, with what of it is delayed. False: it had ended, or is gone."""
        if not self.flows.cancel(flow_id, terminate):
            return False
        for nodes in self.flows.pages(flow_id):
            by_queue: dict[str, list[str]] = {}
            for node in nodes:
                if node.state == "released":
                    by_queue.setdefault(node.queue, []).append(node.id)
            for queue, ids in by_queue.items():
                self.revoke(ids, queue, terminate)
        return True

    async def arevoke(self, ids: Sequence[str], queue: str | None, terminate: bool) -> dict[str, str]:
        """`revoke` for coroutines."""
        return await asyncio.get_running_loop().run_in_executor(None, self.revoke, ids, queue, terminate)

    def _queues_of(self, ids: Sequence[str]) -> list[str]:
        """The one queue where all these are delayed or have a result, if there is one, else all that are known."""
        names = self.queue_names()
        for name in names:
            k = self.queue(name).keys
            looks: list[Command] = [("HEXISTS", k.messages, task_id) for task_id in ids]
            looks += [("EXISTS", k.result(task_id)) for task_id in ids]
            replies = self.ask(*looks)
            if all(map(max, replies[: len(ids)], replies[len(ids) :])):
                return [name]
        return names

    # -- progress by id

    def progress_keys(self, task_id: str, queue: str | None) -> list[str]:
        """Where the progress of a call may lie, as `result_keys`."""
        names = [queue] if queue else self.queue_names()
        return [self.queue(name).keys.progress_of(task_id) for name in names]

    def report_progress(self, task_id: str, queue: str, packed: bytes) -> None:
        """Have it written soon. Raises nothing, whatever the server does."""
        self.reporter.report(self.queue(queue).keys.progress_of(task_id), packed)

    def output_of(self, delivery: Delivery, length: int, ttl_ms: int) -> Output:
        """That of the run of this delivery, see `Emitters.output`."""
        return self.emitters.output(self.queue(delivery.queue).keys.prefix, delivery, length, ttl_ms)

    def output_places(self, task_id: str, queue: str | None) -> list[tuple[str, str]]:
        """The keys of output and result, where a call may lie; as `result_keys`."""
        names = [queue] if queue else self.queue_names()
        return [(each.output(task_id), each.result(task_id)) for each in (self.queue(name).keys for name in names)]

    def watched(self, task_id: str, queue: str | None, after: Place | None, in_flow: InFlow | None = None) -> Watched:
        """What one sees of a call from there on."""
        return Watched(self.output_places(task_id, queue), after, in_flow)

    def watch(self, watched: Watched, timeout_s: float | None) -> Generator[Seen, None, None]:
        """What comes of a watched call, see `ResultListener.arriving`."""
        return self.listener.arriving(watched, timeout_s)

    def awatch(self, watched: Watched, timeout_s: float | None) -> AsyncGenerator[Seen, None]:
        """`watch` for coroutines."""
        return self.alistener.arriving(watched, timeout_s)

    def read_progress(self, task_id: str, queue: str | None) -> bytes | None:
        """The packed progress that was written last, or None."""
        return first_value(self.ask(*(("GET", key) for key in self.progress_keys(task_id, queue))))

    def unfinished_state(self, task_id: str, queue: str | None) -> State:
        """RETRY while the next attempt waits, STARTED when a worker reports it as running, else PENDING."""
        names = [queue] if queue else self.queue_names()
        for found in self.ask(*(("HGET", self.queue(name).keys.messages, task_id) for name in names)):
            if found is not None:
                return State.RETRY if delayed_attempt(found) > 1 else State.PENDING
        (workers,) = self.ask(("ZRANGE", keys.workers(self.settings.namespace), 0, -1))
        rows = [("HGET", keys.worker(self.settings.namespace, name.decode()), "running") for name in workers]
        reports = self.ask(*rows) if rows else []
        running = {task for report in reports if isinstance(report, bytes) for task in report.decode().split()}
        return State.STARTED if task_id in running else State.PENDING

    def close(self) -> None:
        """Close all connections. The client connects again when it is used again."""
        self.reporter.flush()
        self.pool.close()
        self.listener.close()
        self._links.close()
        self.alistener.close()

    async def aclose(self) -> None:
        """Close the connections that coroutines of this event loop have used, and all others."""
        await self.leave_loop()
        self.close()

    async def leave_loop(self) -> None:
        """Close the connections that coroutines of this event loop have used, before it ends."""
        await self._links.aclose()
        await self.alistener.aclose()


def delayed_attempt(packed: bytes) -> int:
    """Attempt number of an entry of `messages`."""
    return int(unpack_meta(unpack_delayed(packed)[3]).get("attempt", 1))


def unpack_delayed(packed: bytes) -> tuple[int, str, bytes, bytes]:
    """(priority, task, body, meta) of an entry of `messages`, which Lua packs in msgpack's old raw format."""
    priority, task, body, meta = msgpack.unpackb(packed, raw=True)
    return int(priority), task.decode(), body, meta
