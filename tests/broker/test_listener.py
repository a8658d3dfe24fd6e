"""Waiting for results, where a push is read late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing

import pytest

from rsq.broker.aio_listener import AsyncResultListener
from rsq.broker.connection import Endpoint
from rsq.broker.listener import ResultListener
from rsq.broker.pool import LinkPool
from tests.broker.conftest import Rig
from tests.helpers import wait_until

PATIENT_S = 60.0

Publish = Callable[[str, str], None]


@pytest.fixture
def publish(rig: Rig) -> Publish:
    """A push without a value, as one that was read late leaves it."""

    def push(channel: str, data: str) -> None:
        command = "SPUBLISH" if rig.link.endpoint.sharded else "PUBLISH"
        wait_until(lambda: rig.redis.execute_command(command, channel, data) == 1, PATIENT_S, "somebody to hear it")

    return push


def test_a_push_of_an_earlier_wait_is_no_answer(rig: Rig, publish: Publish) -> None:
    """The first wait ends by another result, and leaves unread what came; the call has been redriven since."""
    first, second = (rig.keys.result(name) for name in ("first", "second"))
    rig.redis.set(first, "there", ex=100)
    with closing(LinkPool(rig.link.endpoint, PATIENT_S)) as pool:
        listener = ResultListener(rig.link.endpoint, pool)
        with closing(listener.arrivals([[first], [second]], PATIENT_S)) as arrivals:
            assert next(arrivals) == (0, b"there")
            publish(second, "old")
        rig.redis.set(second, "new", ex=100)
        assert listener.wait([second], PATIENT_S) == b"new"
        listener.close()


def test_nor_for_a_coroutine(rig: Rig, publish: Publish, url: str) -> None:
    first, second = (rig.keys.result(name) for name in ("first", "second"))
    rig.redis.set(first, "there", ex=100)

    async def waits() -> bytes | None:
        listener = AsyncResultListener(Endpoint(url), PATIENT_S)
        async with aclosing(listener.arrivals([[first], [second]], PATIENT_S)) as arrivals:
            assert await anext(arrivals) == (0, b"there")
            publish(second, "old")  # the loop stands still, and reads it after the next wait has begun
        rig.redis.set(second, "new", ex=100)
        try:
            return await listener.wait([second], PATIENT_S)
        finally:
            await listener.aclose()

    assert asyncio.run(waits()) == b"new"
