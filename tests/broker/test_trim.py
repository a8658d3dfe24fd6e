"""trim: what all who count are done with goes, and nothing else; tell: how far rsq is, whoever moves the group."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from rsq.broker.connection import Endpoint, Link
from rsq.broker.event_stream import EventStream
from rsq.broker.trimming import StreamTrimmer, Trimmed, trimmed
from rsq.calls.retention import retention
from rsq.errors import BrokerRefused
from tests.cluster_client import holder_of
from tests.servers import Server, not_on_cluster

pytestmark = pytest.mark.leaves("{events}")

STREAM, ABOUT = "{events}", "{events}:rsq:stream:{events}"

BLOCK = 100
"""Entries of a block of the server, which goes as a whole, by the default of all servers."""


class Stream:
    """A stream of others, and one that trims it."""

    def __init__(self, server: Server, redis: Any) -> None:
        self.redis = redis
        self.endpoint = Endpoint(server.url)
        self._open: list[Any] = []

    def add(self, first: int, last: int) -> None:
        """Events with the ids `first`-0 to `last`-0."""
        with holder_of(self.redis, STREAM).pipeline(transaction=False) as pipe:
            for number in range(first, last + 1):
                pipe.xadd(STREAM, {"n": number}, id=f"{number}-0")
            pipe.execute()

    def read(self, group: str, count: int, ack: int | None = None) -> None:
        """Somebody reads so many in a group, and acknowledges so many of them, by default all."""
        if not any(each["name"] == group.encode() for each in self.redis.xinfo_groups(STREAM)):
            self.redis.xgroup_create(STREAM, group, "0")
        ids = [each for each, _ in self.redis.xreadgroup(group, "someone", {STREAM: ">"}, count=count)[0][1]]
        done = ids if ack is None else ids[:ack]
        if done:
            self.redis.xack(STREAM, group, *done)

    def tell(self, position: str, group: str = "g") -> None:
        events = EventStream(self.endpoint, STREAM, group)
        self._open.append(events)
        events.tell(position)

    def trim(self, *groups: str, me: str = "me", lease_ms: int = 60_000, **given: Any) -> Trimmed:
        """Steps until nothing more goes; what the last one says, with the sums of all."""
        options = {"retain_for": None, "longest_silence": None, "hard": False, **given}
        trimmer = StreamTrimmer(self.endpoint, retention(STREAM, **options), groups, me)
        self._open.append(trimmer)
        gone = dropped = 0
        while True:
            done = trimmer.step(lease_ms)
            gone, dropped = gone + done.gone, dropped + done.dropped
            if done.gone == 0:
                return done._replace(gone=gone, dropped=dropped)

    @property
    def first(self) -> int:
        return int(self.redis.xrange(STREAM, count=1)[0][0].split(b"-")[0])

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture
def stream(server: Server, redis: Any) -> Iterator[Stream]:
    made = Stream(server, redis)
    yield made
    made.close()


def test_what_nobody_reads_is_kept_by_its_length(stream: Stream) -> None:
    stream.add(1, 1000)
    assert stream.trim(retain=300) == Trimmed(gone=700)
    assert stream.redis.xlen(STREAM) == 300
    stream.add(1001, 1050)
    assert stream.trim(retain=300).gone == 0, "whole blocks go, and none other"
    stream.add(1051, 1120)
    assert stream.trim(retain=300).gone == BLOCK
    assert stream.redis.xlen(STREAM) == 320


def test_by_age_all_goes_that_is_older(stream: Stream) -> None:
    stream.add(1, 250)
    stream.redis.xadd(STREAM, {"n": "young"})
    assert stream.trim(retain=timedelta(hours=1)) == Trimmed(gone=250)
    assert stream.redis.xlen(STREAM) == 1


@pytest.mark.parametrize("retain", [10, timedelta(seconds=1)])
def test_what_a_group_has_not_read_stays(stream: Stream, retain: Any) -> None:
    stream.add(1, 1000)
    stream.read("quick", 1000)
    stream.read("slow", 455)
    done = stream.trim(retain=retain)
    assert (done.held_by, done.why, done.dropped) == ("slow", "unread", 0)
    assert stream.first <= 456
    assert stream.first > 455 - BLOCK
    stream.read("slow", 545)
    assert stream.trim(retain=retain).held_by == ""
    assert stream.redis.xlen(STREAM) < BLOCK + 10


@pytest.mark.parametrize("retain", [10, timedelta(seconds=1)])
def test_what_is_not_acknowledged_stays(stream: Stream, retain: Any) -> None:
    stream.add(1, 1000)
    stream.read("g", 1000, ack=640)
    done = stream.trim(retain=retain)
    assert (done.held_by, done.why) == ("g", "pending")
    assert 640 - BLOCK < stream.first <= 641


def test_a_group_that_was_made_behind_what_is_there_holds_nothing(stream: Stream) -> None:
    stream.add(1, 500)
    stream.redis.xgroup_create(STREAM, "new", "$")
    assert stream.trim(retain=100) == Trimmed(gone=400)


def test_entries_that_were_deleted_are_no_unread_ones(stream: Stream) -> None:
    """After an XDEL the server cannot tell how many a group has not read."""
    stream.add(1, 1000)
    stream.read("g", 900)
    stream.redis.xdel(STREAM, *(f"{number}-0" for number in (3, 905, 950)))
    done = stream.trim(retain=10)
    assert done.held_by == "g"
    assert 900 - BLOCK < stream.first <= 901


def test_whose_reading_counts_can_be_said(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.read("audit", 100)
    stream.read("mail", 900)
    assert stream.trim(retain=10, retain_for=["mail"]).held_by == "mail"
    assert 800 < stream.first <= 901


@pytest.mark.parametrize("how", ["named", "of a source"])
def test_while_a_group_that_counts_is_missing_nothing_goes(stream: Stream, how: str) -> None:
    stream.add(1, 1000)
    stream.read("there", 1000)
    done = stream.trim(retain=10, retain_for=["lost"]) if how == "named" else stream.trim("lost", retain=10)
    assert done == Trimmed(held_by="lost", why="missing")
    stream.redis.xgroup_create(STREAM, "lost", "500-0")
    assert stream.trim("lost", retain=10).gone == 500


def test_a_group_that_is_silent_counts_no_more(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.read("left", 100)
    stream.read("idle", 1000)
    assert stream.trim(retain=10, longest_silence=3600).held_by == "left"
    for group in ("left", "idle"):
        seen, _ = stream.redis.hget(ABOUT, f"seen:{group}").split()
        stream.redis.hset(ABOUT, f"seen:{group}", seen + b" 1")
    done = stream.trim(retain=10, longest_silence=3600)
    assert (done.held_by, done.silent) == ("", ("left",)), "the other one has read all there is"
    assert stream.redis.xlen(STREAM) == BLOCK


def test_a_group_that_moves_is_not_silent(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.read("slow", 100)
    stream.trim(retain=10, longest_silence=3600)
    stream.redis.hset(ABOUT, "seen:slow", "101-0 1")
    stream.read("slow", 1)
    done = stream.trim(retain=10, longest_silence=3600)
    assert (done.held_by, done.silent) == ("slow", ())


def test_a_missing_group_is_silent_in_the_end(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.trim("lost", retain=10, longest_silence=3600)
    stream.redis.hset(ABOUT, "seen:lost", "0-0 1")
    assert stream.trim("lost", retain=10, longest_silence=3600) == Trimmed(gone=900, silent=("lost",))


def test_hard_drops_and_counts(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.read("slow", 455)
    done = stream.trim(retain=200, hard=True)
    assert (done.gone, done.dropped) == (800, 345)
    (info,) = trimmed(Link(stream.endpoint, 20), [STREAM, "{others}"])
    assert (info.length, info.trimmed, info.dropped) == (200, 800, 345)


def test_hard_by_age_drops_and_counts(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.redis.xadd(STREAM, {"n": "young"})
    stream.read("slow", 455)
    done = stream.trim(retain=timedelta(hours=1), hard=True)
    assert (done.gone, done.dropped, stream.redis.xlen(STREAM)) == (1000, 545, 1)


def test_who_holds_it_back_can_be_seen(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.read("slow one", 100)
    stream.trim(retain=10)
    link = Link(stream.endpoint, 20)
    (info,) = trimmed(link, [STREAM])
    assert (info.held_by, info.why) == ("slow one", "unread")
    stream.read("slow one", 900)
    stream.trim(retain=10)
    (info,) = trimmed(link, [STREAM])
    assert (info.held_by, info.trimmed, info.dropped) == ("", 900, 0)
    link.close()


def test_what_rsq_has_not_read_stays_though_others_move_its_group(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.tell("300-0")
    stream.redis.xreadgroup("g", "by-hand", {STREAM: ">"}, noack=True)
    done = stream.trim(retain=10)
    assert (done.held_by, done.why) == ("g", "unread")
    assert 200 < stream.first <= 301
    stream.tell("1000-0")
    assert stream.trim(retain=10).held_by == ""
    assert stream.redis.ttl(ABOUT) > 0


def test_a_group_that_rsq_has_left_is_that_of_others(stream: Stream) -> None:
    stream.add(1, 1000)
    stream.tell("300-0")
    stream.redis.hset(ABOUT, "read:g", "300-0 1")
    stream.redis.xreadgroup("g", "by-hand", {STREAM: ">"}, noack=True)
    assert stream.trim(retain=10) == Trimmed(gone=900)


def test_telling_makes_no_stream(stream: Stream) -> None:
    stream.tell("3-0")
    assert not stream.redis.exists(STREAM)
    stream.add(1, 5)
    stream.tell("3-0")
    (group,) = stream.redis.xinfo_groups(STREAM)
    assert (group["name"], group["last-delivered-id"], group["consumers"]) == (b"g", b"3-0", 0)


def test_one_of_several_trims(stream: Stream) -> None:
    stream.add(1, 1000)
    assert stream.trim(retain=900).gone == 100
    other = stream.trim(retain=100, me="another")
    assert other.gone == 0
    assert 0 < other.wait_ms <= 60_000
    stream.trim(retain=900, lease_ms=0)
    assert stream.trim(retain=100, me="another").gone == 800


def test_a_stream_that_is_not_there_is_nobody_s(stream: Stream) -> None:
    assert stream.trim(retain=10) == Trimmed()
    assert stream.trim("g", retain=timedelta(days=1)) == Trimmed()
    assert not stream.redis.exists(STREAM)


def test_what_is_no_stream_is_left_alone(stream: Stream) -> None:
    stream.redis.set(STREAM, "x")
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        stream.trim(retain=10)
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        stream.tell("1-0")
    assert stream.redis.keys("*") == [STREAM.encode()]


def test_ids_of_all_sizes_are_compared(stream: Stream) -> None:
    big = 2**64 - 1
    for number in ("9-5", f"9-{big}", "10-0", f"{big - 1}-3", f"{big - 1}-{big - 1}", f"{big}-0"):
        stream.redis.xadd(STREAM, {"n": 1}, id=number)
    stream.redis.xgroup_create(STREAM, "g", f"{big - 1}-3")
    stream.trim(retain=timedelta(seconds=1))
    left = [each.decode() for each, _ in stream.redis.xrange(STREAM)]
    assert left == [f"{big - 1}-3", f"{big - 1}-{big - 1}", f"{big}-0"][-len(left) :]
    assert f"{big - 1}-{big - 1}" in left


def test_large_steps_are_bounded(stream: Stream) -> None:
    stream.add(1, 25_000)
    trimmer = StreamTrimmer(stream.endpoint, retention(STREAM, 0, None, None, False), (), "me")
    steps = [trimmer.step(1000) for _ in range(4)]
    trimmer.close()
    assert [(each.gone, each.more) for each in steps] == [(10_000, True), (10_000, True), (5000, True), (0, False)]


@not_on_cluster("the memory of its nodes is not set one by one")
def test_a_full_server_is_trimmed(own_server: Any) -> None:
    server = own_server(config={"maxmemory-policy": "noeviction"})
    with server.client() as redis:
        stream = Stream(server, redis)
        stream.add(1, 1000)
        stream.trim(retain=1000)
        redis.config_set("maxmemory", 1)
        assert stream.trim(retain=100).gone == 900
        stream.close()
