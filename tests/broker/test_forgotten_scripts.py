"""A server that forgets scripts between loading and calling them, as after SCRIPT FLUSH or a failover."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.aio import AsyncLink
from rsq.broker.connection import LOADS, Endpoint, Link, ScriptCall
from rsq.broker.wire import Argument, packed
from rsq.errors import BrokerUnavailable
from rsq.keys import QueueKeys

FLUSH = ("SCRIPT", "FLUSH")


class FlushedLink(Link):
    """Somebody flushes the scripts after each of its next loads."""

    flushes = 0

    def call(self, *command: Argument) -> Any:
        reply = super().call(*command)
        if command[:2] == ("SCRIPT", "LOAD") and self.flushes:
            self.flushes -= 1
            super().call(*FLUSH)
        return reply


class FlushedAsyncLink(AsyncLink):
    """The same for coroutines."""

    flushes = 0

    async def call_packed(self, request: bytes) -> Any:
        reply = await super().call_packed(request)
        if b"LOAD" in request and self.flushes:
            self.flushes -= 1
            await super().call_packed(packed(*FLUSH))
        return reply


@pytest.fixture
def call() -> ScriptCall:
    return scripts.REGISTER, QueueKeys("rsq", "default").prefix, ("a-consumer", 10_000)


@pytest.fixture
def link(url: str, redis: Any) -> Iterator[FlushedLink]:
    redis.script_flush()
    link = FlushedLink(Endpoint(url), 5)
    yield link
    link.close()


def test_a_script_is_loaded_again_until_it_is_there(link: FlushedLink, call: ScriptCall, redis: Any) -> None:
    link.flushes = LOADS - 1
    link.run_one(call)
    assert link.flushes == 0
    redis.script_flush()
    link.flushes = LOADS - 1
    *ran, pong = link.run_many([call, call], [packed("PING")])
    assert not any(isinstance(reply, Exception) for reply in ran)
    assert (link.flushes, pong) == (0, b"PONG")


def test_a_server_that_forgets_everything_cannot_serve(link: FlushedLink, call: ScriptCall) -> None:
    link.flushes = 1000
    with pytest.raises(BrokerUnavailable, match="forgets scripts"):
        link.run_one(call)
    (reply,) = link.run_many([call])
    assert isinstance(reply, BrokerUnavailable)


async def test_so_do_coroutines(url: str, call: ScriptCall, redis: Any) -> None:
    redis.script_flush()
    link = FlushedAsyncLink(Endpoint(url), 5)
    link.flushes = LOADS - 1
    await link.run(call)
    assert link.flushes == 0
    redis.script_flush()
    link.flushes = 1000
    with pytest.raises(BrokerUnavailable, match="forgets scripts"):
        await link.run(call)
    await link.close()
