"""What running bodies emit, on its way to the server: in batches, beside the bodies, each value once and in order.

While one batch is on its way the next values gather, and go together. What is left when a body ends rides with its
outcome. What a process keeps meanwhile is bounded: a body that emits more waits, also while the server is away.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING

from rsq.bell import Bell
from rsq.broker import scripts
from rsq.broker.exchange import PAUSE_S
from rsq.broker.flow_rows import pack
from rsq.broker.forks import renew_in_child
from rsq.broker.pool import LinkPool
from rsq.calls.message import Delivery
from rsq.errors import BrokerError, OutputFull
from rsq.on_demand import OnDemand

if TYPE_CHECKING:
    from rsq.broker.connection import ScriptCall

log = logging.getLogger("rsq.worker")

MOST_BYTES = 1024 * 1024
"""Values that a process keeps which the server has not confirmed; one that is larger goes alone."""

MOST_VALUES, MOST_BATCH_BYTES = 500, 256 * 1024
"""Bounds of what one script adds to an output."""

MOST_OUTPUTS = 100
"""Outputs that are added to in one write."""

LONGEST_PAUSE_S = 1.0
"""Between two tries to write; they begin with `PAUSE_S`."""

ROOM_S = 0.05
"""A body that waits for room looks again after so long: a thread is struck only where it executes Python."""

_numbers = count(1)


def emit_call(prefix: str, delivery: Delivery, emitted: bytes) -> ScriptCall:
    """Add values to the output of a call that runs; answers -1 and 0 where that run is over."""
    run = (delivery.consumer, delivery.priority, int(delivery.taken), delivery.entry_id, delivery.id)
    return scripts.EMIT, prefix, (*run, emitted)


class Output:
    """What one run emits.

    prefix          of the queue of its call
    length, ttl_ms  how many entries the output keeps at most, and for how long after the last one
    """

    __slots__ = ("_emitter", "closed", "delivery", "first", "length", "number", "prefix", "ttl_ms", "values")

    def __init__(self, emitter: Emitter, prefix: str, delivery: Delivery, length: int, ttl_ms: int) -> None:
        self._emitter = emitter
        self.prefix = prefix
        self.delivery = delivery
        self.length = length
        self.ttl_ms = ttl_ms
        self.number = next(_numbers)
        self.first = 1  # number of the first of these values in its run
        self.values = deque[bytes]()  # not confirmed yet
        self.closed = False

    def emit(self, value: bytes) -> None:
        """Have a packed value written soon; waits for room. Raises OutputFull where a coroutine would have to wait."""
        while not self._emitter.put(self, value):
            if _in_coroutine():
                raise OutputFull(
                    f"{self.delivery.task}[{self.delivery.id}] emits faster than the server takes it, and a coroutine "
                    "cannot be held up here: write `await self.aemit(value)`"
                )
            self._emitter.wait_for_room()

    async def aemit(self, value: bytes) -> None:
        """`emit` for coroutines."""
        while not self._emitter.put(self, value):
            await asyncio.get_running_loop().run_in_executor(None, self._emitter.wait_for_room)

    def rest(self) -> list[bytes]:
        """All that is not confirmed, packed as scripts take it, in order. The run has ended: it takes no more."""
        first, values = self._emitter.close(self)
        confirmed, batches = first - 1, []
        while values:
            some = list(_batch(values))
            batches.append(self.packed(first, some, confirmed))
            first += len(some)
            values = values[len(some) :]
        return batches

    def packed(self, first: int, values: Sequence[bytes], confirmed: int) -> bytes:
        """These values, of which the first has this number, as scripts take them; so many before it are confirmed."""
        return pack([self.number, confirmed, first, self.length, self.ttl_ms, values])

    def drop(self) -> None:
        """Nothing of it is to be written any more."""
        self._emitter.drop(self)


def _in_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _batch(values: Sequence[bytes] | deque[bytes]) -> Iterator[bytes]:
    size = 0
    for value in islice(values, MOST_VALUES):
        size += len(value)
        yield value
        if size >= MOST_BATCH_BYTES:
            return


class Emitter:
    """Writes what bodies of this process emit into one partition. Its thread starts with the first value."""

    def __init__(self, pool: LinkPool) -> None:
        self._pool = pool
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._bytes = 0
        self._waiting: dict[Output, None] = {}
        self._something = Bell()
        self._sleeping = False
        self._thread = OnDemand("rsq-emitter")

    # -- those who emit

    def put(self, output: Output, value: bytes) -> bool:
        """Take a value, or give False where there is no room for it."""
        with self._lock:
            if output.closed:
                return True  # its run is over, and nobody will see it
            self._thread.need(self._run)  # a full buffer, too, is for it to empty
            if self._bytes and self._bytes + len(value) > MOST_BYTES:
                return False
            output.values.append(value)
            self._bytes += len(value)
            self._waiting[output] = None
        if self._sleeping:
            self._something.set()
        return True

    def wait_for_room(self) -> None:
        with self._room:
            self._room.wait(ROOM_S)

    # -- those who write outcomes

    def close(self, output: Output) -> tuple[int, list[bytes]]:
        """It takes no more; gives the values that are not confirmed, and the number of the first of them."""
        with self._lock:
            output.closed = True
            self._waiting.pop(output, None)
            return output.first, list(output.values)

    def drop(self, output: Output) -> None:
        first, values = self.close(output)
        self._confirm(output, first + len(values))

    # -- its own thread

    def _run(self) -> None:
        pause_s = PAUSE_S
        while True:
            self._sleeping = True
            if not self._waiting:
                self._something.wait()
            self._sleeping = False
            batch = self._take()
            if batch and not self._write(batch):
                time.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            else:
                pause_s = PAUSE_S

    def _take(self) -> list[tuple[Output, int, list[bytes]]]:
        batch = []
        with self._lock:
            for output in list(islice(self._waiting, MOST_OUTPUTS)):
                del self._waiting[output]
                values = list(_batch(output.values))
                batch.append((output, output.first, values))
                if len(values) < len(output.values):
                    self._waiting[output] = None  # behind the others
        return batch

    def _write(self, batch: Sequence[tuple[Output, int, list[bytes]]]) -> bool:
        """False where some of it is to be tried again."""
        link = self._pool.take()
        try:
            replies = link.run_many(
                [
                    emit_call(output.prefix, output.delivery, output.packed(first, values, first - 1))
                    for output, first, values in batch
                ]
            )
        except Exception as error:  # whatever it is, what was taken must not be lost
            replies = [error] * len(batch)
        finally:
            self._pool.give_back(link)
        fault: Exception | None = None
        for (output, first, values), reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                fault = reply
                with self._lock:
                    if not output.closed:
                        self._waiting[output] = None
            elif reply == 1:
                self._confirm(output, first + len(values))
            else:
                self.drop(output)
        if fault is not None:
            own = None if isinstance(fault, BrokerError) else fault
            log.warning("what tasks emit could not be written, it is tried again: %s", fault, exc_info=own)
        return fault is None

    def _confirm(self, output: Output, upto: int) -> None:
        with self._room:
            while output.first < upto and output.values:
                self._bytes -= len(output.values.popleft())
                output.first += 1
            self._room.notify_all()


class Emitters:
    """The emitters of one process, by partition: where one server is away the others go on."""

    def __init__(self, pool: LinkPool) -> None:
        self._pool = pool
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._by_tag: dict[str, Emitter] = {}

    def output(self, prefix: str, delivery: Delivery, length: int, ttl_ms: int) -> Output:
        """The output of the run of this delivery."""
        with self._lock:  # a body may emit in several threads
            if delivery.output is None:
                tag = prefix.partition("}")[0]
                emitter = self._by_tag.get(tag)
                if emitter is None:
                    emitter = self._by_tag[tag] = Emitter(self._pool)
                delivery.output = Output(emitter, prefix, delivery, length, ttl_ms)
            output: Output = delivery.output
            return output
