"""Consumers without a lease record: what they hold goes to others, and their names go."""

from __future__ import annotations

from typing import Any

from rsq.broker.connection import Endpoint, Link
from rsq.broker.worker_queue import WorkerQueue
from rsq.keys import GROUP
from rsq.settings import Settings
from tests.helpers import wait_until


def names(redis: Any, queue: WorkerQueue) -> set[bytes]:
    return {row["name"] for row in redis.xinfo_consumers(queue.keys.stream(), GROUP)}


def test_a_consumer_without_a_lease_is_found(redis: Any, url: str) -> None:
    settings = Settings(url=url, lease_s=0.2)
    queue, link = WorkerQueue("default", settings), Link(Endpoint(url), 5)
    stream = queue.keys.stream()
    queue.register(link, "alive")
    redis.xadd(stream, {"id": "x", "task": "t", "body": b"\x92\x90\x80", "meta": b""})
    redis.xreadgroup(GROUP, "vanished", {stream: ">"}, count=1)
    redis.xgroup_createconsumer(stream, GROUP, "empty")
    assert link.run_one(queue.reconcile_call()) == []
    assert names(redis, queue) == {b"vanished"}
    wait_until(lambda: link.run_one(queue.reconcile_call()) == [b"vanished"], what="it to have been idle for a lease")
    queue.register(link, "other")
    fetched = queue.fetch(link, "other", 10)
    assert [(d.id, d.deliveries) for d in fetched.deliveries] == [("x", 2)]
    assert names(redis, queue) == {b"other"}
    assert link.run_one(queue.reconcile_call()) == []
    link.close()


def test_the_living_are_left_alone(redis: Any, url: str) -> None:
    queue, link = WorkerQueue("default", Settings(url=url)), Link(Endpoint(url), 5)
    queue.register(link, "alive")
    redis.xadd(queue.keys.stream(), {"id": "x", "task": "t", "body": b"", "meta": b""})
    assert len(queue.fetch(link, "alive", 1).deliveries) == 1
    assert link.run_one(queue.reconcile_call()) == []
    assert names(redis, queue) == {b"alive"}
    link.close()


def test_without_a_queue_there_is_nothing_to_find(redis: Any, url: str) -> None:
    queue, link = WorkerQueue("default", Settings(url=url)), Link(Endpoint(url), 5)
    assert link.run_one(queue.reconcile_call()) == []
    assert redis.keys() == [f"{queue.keys.prefix}:reconciled".encode()]
    link.close()


def test_however_many_ask_one_looks(redis: Any, url: str) -> None:
    settings = Settings(url=url, lease_s=600)
    queue, link = WorkerQueue("default", settings), Link(Endpoint(url), 5)
    queue.register(link, "alive")
    assert link.run_one(queue.reconcile_call()) == []
    redis.xgroup_createconsumer(queue.keys.stream(), GROUP, "empty")
    assert link.run_one(queue.reconcile_call()) == []
    assert names(redis, queue) == {b"empty"}
    # The next look comes before anybody has waited for a whole lease since the last one.
    assert 0 < redis.pttl(f"{queue.keys.prefix}:reconciled") < settings.lease_ms
    redis.delete(f"{queue.keys.prefix}:reconciled")
    assert link.run_one(queue.reconcile_call()) == []
    assert names(redis, queue) == set()
    link.close()
