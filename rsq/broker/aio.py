"""Connections of event loops: how a coroutine carries on what `rsq.broker.exchange` has a thread carry on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from rsq.broker.channel import AsyncChannel
from rsq.broker.cluster import tag_of
from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.dialling import CONNECT_TIMEOUT_S, keepalive_options, tls_context
from rsq.broker.exchange import Dial, Exchange
from rsq.broker.faults import CLOSED, FAULTS, SILENT, SlotMoved, translated
from rsq.broker.spread import of_one_try, spreading
from rsq.broker.stragglers import Identity
from rsq.errors import BrokerError

T = TypeVar("T")


class OfLoop(Protocol):
    """What an event loop has for itself."""

    async def aclose(self) -> None:
        """Close its connections."""

    def drop(self) -> None:
        """Drop its connections; they are made again where they are needed."""

    def abandon(self) -> None:
        """Let go of them, since the loop is closed."""


E = TypeVar("E", bound=OfLoop)


class PerLoop(Generic[E]):
    """One thing of a kind for each event loop, made when it is first asked for; those of closed loops are let go."""

    def __init__(self, make: Callable[[], E]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._each: dict[asyncio.AbstractEventLoop, E] = {}

    def here(self) -> E:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        found = self._each.get(loop)
        if found is None:
            self._sweep()
            with self._lock:
                found = self._each[loop] = self._make()
        return found

    async def aclose(self) -> None:
        """Close that of the running loop."""
        with self._lock:
            found = self._each.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.aclose()

    def close(self) -> None:
        """Drop the connections of all loops."""
        self._sweep()
        for loop, each in list(self._each.items()):
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(each.drop)

    def _sweep(self) -> None:
        with self._lock:
            gone = [self._each.pop(loop) for loop in list(self._each) if loop.is_closed()]
        for each in gone:
            each.abandon()


class AsyncLink:
    """One connection of one event loop, for any number of coroutines at once. Connects when it is needed."""

    def __init__(self, endpoint: Endpoint, tag: str | None = None) -> None:
        self._endpoint = endpoint
        self._tag = tag
        self._by_tag: dict[str, AsyncLink] = {}
        self._channel: AsyncChannel | None = None
        self._identity: Identity | None = None
        self._connecting: asyncio.Task[AsyncChannel] | None = None

    async def pipeline_packed(self, requests: Sequence[bytes], deadline: Deadline) -> list[Any]:
        """Send packed commands in one write; give their replies in order. Errors as of `Link`."""
        if self._tag is None and self._endpoint.cluster is not None:
            return await self._spread(requests, deadline)
        channel = self._channel
        try:
            if channel is None or channel.fault is not None:
                channel = await self._connected(deadline)
            replies = await channel.ask(requests, deadline)
        except BrokerError:
            raise
        except FAULTS as error:
            raise translated(error, self._endpoint.url) from None
        if self._endpoint.translate(replies):
            channel.close()
        return replies

    async def _spread(self, requests: Sequence[bytes], deadline: Deadline) -> list[Any]:
        """See `Link._spread`."""
        if len(requests) == 1 and (tag := tag_of(requests[0])):
            own = of_one_try(deadline, self._endpoint.answer_s)
            replies = await self._at(tag).pipeline_packed(requests, own or deadline)
            if type(replies[0]) is not SlotMoved:
                return replies
        talk = spreading(requests, self._endpoint.home, deadline)
        try:
            step = next(talk)
            while True:
                tag, some, own = step
                try:
                    replies = await self._at(tag).pipeline_packed(some, own or deadline)
                except BrokerError as fault:
                    step = talk.throw(fault)
                else:
                    step = talk.send(replies)
        except StopIteration as end:
            result: list[Any] = end.value
            return result

    def _at(self, tag: str) -> AsyncLink:
        link = self._by_tag.get(tag)
        if link is None:
            link = self._by_tag[tag] = AsyncLink(self._endpoint, tag)
        return link

    async def follow(self, talk: Exchange[T]) -> T:
        """Carry on a talk to its end."""
        try:
            step = next(talk)
            while True:
                try:
                    if isinstance(step, float):
                        replies = await asyncio.sleep(step, list[Any]())
                    elif isinstance(step, list):
                        replies = self._endpoint.fitting(step)
                    else:
                        requests, deadline = step
                        assert deadline is not None, "what coroutines ask has a deadline"
                        replies = await self.pipeline_packed(requests, deadline)
                except BrokerError as fault:
                    step = talk.throw(fault)
                else:
                    step = talk.send(replies)
        except StopIteration as end:
            result: T = end.value
            return result

    async def aclose(self) -> None:
        """Drop the connection; the next call makes a new one."""
        for link in list(self._by_tag.values()):
            await link.aclose()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self.drop()

    def drop(self) -> None:
        for link in self._by_tag.values():
            link.drop()
        if self._channel is not None:
            self._channel.close()

    def abandon(self) -> None:
        for link in self._by_tag.values():
            link.abandon()
        if self._channel is not None:
            self._channel.abandon()
        self._channel = self._connecting = None

    async def _connected(self, deadline: Deadline) -> AsyncChannel:
        """All who need the connection wait for one task that makes it, each until his own deadline."""
        task = self._connecting
        if task is None or task.done():
            task = self._connecting = asyncio.create_task(self._connect(deadline))
            task.add_done_callback(_noticed)
        await asyncio.wait([task], timeout=max(0.0, deadline.left_s()))
        if not task.done():
            raise TimeoutError(SILENT)
        if task.cancelled():
            raise ConnectionError(CLOSED)
        return task.result()

    async def _connect(self, deadline: Deadline) -> AsyncChannel:
        channel, self._identity = await open_channel(self._endpoint, deadline, on_end=self._ended, tag=self._tag)
        self._channel = channel
        return channel

    def _ended(self, channel: AsyncChannel, under_way: bool) -> None:
        if channel is self._channel:
            if under_way:
                self._endpoint.broke(self._identity)
            self._channel = self._identity = None


def _noticed(task: asyncio.Future[Any]) -> None:
    """Whoever waited for it may be gone; nobody is to be told that its error was never looked at."""
    if not task.cancelled():
        task.exception()


async def open_channel(
    endpoint: Endpoint,
    deadline: Deadline,
    on_push: Callable[[Any], None] | None = None,
    on_end: Callable[[AsyncChannel, bool], None] | None = None,
    tag: str | None = None,
) -> tuple[AsyncChannel, Identity | None]:
    """`Endpoint.open` for coroutines; what is called meanwhile is told by `AsyncChannel`."""
    if endpoint.embedded is not None:
        await _in_thread(partial(endpoint.embedded.ensure, deadline.left_s()), deadline)
    steps, channel = endpoint.opening(deadline, tag), None
    try:
        step = next(steps)
        while True:
            try:
                reply = None
                if isinstance(step, Dial):
                    if channel is not None:
                        channel.close()
                    channel = AsyncChannel(on_push, on_end)
                    await _dial(step, channel)
                else:
                    assert channel is not None, "an opening begins by dialling"
                    reply = await channel.ask(*step)
            except FAULTS as fault:
                step = steps.throw(fault)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        assert channel is not None, "an opening dials"
        return channel, end.value
    except BaseException:
        if channel is not None:
            channel.close()
        raise


async def _dial(step: Dial, channel: AsyncChannel) -> None:
    """Connect; nothing is said yet."""
    loop = asyncio.get_running_loop()
    options = step.options
    if step.kind == "unix":
        connecting: Any = loop.create_unix_connection(lambda: channel, options["path"])
    else:
        host = options.get("host", "localhost")
        tls = tls_context(options) if step.kind == "rediss" else None
        connecting = loop.create_connection(lambda: channel, host, options.get("port", 6379), ssl=tls)
    transport, _ = await asyncio.wait_for(connecting, max(0.0, min(step.deadline.left_s(), CONNECT_TIMEOUT_S)))
    if step.kind != "unix":
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in keepalive_options().items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _in_thread(function: Callable[[], Any], deadline: Deadline) -> None:
    """Wait for something that blocks, until the deadline."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    await asyncio.wait([future], timeout=max(0.0, deadline.left_s()) + 0.1)
    if not future.done():
        future.add_done_callback(_noticed)
        raise TimeoutError("the embedded server does not answer")
    future.result()
