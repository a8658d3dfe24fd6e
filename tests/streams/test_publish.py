"""Events that are published: each id once, whatever is lost on the way; and in eager mode, where they run at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rsq import App, BrokerRefused, BrokerUnavailable, NotReplicated, SettingsError
from tests.proxy import Proxy
from tests.servers import Server, not_on_cluster

pytestmark = pytest.mark.leaves("{events}")

STREAM = "{events}"


@pytest.fixture
def app(url: str) -> Iterator[App]:
    made = App("publisher", url=url)
    yield made
    made.close()


def fields(redis: Any) -> list[dict[bytes, bytes]]:
    return [event for _, event in redis.xrange(STREAM)]


def test_an_event_is_what_xadd_makes_of_it(app: App, redis: Any) -> None:
    sent = app.publish(STREAM, {"text": "ä", "raw": b"\xff", "number": 7, "price": 0.1})
    assert not sent.duplicate
    ((entry_id, event),) = redis.xrange(STREAM)
    assert entry_id.decode() == sent.id
    assert event == {b"text": "ä".encode(), b"raw": b"\xff", b"number": b"7", b"price": b"0.1"}


def test_an_id_is_added_once(app: App, redis: Any) -> None:
    first = app.publish(STREAM, {"n": 1}, id="m 1", dedupe_ttl=60)
    again = app.publish(STREAM, {"n": 2}, id="m 1")
    assert (again.id, again.duplicate) == (first.id, True)
    assert not app.publish(STREAM, {"n": 3}, id="m 2").duplicate
    assert fields(redis) == [{b"n": b"1"}, {b"n": b"3"}]
    (marker,) = redis.keys("*published*m 1")
    assert marker == b"{events}:rsq:published:{events} m 1"
    assert 0 < redis.pttl(marker) <= 60_000


def test_many_at_once(app: App, redis: Any) -> None:
    sent = app.publish_many(STREAM, ({"n": number} for number in range(1200)), ids=map(str, range(1200)))
    assert len({each.id for each in sent}) == 1200
    again = app.publish_many(STREAM, [{"n": 1}, {"n": 2}, {"n": 3}], ids=["5", "new", "new"])
    assert [each.duplicate for each in again] == [True, False, True]
    assert (again[0].id, again[2].id) == (sent[5].id, again[1].id)
    assert len(app.publish_many(STREAM, [{"n": 1}] * 3)) == 3
    assert app.publish_many(STREAM, []) == []
    assert redis.xlen(STREAM) == 1204


@not_on_cluster("it counts what one server was asked")
def test_many_large_ones_go_in_several_writes(app: App, redis: Any) -> None:
    redis.config_resetstat()
    app.publish_many(STREAM, [{"n": bytes(600_000)}] * 3)
    assert redis.xlen(STREAM) == 3
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] >= 3


async def test_from_coroutines(app: App, redis: Any) -> None:
    try:
        first = await app.apublish(STREAM, {"n": 1}, id="m")
        assert await app.apublish(STREAM, {"n": 1}, id="m") == (first.id, True)
        assert redis.xlen(STREAM) == 1
    finally:
        await app.aclose()


@pytest.mark.parametrize("fault", ["cut_request", "cut_reply", "truncate_reply"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_lost_reply_doubles_nothing(app: App, server: Server, redis: Any, fault: str, times: int) -> None:
    with Proxy(server) as proxy:
        app.configure(url=proxy.url, broker_timeout_s=20)
        app.publish(STREAM, {"n": 0}, id="warm-up")
        proxy.plan(*[fault] * times)
        sent = app.publish_many(STREAM, [{"n": 1}, {"n": 2}], ids=["a", "b"])
        assert proxy.pending == 0
        app.close()
    assert [entry_id.decode() for entry_id, _ in redis.xrange(STREAM)[1:]] == [each.id for each in sent]


def test_without_an_id_nobody_tries_again(app: App, server: Server, redis: Any) -> None:
    with Proxy(server) as proxy:
        app.configure(url=proxy.url, broker_timeout_s=20)
        app.publish(STREAM, {"n": 0})
        proxy.plan("cut_reply")
        with pytest.raises(BrokerUnavailable, match=r"the event may or may not be in stream {events}.*give an id"):
            app.publish(STREAM, {"n": 1})
        app.close()
    assert redis.xlen(STREAM) == 2


@not_on_cluster("there each master has a replica")
def test_replicas_that_are_missing_are_told(app: App, redis: Any) -> None:
    app.configure(broker_timeout_s=0.5)
    with pytest.raises(NotReplicated, match="0 of 1 replicas"):
        app.publish(STREAM, {"n": 1}, id="m", wait_replicas=1)
    assert app.publish(STREAM, {"n": 1}, id="m", wait_replicas=0).duplicate


def test_a_key_that_is_no_stream_is_refused(app: App, redis: Any) -> None:
    redis.rpush(STREAM, "x")
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        app.publish(STREAM, {"n": 1}, id="m")
    assert redis.keys("*published*") == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"event": {}}, "a map with one field at least"),
        ({"event": [1]}, "a map with one field at least"),
        ({"event": {1: "a"}}, "named by a text, not by 1"),
        ({"event": {"a": None}}, "field 'a' of an event takes a text, bytes or a number, not None"),
        ({"event": {"a": True}}, "field 'a'"),
        ({"event": {"a": "b"}, "id": ""}, "id of an event is a text of 1 to 500"),
        ({"event": {"a": "b"}, "id": 7}, "id of an event is a text"),
        ({"event": {"a": "b"}, "dedupe_ttl": 0}, "dedupe_ttl must be above 0"),
        ({"event": {"a": "b"}, "wait_replicas": -1}, "wait_replicas must be 0 or more"),
        ({"event": {"a": "b"}, "stream": ""}, "a stream is named by the text"),
    ],
)
def test_mistakes_are_told(given: dict[str, Any], said: str) -> None:
    app = App("nowhere", url="redis://127.0.0.1:1/0")
    with pytest.raises(SettingsError, match=said):
        app.publish(**{"stream": STREAM, **given})
    with pytest.raises(SettingsError, match="2 events and 1 ids"):
        app.publish_many(STREAM, [{"a": 1}, {"a": 2}], ids=["a"])


# -- eager mode: nobody listens at that address

eager = App("eager", url="redis://127.0.0.1:1/0")
ran: list[Any] = []


@eager.on(STREAM, group="first", id_field="n", max_retries=1, retry_backoff=0)
def first(event: Mapping[str, str]) -> None:
    ran.append(("first", dict(event)))
    if event["n"] == "fails":
        raise ValueError(event["n"])


@eager.on(STREAM, group="second", bind=True, decode="bytes")
async def second(self: Any, event: Mapping[bytes, bytes]) -> None:
    ran.append(("second", event[b"n"], self.request.event[0]))


@eager.on("others", group="first")
def other(event: Any) -> None:
    ran.append("other")


@pytest.fixture
def eagerly() -> Iterator[App]:
    ran.clear()
    with eager.testing.eager():
        yield eager


def test_an_event_runs_at_once_in_each_group(eagerly: App) -> None:
    eagerly.publish(STREAM, {"n": 1})
    assert ran == [("first", {"n": "1"}), ("second", b"1", STREAM)]


def test_ids_count_there_too(eagerly: App) -> None:
    eagerly.publish_many(STREAM, [{"n": 1}, {"n": 1}, {"n": 2}])
    assert [each[0] for each in ran] == ["first", "second", "second", "first", "second"]
    ran.clear()
    assert not eagerly.publish(STREAM, {"n": 3}, id="m").duplicate
    assert eagerly.publish(STREAM, {"n": 4}, id="m").duplicate
    assert len(ran) == 2


async def test_so_does_it_from_coroutines(eagerly: App) -> None:
    await eagerly.apublish(STREAM, {"n": 1})
    assert len(ran) == 2


def test_a_failure_is_raised_after_its_retries(eagerly: App) -> None:
    with pytest.raises(ValueError, match="fails"):
        eagerly.publish(STREAM, {"n": "fails"})
    assert [each[0] for each in ran] == ["first", "first", "second"]


def test_a_call_of_a_source_takes_its_argument_as_it_is(eagerly: App) -> None:
    first.delay({"n": "direct"})
    assert ran == [("first", {"n": "direct"})]
