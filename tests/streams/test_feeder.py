"""A feeder in its thread: what it feeds, and what others may do to the stream and to the group meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rsq import codec
from rsq.broker.connection import Endpoint
from rsq.broker.pool import LinkPool
from rsq.broker.source_status import SourceInfo, sources
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.source import Source
from rsq.settings import Settings
from rsq.streams import feeder as feeder_module
from rsq.streams import feeding
from rsq.streams.feeder import Feeder
from rsq.streams.feeding import Feed
from tests.cluster_client import holder_of
from tests.helpers import wait_until
from tests.servers import Server

pytestmark = pytest.mark.leaves("{events}")

STREAM = "{events}"

Make = Callable[..., Feeder]


@pytest.fixture
def links(server: Server) -> Iterator[LinkPool]:
    pool = LinkPool(Endpoint(server.url), 20)
    yield pool
    pool.close()


@pytest.fixture
def queue(server: Server) -> WorkerQueue:
    return WorkerQueue("events.g", Settings(url=server.url))


@pytest.fixture
def start(links: LinkPool, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Starts a feeder; it looks at the stream after each read, and does not wait long."""
    monkeypatch.setattr(feeder_module, "BLOCK_MS", 20)
    monkeypatch.setattr(feeder_module, "LOOK_S", 0.02)
    made: list[Feeder] = []

    def begin(**options: Any) -> Feeder:
        made.append(Feeder(Source(STREAM, "g", **options), "tests.on_event", queue, links))
        made[-1].start()
        return made[-1]

    yield begin
    for each in made:
        end(each)


def end(feeder: Feeder) -> None:
    feeder.stop()
    feeder._thread.join(60)
    assert not feeder._thread.is_alive()


@pytest.fixture
def fed(redis: Any, queue: WorkerQueue) -> Callable[[], list[str]]:
    """The values of the events in the queue, in order."""

    def values() -> list[str]:
        found = []
        for _, fields in redis.xrange(queue.keys.stream()):
            ((event,), _) = codec.decode_call(fields[b"body"])
            found.append(event["n"])
        return found

    return values


def add(redis: Any, *values: str, ms: int | None = None) -> None:
    """Events, as any producer sends them. `ms`: the time in the id of the only one."""
    for value in values:
        redis.xadd(STREAM, {"n": value}, id="*" if ms is None else f"{ms}-1")


def position(redis: Any, queue: WorkerQueue) -> str:
    return (redis.hget(queue.keys.sources, f"g:{STREAM}") or b"").decode()


def group(redis: Any) -> dict[str, Any] | None:
    return next((each for each in redis.xinfo_groups(STREAM) if each["name"] == b"g"), None)


def is_told(redis: Any) -> bool:
    """The group stands behind all that was ever in the stream."""
    return bool((group(redis) or {}).get("last-delivered-id") == redis.xinfo_stream(STREAM)["last-generated-id"])


def test_what_is_there_and_what_comes(start: Make, redis: Any, fed: Any) -> None:
    add(redis, *"abc")
    start()
    wait_until(lambda: fed() == [*"abc"])
    add(redis, *"de")
    wait_until(lambda: fed() == [*"abcde"])
    wait_until(lambda: is_told(redis))
    told = group(redis) or {}
    assert (told["pending"], told["consumers"]) == (0, 0)
    assert redis.xlen(STREAM) == 5, "the stream belongs to others"


def test_a_stream_that_does_not_exist_yet_is_waited_for(start: Make, redis: Any, queue: WorkerQueue, fed: Any) -> None:
    start()
    wait_until(lambda: position(redis, queue))
    assert not redis.exists(STREAM), "it is not rsq's to make"
    add(redis, "a")
    wait_until(lambda: fed() == ["a"])


def test_a_source_may_begin_with_what_comes(start: Make, redis: Any, queue: WorkerQueue, fed: Any) -> None:
    add(redis, *"ab")
    start(start="$")
    wait_until(lambda: position(redis, queue))
    add(redis, "c")
    wait_until(lambda: fed() == ["c"])


def test_all_of_a_stream_that_is_not_there_comes(start: Make, redis: Any, queue: WorkerQueue, fed: Any) -> None:
    start(start="$")
    wait_until(lambda: position(redis, queue))
    add(redis, "a")
    wait_until(lambda: fed() == ["a"])


def test_a_source_may_begin_behind_an_entry(start: Make, redis: Any, fed: Any) -> None:
    add(redis, "a", ms=5)
    add(redis, "b", ms=6)
    start(start="5-1")
    wait_until(lambda: fed() == ["b"])


def test_a_group_that_somebody_made_says_where_to_begin(start: Make, redis: Any, fed: Any) -> None:
    """As of a consumer written by hand, which rsq takes over from."""
    add(redis, *"ab")
    redis.xgroup_create(STREAM, "g", "0")
    redis.xreadgroup("g", "by-hand", {STREAM: ">"}, count=1)
    start()
    wait_until(lambda: fed() == ["b"])
    assert group(redis)["pending"] == 1, "what others have read stays theirs"  # type: ignore[index]


def test_consumers_of_others_are_named(
    start: Make, redis: Any, queue: WorkerQueue, links: LinkPool, fed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    add(redis, "a")
    redis.xgroup_create(STREAM, "g", "0")
    redis.xgroup_createconsumer(STREAM, "g", "by-hand")
    with caplog.at_level(logging.WARNING, "rsq.worker"):
        start()
        wait_until(lambda: "by-hand read in this group, too" in caplog.text)
    wait_until(lambda: fed() == ["a"])
    assert caplog.text.count("by-hand") == 1
    link = links.take()
    (source,) = sources(link, [queue])
    links.give_back(link)
    assert source.foreign == ["by-hand"]


def test_a_group_that_is_destroyed_is_made_again(
    start: Make, redis: Any, fed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    add(redis, "a")
    start()
    wait_until(lambda: fed() == ["a"] and is_told(redis))
    redis.xgroup_destroy(STREAM, "g")
    wait_until(lambda: group(redis))
    add(redis, "b")
    wait_until(lambda: fed() == [*"ab"])
    assert "the group was destroyed" in caplog.text


def test_what_others_delete_and_trim_holds_nothing_up(start: Make, redis: Any, fed: Any) -> None:
    add(redis, *"abc")
    start()
    wait_until(lambda: fed() == [*"abc"])
    redis.xdel(STREAM, redis.xrange(STREAM)[-1][0])
    redis.xtrim(STREAM, 0)
    add(redis, "d")
    wait_until(lambda: fed() == [*"abcd"])


@pytest.mark.parametrize("window", [3, 2000], ids=["behind", "at the end"])
def test_what_others_trim_unread_is_counted_and_told(
    start: Make,
    redis: Any,
    queue: WorkerQueue,
    links: LinkPool,
    fed: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
) -> None:
    """A server before 7.0 does not count what is added; there what was seen and is gone counts as one."""
    monkeypatch.setattr(feeding, "WINDOW", window)
    add(redis, *"abc")
    counts = "entries-added" in redis.xinfo_stream(STREAM)
    start()
    wait_until(lambda: fed() == [*"abc"])
    if window == 3:
        # Room for one more, so that it looks, while others wait.
        add(redis, *"defghi")
        redis.xtrim(STREAM, 2, approximate=False)
        redis.delete(queue.keys.stream())
        wait_until(lambda: fed() == [*"hi"])
    else:
        wait_until(lambda: is_told(redis))
        with holder_of(redis, STREAM).pipeline() as pipe:
            for value in "defghi":
                pipe.xadd(STREAM, {"n": value}, maxlen=2, approximate=False)
            pipe.execute()
        wait_until(lambda: fed() == [*"abchi"])

    def seen() -> int:
        link = links.take()
        (source,) = sources(link, [queue])
        links.give_back(link)
        return source.lost

    if counts:
        wait_until(lambda: seen() == 4)
        # Counted first, and told then.
        wait_until(lambda: "4 events or more were deleted by others before they were read" in caplog.text)


def test_what_was_read_may_be_deleted(start: Make, redis: Any, fed: Any, caplog: pytest.LogCaptureFixture) -> None:
    add(redis, *"abc")
    redis.xtrim(STREAM, 2, approximate=False)
    start()
    wait_until(lambda: fed() == [*"bc"])
    for value in "defg":
        add(redis, value)
        wait_until(lambda value=value: fed()[-1] == value)  # type: ignore[misc]
        redis.xtrim(STREAM, 0, approximate=False)
    wait_until(lambda: is_told(redis))
    assert "deleted by others" not in caplog.text


def test_a_stream_that_is_deleted_begins_anew(start: Make, redis: Any, queue: WorkerQueue, fed: Any) -> None:
    add(redis, *"ab")
    start()
    wait_until(lambda: fed() == [*"ab"])
    redis.delete(STREAM)
    wait_until(lambda: position(redis, queue) == "0-0")
    add(redis, "c", ms=5)
    wait_until(lambda: fed() == [*"abc"])


def test_a_stream_that_was_made_anew_meanwhile_is_read_from_its_beginning(
    start: Make, redis: Any, fed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    add(redis, *"ab")
    start()
    wait_until(lambda: fed() == [*"ab"])
    with holder_of(redis, STREAM).pipeline() as pipe:
        pipe.delete(STREAM)
        pipe.xadd(STREAM, {"n": "c"}, id="5-1")
        pipe.execute()
    wait_until(lambda: fed() == [*"abc"])
    assert "was made anew" in caplog.text


def test_a_server_that_took_over_without_the_newest_events_costs_those_alone(
    start: Make, redis: Any, queue: WorkerQueue, fed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In a cluster the queue lies elsewhere, and knows them."""
    for number, value in enumerate("ab", 5):
        add(redis, value, ms=number)
    start()
    wait_until(lambda: fed() == [*"ab"] and is_told(redis))
    before = redis.dump(STREAM)
    add(redis, "c", ms=7)
    wait_until(lambda: fed() == [*"abc"] and is_told(redis))
    redis.restore(STREAM, 0, before, replace=True)
    wait_until(lambda: position(redis, queue) == "6-1")
    assert "has lost what came behind 6-1" in caplog.text
    redis.xadd(STREAM, {"n": "d"}, id="6-5")
    wait_until(lambda: fed() == [*"abcd"])


def test_a_key_that_is_no_stream_is_told_and_waited_for(
    start: Make, redis: Any, fed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    redis.set(STREAM, "no stream")
    start()
    wait_until(lambda: "stream {events} for group g is not read" in caplog.text and "WRONGTYPE" in caplog.text)
    redis.delete(STREAM)
    add(redis, "a")
    wait_until(lambda: fed() == ["a"])


def test_one_of_several_feeds_and_another_goes_on(start: Make, redis: Any, queue: WorkerQueue, fed: Any) -> None:
    add(redis, "a")
    first, second = start(), start()
    wait_until(lambda: fed() == ["a"])
    wait_until(lambda: first._feed.feeds != second._feed.feeds)
    end(first if first._feed.feeds else second)
    add(redis, "b")
    wait_until(lambda: fed() == [*"ab"])
    assert redis.hget(queue.keys.stats, "fed") == b"2"


def test_what_waits_in_the_queue_bounds_what_is_fed(
    start: Make, redis: Any, queue: WorkerQueue, fed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "WINDOW", 3)
    add(redis, *"abcde")
    start()
    wait_until(lambda: fed() == [*"abc"])
    (entry_id, _), *_ = redis.xrange(queue.keys.stream())
    redis.xdel(queue.keys.stream(), entry_id)
    wait_until(lambda: fed() == [*"bcd"])


def test_large_events_go_in_small_steps(
    start: Make, redis: Any, fed: Any, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "PAGE_BYTES", 1000)
    steps: list[int] = []
    feed = Feed.events

    def watched(self: Feed, at: str, events: Any) -> Any:
        steps.append(len(events))
        return feed(self, at, events)

    monkeypatch.setattr(Feed, "events", watched)
    add(redis, *(f"{number:0400}" for number in range(9)))
    start()
    wait_until(lambda: len(fed()) == 9)
    assert max(steps) <= 2


def test_how_far_it_is_can_be_seen(start: Make, redis: Any, queue: WorkerQueue, links: LinkPool, fed: Any) -> None:
    def look() -> SourceInfo:
        link = links.take()
        try:
            (source,) = sources(link, [queue])
        finally:
            links.give_back(link)
        return source

    add(redis, "a", ms=5)
    feeder = start()
    wait_until(lambda: fed() == ["a"])
    end(feeder)
    add(redis, "b", ms=6)
    add(redis, "c", ms=7)
    seen = look()
    assert (seen.stream, seen.group, seen.queue, seen.length) == (STREAM, "g", "events.g", 3)
    assert (seen.position, seen.unread, seen.oldest_ms, seen.foreign) == ("5-1", 2, 6, [])
    redis.delete(STREAM)
    seen = look()
    assert (seen.length, seen.unread, seen.oldest_ms) == (None, 0, None)
    redis.set(STREAM, "x")
    assert "WRONGTYPE" in look().problem
