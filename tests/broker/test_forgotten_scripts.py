"""A server that forgets scripts between loading and calling them, as after SCRIPT FLUSH or a failover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.aio import AsyncLink
from rsq.broker.cluster import loads_script
from rsq.broker.connection import LOADS, Endpoint, Link, ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.wire import packed
from rsq.errors import BrokerUnavailable
from rsq.keys import QueueKeys

FLUSH = ("SCRIPT", "FLUSH")


class FlushedLink(Link):
    """Somebody flushes the scripts after each of its next loads, before they are called."""

    flushes = 0

    def pipeline_packed(self, requests: Sequence[bytes], *rest: Any) -> list[Any]:
        if self.flushes and loads_script(requests[0]):
            self.flushes -= 1
            loaded, _ = super().pipeline_packed([requests[0], packed(*FLUSH)])
            return [loaded, *super().pipeline_packed(requests[1:], *rest)]
        return super().pipeline_packed(requests, *rest)


class FlushedAsyncLink(AsyncLink):
    """The same for coroutines."""

    flushes = 0

    async def pipeline_packed(self, requests: Sequence[bytes], deadline: Deadline) -> list[Any]:
        if self.flushes and loads_script(requests[0]):
            self.flushes -= 1
            loaded, _ = await super().pipeline_packed([requests[0], packed(*FLUSH)], deadline)
            return [loaded, *await super().pipeline_packed(requests[1:], deadline)]
        return await super().pipeline_packed(requests, deadline)


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
    link = FlushedAsyncLink(Endpoint(url))
    link.flushes = LOADS - 1
    (reply,) = await link.follow(running([call], Deadline(20)))
    assert not isinstance(reply, Exception)
    assert link.flushes == 0
    redis.script_flush()
    link.flushes = 1000
    (reply,) = await link.follow(running([call], Deadline(20)))
    assert isinstance(reply, BrokerUnavailable)
    assert "forgets scripts" in str(reply)
    await link.aclose()
