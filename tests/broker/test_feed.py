"""feed: calls of events and how far their source was read, in one step."""

from __future__ import annotations

from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.rows import Fed
from tests.broker.conftest import HOUR_MS, Rig, entry

SOURCE = "g:events"


def feed(
    rig: Rig,
    *ids: str,
    after: str = "",
    upto: str = "",
    feeder: str = "me",
    lease_ms: int = HOUR_MS,
    window: int = 100,
) -> tuple[str, str, int]:
    rows = [Fed(each, "tests.task", b"body", b"") for each in ids]
    head = (SOURCE, feeder, lease_ms, window, after, upto)
    who, position, number = rig.run(scripts.FEED, *head, *(part for row in rows for part in row))
    return who.decode(), position.decode(), number


def state(rig: Rig) -> dict[str, Any]:
    found = rig.snapshot()
    found.pop(f"feeder:{SOURCE}", None)
    return found


def test_calls_and_position_are_one_step(rig: Rig) -> None:
    assert feed(rig) == ("you", "", 100)
    assert feed(rig, upto="0-0") == ("you", "0-0", 100)
    assert feed(rig, "a", "b", after="0-0", upto="5-1") == ("you", "5-1", 98)
    assert state(rig) == {"stream": [entry("a"), entry("b")], "sources": {SOURCE: "5-1"}, "stats": {"fed": "2"}}
    assert 0 < rig.ttl_ms(f"feeder:{SOURCE}") <= HOUR_MS


def test_twice_it_feeds_once(rig: Rig) -> None:
    feed(rig, "a", upto="5-1")
    before = state(rig)
    assert feed(rig, "a", upto="5-1") == ("you", "5-1", 99)
    assert feed(rig, "z", after="4-0", upto="4-1") == ("you", "5-1", 99)
    assert state(rig) == before


def test_another_feeder_changes_nothing_while_the_lease_runs(rig: Rig) -> None:
    feed(rig, "a", upto="5-1")
    before = rig.dumps()
    who, position, left_ms = feed(rig, "b", after="5-1", upto="6-1", feeder="you")
    assert (who, position) == ("other", "5-1")
    assert 0 < left_ms <= HOUR_MS
    assert rig.dumps() == before
    assert feed(rig, feeder="you", lease_ms=0)[0] == "other"
    assert feed(rig, lease_ms=0)[0] == "you"
    assert feed(rig, "b", after="5-1", upto="6-1", feeder="you") == ("you", "6-1", 98)


def test_one_that_feeds_late_does_no_harm(rig: Rig) -> None:
    """Its lease has run out, and another one has fed the same events since."""
    feed(rig, upto="0-0", lease_ms=1)
    rig.redis.delete(f"{rig.keys.prefix}:feeder:{SOURCE}")
    feed(rig, "a", "b", after="0-0", upto="5-1", feeder="you", lease_ms=0)
    assert feed(rig, "a", after="0-0", upto="4-1") == ("you", "5-1", 98)
    assert rig.ready() == ["a", "b"]


def test_the_window_counts_what_waits_for_a_worker(rig: Rig) -> None:
    rig.hire("alice")
    assert feed(rig, *"abcdef", upto="6-0", window=5) == ("you", "6-0", 0)
    rig.get("alice", room=4)
    assert feed(rig, window=5) == ("you", "6-0", 3)


@pytest.mark.parametrize("how", ["pause", "refuse"])
def test_a_paused_queue_asks_for_no_more(rig: Rig, how: str) -> None:
    """What is on its way is taken: nobody hands it out."""
    feed(rig, upto="0-0")
    rig.redis.set(rig.keys.paused, how)
    assert feed(rig, "a", after="0-0", upto="5-1") == ("you", "5-1", 0)
    assert rig.ready() == ["a"]


def test_a_queue_that_lies_elsewhere_is_not_fed(rig: Rig) -> None:
    rig.redis.set(rig.keys.paused, "moved")
    before = rig.dumps()
    assert feed(rig, "a", upto="5-1") == ("moved", "", 0)
    assert rig.dumps() == before


@pytest.mark.parametrize("key", ["stream", "sources", f"feeder:{SOURCE}"])
def test_nothing_is_half_done(rig: Rig, key: str) -> None:
    rig.redis.rpush(f"{rig.keys.prefix}:{key}", "x")
    before = rig.dumps()
    with pytest.raises(Exception, match="WRONGTYPE"):
        feed(rig, "a", upto="5-1")
    assert rig.dumps() == before
    rig.redis.flushall()


def test_a_counter_that_nobody_can_read_stops_nothing(rig: Rig) -> None:
    rig.redis.set(rig.keys.stats, "x")
    assert feed(rig, "a", upto="5-1") == ("you", "5-1", 99)
    rig.redis.delete(rig.keys.stats)
