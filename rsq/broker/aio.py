"""The asyncio twins of the producer and the result listener: the same commands, awaited. One connection each a loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rsq.broker.connection import LOADS, AsyncConnection, Endpoint, ScriptCall, translated
from rsq.broker.listener import RECONNECT_S, SILENCE_S
from rsq.broker.producer import OPEN_S, PAUSE_S, Accepted, Unsure, answer, check_replicated, gave_up, room_pauses
from rsq.broker.queue import Queue
from rsq.broker.stragglers import Exchange, Identity
from rsq.broker.wire import packed
from rsq.calls.message import Message
from rsq.calls.placement import PLAIN, Placement
from rsq.errors import BrokerUnavailable, QueueFull


class AsyncLink:
    """One connection of one event loop; coroutines take turns on it."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self.timeout_s = timeout_s
        self._connection: AsyncConnection | None = None
        self._identity: Identity | None = None
        self._turn = asyncio.Lock()

    async def call_packed(self, request: bytes) -> Any:
        """Send one packed command and give its reply. Raises as `Link.call_packed` does."""
        (reply,) = await self.pipeline_packed([request])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def pipeline_packed(self, requests: Sequence[bytes]) -> list[Any]:
        """Send packed commands in one write; give their replies in order, a refused command as its exception."""
        async with self._turn:
            try:
                connection = await self._connected()
                await connection.send_packed_command([b"".join(requests)], check_health=False)
                replies = [await _reply(connection) for _ in requests]
            except (RedisError, OSError) as error:
                fault = translated(error, self._endpoint.url)
                if isinstance(fault, BrokerUnavailable):
                    await self._break()
                raise fault from None
            except BaseException:
                # Cancelled between request and reply: the next reply would answer the wrong call.
                await self._break()
                raise
            for i, reply in enumerate(replies):
                if isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError):
                    replies[i] = translated(reply, self._endpoint.url)
            if any(isinstance(reply, BrokerUnavailable) for reply in replies):
                await self._drop()
            return replies

    async def run(self, call: ScriptCall, then: Sequence[bytes] = ()) -> list[Any]:
        """Call a script, loading it where the server does not know it yet, and in the same write what comes `then`.

        Gives all replies. Raises what the script was refused with.
        """
        script, tag, arguments = call
        requests = [packed("EVALSHA", script.sha, 1, tag, *arguments), *then]
        replies = await self.pipeline_packed(requests)
        for _ in range(LOADS):
            if not isinstance(replies[0], NoScriptError):
                break
            await self.call_packed(packed("SCRIPT", "LOAD", script.source))
            replies = await self.pipeline_packed(requests)
        if isinstance(replies[0], NoScriptError):
            raise self._endpoint.forgetful()
        if isinstance(replies[0], Exception):
            raise replies[0]
        return replies

    async def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        async with self._turn:
            await self._drop()

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = connection = await self._endpoint.async_connection(self.timeout_s)
            await connection.connect()
            self._identity = await _exchange(connection, self._endpoint.stragglers.greeting(connection.client_name))
        return self._connection

    async def _break(self) -> None:
        """Drop the connection while a request may be under way on it."""
        self._endpoint.stragglers.add(self._identity)
        await self._drop()

    async def _drop(self) -> None:
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)


async def _exchange(connection: AsyncConnection, exchange: Exchange) -> Identity | None:
    """Carry out an exchange on a connection."""
    try:
        requests = next(exchange)
        while True:
            await connection.send_packed_command([b"".join(requests)], check_health=False)
            requests = exchange.send([await _reply(connection) for _ in requests])
    except StopIteration as end:
        identity: Identity | None = end.value
        return identity


async def _reply(connection: AsyncConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as refusal:
        return refusal


class AsyncProducer:
    """`Producer` for coroutines. Each event loop has a connection of its own."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, replicas: int = 0) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._replicas = replicas
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncLink] = WeakKeyDictionary()
        self._introduced: set[str] = set()
        self._open_until: dict[str, float] = {}
        self._unsure = Unsure()

    async def send(self, queue: Queue, message: Message, placement: Placement = PLAIN) -> Accepted:
        """Enqueue one message; see `Producer.send`."""
        if placement.room_wait_s:
            for pause_s in room_pauses(placement.room_wait_s):
                try:
                    return await self._send(queue, message, placement)
                except QueueFull:
                    await asyncio.sleep(pause_s)
        return await self._send(queue, message, placement)

    async def _send(self, queue: Queue, message: Message, placement: Placement) -> Accepted:
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            link = self._links[loop] = AsyncLink(self._endpoint, self._timeout_s)
        began = time.monotonic()
        first_try = self._unsure.pop(message.id) if placement.unique else None
        if first_try is not None:
            return await self._repeat(queue, message, placement, first_try, began, None)
        try:
            is_open = began < self._open_until.get(queue.name, 0.0)
            if placement is PLAIN and is_open and not self._replicas:
                await link.call_packed(queue.plain_enqueue(message))
                accepted = Accepted(message.id)
            else:
                accepted = await self._run(link, queue, message, placement, began, None)
                self._open_until[queue.name] = began + OPEN_S
            if queue.name not in self._introduced:
                await link.call_packed(queue.introduce())
                self._introduced.add(queue.name)
            return accepted
        except BrokerUnavailable as error:
            fault = error
        return await self._repeat(queue, message, placement, began, began, fault)

    async def aclose(self) -> None:
        """Close the connection of this event loop."""
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.close()

    async def _run(
        self,
        link: AsyncLink,
        queue: Queue,
        message: Message,
        placement: Placement,
        first_try: float,
        since_ms: int | None,
    ) -> Accepted:
        """Enqueue by script, and wait for replicas where that is asked for."""
        replicas = self._replicas if placement.replicas is None else placement.replicas
        then = [queue.introduce(), *queue.replication(replicas, link.timeout_s)] if replicas else []
        replies = await link.run(queue.enqueue_call(message, placement, since_ms), then)
        accepted = answer(queue, message, placement, replies[0])
        if replicas:
            check_replicated([(message, placement)], [accepted], replies[-1], replicas, self._unsure, first_try)
        return accepted

    async def _repeat(
        self,
        queue: Queue,
        message: Message,
        placement: Placement,
        first_try: float,
        began: float,
        fault: BrokerUnavailable | None,
    ) -> Accepted:
        self._introduced.clear()
        deadline = began + self._timeout_s
        pause_s = PAUSE_S
        while (left_s := deadline - time.monotonic()) > 0:
            link = AsyncLink(self._endpoint, left_s)
            try:
                since_ms = int((time.monotonic() - first_try) * 1000)
                return await self._run(link, queue, message, placement, first_try, since_ms)
            except BrokerUnavailable as error:
                fault = error
            finally:
                await link.close()
            await asyncio.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s *= 2
        self._unsure.add(message.id, first_try)
        raise gave_up(message, self._timeout_s, fault)


class AsyncResultListener:
    """`ResultListener` for coroutines: one subscribed connection and one reading task for each event loop."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._subscriptions: WeakKeyDictionary[asyncio.AbstractEventLoop, _Subscription] = WeakKeyDictionary()

    async def wait(self, keys: Sequence[str], timeout_s: float | None) -> bytes | None:
        """The value at the first of `keys` that has one, or None after `timeout_s`; see `ResultListener.wait`."""
        loop = asyncio.get_running_loop()
        subscription = self._subscriptions.get(loop)
        if subscription is None:
            subscription = self._subscriptions[loop] = _Subscription(self._endpoint, self._timeout_s)
        return await subscription.wait([key.encode() for key in keys], timeout_s)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        subscription = self._subscriptions.pop(asyncio.get_running_loop(), None)
        if subscription is not None:
            await subscription.aclose()


class _Subscription:
    """The subscribed connection of one loop.

    Its reading task lives while somebody waits, so none is left over when the loop ends; the connection stays.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._link = AsyncLink(endpoint, timeout_s)
        self._connection: AsyncConnection | None = None
        self._waiting: dict[bytes, list[asyncio.Future[bytes]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._past_reader: asyncio.Task[None] | None = None

    async def wait(self, keys: list[bytes], timeout_s: float | None) -> bytes | None:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        for key in keys:
            self._waiting.setdefault(key, []).append(future)
        try:
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read())
            elif self._connection is not None:
                # Also where somebody has subscribed already: the server's answer lets the reading task look.
                await self._subscribe(self._connection, keys)
            done, _ = await asyncio.wait([future], timeout=timeout_s)
            return future.result() if done else None
        finally:
            future.cancel()
            await self._leave(keys, future)

    async def aclose(self) -> None:
        """Stop reading. Those who still wait are told that nothing will come."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
        await self._disconnect()
        self._fail(BrokerUnavailable("the connection was closed while a result was waited for"))
        await self._link.close()

    async def _subscribe(self, connection: AsyncConnection, keys: Iterable[bytes]) -> None:
        try:
            await connection.send_command("SUBSCRIBE", *keys)
        except (RedisError, OSError) as error:
            raise translated(error, self._endpoint.url) from None

    async def _leave(self, keys: list[bytes], future: asyncio.Future[bytes]) -> None:
        idle = []
        for key in keys:
            others = self._waiting.get(key, [])
            if future in others:
                others.remove(future)
            if key in self._waiting and not others:
                del self._waiting[key]
                idle.append(key)
        if not self._waiting and self._reader is not None:
            self._reader.cancel()
            self._past_reader, self._reader = self._reader, None
        if idle and self._connection is not None:
            try:
                await self._connection.send_command("UNSUBSCRIBE", *idle)
            except (RedisError, OSError):
                pass  # the reading task finds out and connects again, without this channel

    async def _read(self) -> None:
        """Read for everybody; connect again after a fault. With nobody left it is cancelled."""
        if self._past_reader is not None and not self._past_reader.done():
            await asyncio.wait([self._past_reader])
        away_since: float | None = None
        while True:
            try:
                await self._read_until_fault()
            except (RedisError, OSError) as error:
                now = time.monotonic()
                away_since = now if self._connection is not None or away_since is None else away_since
                await self._disconnect()
                if now - away_since > self._timeout_s:
                    self._fail(error if isinstance(error, BrokerUnavailable) else translated(error, self._endpoint.url))
                    return
                await asyncio.sleep(RECONNECT_S)
            except Exception as error:
                await self._disconnect()
                self._fail(error)
                raise

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            connection = await self._endpoint.async_connection(self._timeout_s)
            try:
                await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._connection = connection
        return self._connection

    async def _read_until_fault(self) -> None:
        connection = await self._connected()
        await self._subscribe(connection, self._waiting)
        silent_s = 0
        while True:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=1.0, disconnect_on_error=False)
            except RedisTimeoutError:
                reply = None
            if reply is None:  # which is how the asyncio half of redis-py tells that a given timeout is over
                silent_s += 1
                if silent_s == SILENCE_S:
                    await self._subscribe(connection, list(self._waiting)[:1])
                elif silent_s >= 2 * SILENCE_S:
                    raise BrokerUnavailable(f"{self._endpoint} has been silent for {silent_s} s")
                continue
            silent_s = 0
            kind, channel, payload = reply
            if kind == b"message":
                self._settle(channel, payload)
            elif kind == b"subscribe":
                await self._look([channel])

    async def _look(self, keys: list[bytes]) -> None:
        for key in keys:
            found = await self._link.call_packed(packed("GET", key))
            if found is not None:
                self._settle(key, found)

    def _settle(self, key: bytes, data: bytes) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(data)

    def _fail(self, error: Exception) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
