"""feed: calls of events and how far their source was read, in one step."""

from __future__ import annotations

from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.broker.queue_control import purge
from rsq.broker.replies import Begin
from rsq.broker.rows import Fed
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery, pack_meta
from rsq.calls.outcome import Buried, Completed, Released, Retried, revoked
from rsq.errors import BrokerRefused
from tests.broker.conftest import HOUR_MS, Rig, completed, entry

SOURCE = "g:events"


def feed(
    rig: Rig,
    *ids: str,
    after: str = "",
    upto: str = "",
    feeder: str = "me",
    lease_ms: int = HOUR_MS,
    window: int = 100,
    key: str = "",
) -> tuple[str, str, int]:
    rows = [Fed(each.encode(), b"body", b"", key, pack_meta({"begin": True})) for each in ids]
    head = (SOURCE, feeder, lease_ms, window, HOUR_MS, 1, 0, 0, "tests.task", after, upto)
    who, position, number, full = rig.run(scripts.FEED, *head, *(part for row in rows for part in row))
    assert full == b""
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


def test_rows_of_a_source_without_rules_end_with_the_body(rig: Rig) -> None:
    head = (SOURCE, "me", HOUR_MS, 100, HOUR_MS, 0, 0, 0, "tests.task", "", "5-1")
    assert rig.run(scripts.FEED, *head, *("a", b"body"), *("b", b"body"))[2] == 98
    assert state(rig) == {"stream": [entry("a"), entry("b")], "sources": {SOURCE: "5-1"}, "stats": {"fed": "2"}}


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


# -- events with the same id


def feed_one(rig: Rig, task_id: str) -> None:
    """One more event, with the id k."""
    _, position, _ = feed(rig)
    feed(rig, task_id, after=position, upto=f"{int(position.partition('-')[0] or 0) + 1}-0", key="k")


def counters(rig: Rig) -> dict[str, int]:
    found = {name.decode(): int(number) for name, number in rig.redis.hgetall(rig.keys.stats).items()}
    return {name: number for name, number in found.items() if name != "wakes"}


def get(rig: Rig) -> Delivery:
    (delivery,) = rig.get("alice")
    return delivery


def begin(rig: Rig, delivery: Delivery) -> Begin:
    return rig.begin("alice", delivery, Rules())


@pytest.fixture
def hired(rig: Rig) -> Rig:
    rig.hire("alice")
    return rig


def test_one_that_comes_after_the_end_is_left_out(hired: Rig) -> None:
    feed_one(hired, "a")
    hired.commit("alice", completed(get(hired)))
    assert 0 < hired.ttl_ms("dedupe:key:k") <= HOUR_MS
    feed_one(hired, "b")
    assert (hired.ready(), counters(hired)) == ([], {"fed": 1, "succeeded": 1, "duplicate": 1})
    assert "calls" not in hired.snapshot()


def test_one_that_comes_before_the_end_waits_for_it(hired: Rig) -> None:
    feed_one(hired, "a")
    first = get(hired)
    assert first.meta == {}
    assert hired.ttl_ms("dedupe:key:k") > HOUR_MS
    feed_one(hired, "b")
    twin = get(hired)
    assert twin.meta == {"begin": True}
    assert begin(hired, twin) == Begin("wait", wait_ms=5000, why="twin")
    hired.commit("alice", Retried(twin, "limited", twin.meta, HOUR_MS, ""))
    hired.commit("alice", completed(first))
    hired.ripen("b")
    twin = get(hired)
    assert begin(hired, twin) == Begin("superseded", why="a")
    hired.commit("alice", Completed(twin, "superseded", b"", 0))
    assert counters(hired) == {"fed": 2, "succeeded": 1, "limited": 1, "superseded": 1}
    assert "calls" not in hired.snapshot()
    assert hired.redis.get(f"{hired.keys.prefix}:dedupe:key:k") == b"a"


def test_of_two_in_one_step_one_waits(hired: Rig) -> None:
    feed(hired, "a", "b", upto="5-0", key="k")
    first, twin = hired.get("alice")
    assert (first.id, first.meta, twin.id, twin.meta) == ("a", {}, "b", {"begin": True})
    assert begin(hired, twin).why == "twin"
    hired.commit("alice", completed(first), completed(twin))


def is_revoked(rig: Rig, first: Delivery) -> None:
    rig.link.run_one(rig.queue.revoke_call(["a"], False))
    rig.commit("alice", revoked(first))


def is_purged(rig: Rig, first: Delivery) -> None:
    rig.commit("alice", Released(first))
    assert purge(rig.link, rig.queue) == 1


def expires(rig: Rig, first: Delivery) -> None:
    rig.commit("alice", Completed(first, "expired", b"", 0))


@pytest.mark.parametrize("way", [is_revoked, is_purged, expires])
def test_where_the_first_never_ran_the_next_one_does(hired: Rig, way: Any) -> None:
    feed_one(hired, "a")
    way(hired, get(hired))
    assert hired.ttl_ms("dedupe:key:k") == -2
    feed_one(hired, "b")
    hired.commit("alice", completed(get(hired)))


def test_a_twin_takes_the_place_of_one_that_never_ran(hired: Rig) -> None:
    feed(hired, "a", "b", upto="5-0", key="k")
    first, twin = hired.get("alice")
    is_revoked(hired, first)
    assert begin(hired, twin) == Begin("go")
    assert hired.ttl_ms("dedupe:key:k") > HOUR_MS
    hired.commit("alice", completed(twin))
    feed_one(hired, "c")
    assert hired.ready() == []


def buried(delivery: Delivery) -> Buried:
    return Buried(delivery, "failed", {}, b"", 0)


def test_a_dead_letter_keeps_its_id_and_comes_back_with_it(hired: Rig) -> None:
    feed_one(hired, "a")
    hired.commit("alice", buried(get(hired)))
    feed_one(hired, "b")
    assert hired.ready() == []
    (letter,) = hired.redis.xrange(hired.keys.dead)
    assert hired.run(scripts.REDRIVE, letter[0], b"") == [b"sent", b"a"]
    feed_one(hired, "c")
    first, twin = hired.get("alice")
    assert begin(hired, twin).why == "twin"
    hired.commit("alice", completed(first), completed(twin))
    hired.redis.delete(hired.keys.dead)


def test_the_same_event_runs_whatever_is_remembered(hired: Rig) -> None:
    """Of a stream that was made anew, with the same ids."""
    feed_one(hired, "a")
    hired.commit("alice", completed(get(hired)))
    feed_one(hired, "a")
    hired.commit("alice", completed(get(hired)))
    assert counters(hired) == {"fed": 2, "succeeded": 2}


def test_a_retry_keeps_the_id(hired: Rig) -> None:
    feed_one(hired, "a")
    hired.commit("alice", Retried(get(hired), "retried", {"attempt": 2}, HOUR_MS, ""))
    feed_one(hired, "b")
    twin = get(hired)
    assert begin(hired, twin).why == "twin"
    hired.ripen("a")
    hired.commit("alice", completed(get(hired)), completed(twin))


# -- events with an order


def feed_in_order(rig: Rig, *ids: str, most: int = 100, delayed: int = 100) -> tuple[str, int, str]:
    """Events whose ids begin with their order, such as a1; in the stream they have the ids 1-0, 2-0 and so on."""
    position = (rig.redis.hget(rig.keys.sources, SOURCE) or b"0-0").decode()
    first = int(position.partition("-")[0]) + 1
    rows = [
        Fed(each.encode(), b"body", b"", "", b"", each[0], f"{first + place}-0".encode())
        for place, each in enumerate(ids)
    ]
    after = position if rig.redis.hexists(rig.keys.sources, SOURCE) else ""
    upto = rows[-1].event_id if rows else ""
    head = (SOURCE, "me", HOUR_MS, 100, HOUR_MS, 1, most, delayed, "tests.task", after, upto)
    _, position, number, full = rig.run(scripts.FEED, *head, *(part for row in rows for part in row))
    return position.decode(), number, full.decode()


def handed_out(rig: Rig) -> list[Delivery]:
    return rig.get("alice")


def run_in_turn(rig: Rig, *ids: str) -> None:
    """Each is handed out alone, once the one before it has ended."""
    for expected in ids:
        (running,) = handed_out(rig)
        assert running.id == expected
        rig.commit("alice", completed(running))


def ids_of(deliveries: list[Delivery]) -> list[str]:
    return [each.id for each in deliveries]


def line(rig: Rig, order: str) -> list[bytes]:
    found: list[bytes] = rig.redis.zrange(f"{rig.keys.prefix}:line:{order}", 0, -1)
    return found


def test_of_each_order_one_is_handed_out_at_a_time(hired: Rig) -> None:
    assert feed_in_order(hired, "a1", "b1", "a2", "a3", "b2") == ("5-0", 97, "")
    first = handed_out(hired)
    assert ids_of(first) == ["a1", "b1"]
    assert handed_out(hired) == []
    hired.commit("alice", completed(first[0]))
    second = handed_out(hired)
    assert ids_of(second) == ["a2"]
    hired.commit("alice", completed(first[1]), completed(second[0]))
    third = handed_out(hired)
    assert sorted(ids_of(third)) == ["a3", "b2"]
    feed_in_order(hired, "a4")
    hired.commit("alice", *map(completed, third))
    last = handed_out(hired)
    assert ids_of(last) == ["a4"]
    hired.commit("alice", completed(last[0]))
    assert not {"delayed", "messages", "calls"} & {*state(hired)}
    assert (line(hired, "a"), line(hired, "b")) == ([], [])
    assert counters(hired) == {"fed": 6, "succeeded": 6}


def test_a_retry_keeps_its_place(hired: Rig) -> None:
    feed_in_order(hired, "a1", "a2")
    (first,) = handed_out(hired)
    hired.commit("alice", Retried(first, "retried", {"attempt": 2}, HOUR_MS, ""))
    assert handed_out(hired) == []
    hired.ripen("a1")
    run_in_turn(hired, "a1", "a2")


def deletes_what_is_ready(rig: Rig) -> None:
    rig.redis.xtrim(rig.keys.stream(), maxlen=0)


def deletes_what_runs(rig: Rig) -> None:
    (first,) = handed_out(rig)
    rig.redis.xdel(rig.keys.stream(), first.entry_id)
    rig.commit("alice", Retried(first, "retried", {"attempt": 2}, HOUR_MS, ""))


def deletes_what_is_delayed(rig: Rig) -> None:
    (first,) = handed_out(rig)
    rig.commit("alice", Retried(first, "retried", {"attempt": 2}, HOUR_MS, ""))
    rig.redis.hdel(rig.keys.messages, first.id)
    rig.redis.zrem(rig.keys.delayed, first.id)


@pytest.mark.parametrize("deletes", [deletes_what_is_ready, deletes_what_runs, deletes_what_is_delayed])
def test_a_line_goes_on_where_somebody_deletes_its_first_call(hired: Rig, deletes: Any) -> None:
    feed_in_order(hired, "a1", "a2", "a3")
    deletes(hired)
    assert handed_out(hired) == []
    feed_in_order(hired)
    run_in_turn(hired, "a2", "a3")
    assert line(hired, "a") == []
    assert not {"delayed", "messages", "calls"} & {*state(hired)}


def test_a_line_waits_for_a_first_call_that_is_somewhere(hired: Rig) -> None:
    feed_in_order(hired, "a1", "a2")
    feed_in_order(hired)
    (first,) = handed_out(hired)
    feed_in_order(hired)
    hired.commit("alice", Retried(first, "retried", {"attempt": 2}, HOUR_MS, ""))
    feed_in_order(hired)
    assert handed_out(hired) == []
    hired.ripen("a1")
    (again,) = handed_out(hired)
    hired.take("alice", again)
    feed_in_order(hired)
    assert handed_out(hired) == []
    again.taken = True
    hired.commit("alice", completed(again))
    (second,) = handed_out(hired)
    assert second.id == "a2"
    hired.commit("alice", completed(second))


def test_a_dead_letter_takes_the_last_place_when_it_is_sent_again(hired: Rig) -> None:
    feed_in_order(hired, "a1", "a2", "a3", "b1")
    first, other = handed_out(hired)
    hired.commit("alice", buried(first), completed(other))
    (letter,) = dead_letters(hired.link, hired.queue)
    assert redrive(hired.link, hired.queue, letter)
    assert line(hired, "a") == [b"a2", b"a3", b"a1"]
    run_in_turn(hired, "a2", "a3", "a1")
    assert line(hired, "a") == []


def test_a_dead_letter_of_which_nothing_waits_runs_at_once_when_it_is_sent_again(hired: Rig) -> None:
    feed_in_order(hired, "a1")
    hired.commit("alice", buried(get(hired)))
    (letter,) = dead_letters(hired.link, hired.queue)
    assert redrive(hired.link, hired.queue, letter)
    feed_in_order(hired, "a2")
    run_in_turn(hired, "a1", "a2")


@pytest.mark.parametrize("key", ["line:a", "delayed", "messages"])
def test_a_dead_letter_is_not_half_sent(hired: Rig, key: str) -> None:
    feed_in_order(hired, "a1")
    hired.commit("alice", buried(get(hired)))
    (letter,) = dead_letters(hired.link, hired.queue)
    hired.redis.set(f"{hired.keys.prefix}:{key}", "x")
    before = hired.dumps()
    with pytest.raises(BrokerRefused):
        redrive(hired.link, hired.queue, letter)
    assert hired.dumps() == before
    hired.redis.delete(f"{hired.keys.prefix}:{key}", hired.keys.dead)


def test_one_whose_worker_died_keeps_its_place(hired: Rig) -> None:
    feed_in_order(hired, "a1", "a2")
    assert ids_of(handed_out(hired)) == ["a1"]
    hired.lapse("alice")
    hired.hire("bob")
    (again,) = hired.get("bob")
    assert again.id == "a1"
    hired.commit("bob", completed(again))
    (second,) = hired.get("bob")
    hired.commit("bob", completed(second))


@pytest.mark.parametrize("way", [is_revoked, expires, lambda rig, first: rig.commit("alice", buried(first))])
def test_however_the_first_ends_the_next_one_follows(hired: Rig, way: Any) -> None:
    feed_in_order(hired, "a", "b")
    feed_in_order(hired, "ax", "bx")
    first, other = handed_out(hired)
    way(hired, first)
    (second,) = handed_out(hired)
    assert second.id == "ax"
    hired.commit("alice", completed(second), completed(other))
    hired.commit("alice", completed(get(hired)))
    hired.redis.delete(hired.keys.dead)


def test_one_that_waits_can_be_taken_out(hired: Rig) -> None:
    feed_in_order(hired, "a1", "a2", "a3")
    (first,) = handed_out(hired)
    hired.link.run_one(hired.queue.revoke_call(["a2"], False))
    assert line(hired, "a") == [b"a1", b"a3"]
    hired.commit("alice", completed(first))
    last = get(hired)
    assert last.id == "a3"
    hired.commit("alice", completed(last))


def test_what_is_purged_leaves_no_line(hired: Rig) -> None:
    feed_in_order(hired, "a1", "a2", "b1", "a3", "b2")
    assert purge(hired.link, hired.queue) == 5
    assert (line(hired, "a"), line(hired, "b"), hired.ready()) == ([], [], [])
    feed_in_order(hired, "a4")
    hired.commit("alice", completed(get(hired)))


def test_a_full_order_stops_the_source_at_its_event(hired: Rig) -> None:
    assert feed_in_order(hired, "a1", "a2", "a3", "b1", most=2) == ("2-0", 0, "a")
    assert feed_in_order(hired, "a3", "b1", most=2) == ("2-0", 0, "a")
    hired.commit("alice", completed(get(hired)))
    assert feed_in_order(hired, "a3", "b1", most=2) == ("4-0", 98, "")
    assert counters(hired)["fed"] == 4
    ended = 1
    while deliveries := handed_out(hired):
        ended += len(deliveries)
        hired.commit("alice", *map(completed, deliveries))
    assert (ended, line(hired, "a"), line(hired, "b")) == (4, [], [])


def test_what_waits_in_all_orders_is_bounded(hired: Rig) -> None:
    assert feed_in_order(hired, "a1", "a2", "a3", delayed=2) == ("3-0", 0, "*")
    first = get(hired)
    hired.commit("alice", completed(first))
    second = get(hired)
    assert feed_in_order(hired, delayed=2) == ("3-0", 1, "")
    hired.commit("alice", completed(second))
    hired.commit("alice", completed(get(hired)))
    assert feed_in_order(hired, delayed=2) == ("3-0", 2, "")


def test_of_an_id_that_was_done_nothing_waits(hired: Rig) -> None:
    """A line has no place for an event that is left out."""
    rows = [Fed(each.encode(), b"body", b"", "k", pack_meta({"begin": True}), "a", b"1-0") for each in ("one", "twin")]
    head = (SOURCE, "me", HOUR_MS, 100, HOUR_MS, 1, 100, 100, "tests.task", "", "1-0")
    hired.run(scripts.FEED, *head, *(part for row in rows for part in row))
    hired.commit("alice", completed(get(hired)))
    twin = get(hired)
    assert begin(hired, twin) == Begin("superseded", why="one")
    hired.commit("alice", Completed(twin, "superseded", b"", 0))
    assert line(hired, "a") == []


def test_an_event_that_is_in_its_line_already_runs(hired: Rig) -> None:
    """Of a stream that was made anew, with the same ids."""
    feed_in_order(hired, "a1", "a2")
    feed_in_order(hired, "a1")
    first, again = handed_out(hired)
    hired.commit("alice", completed(first), completed(again))
    hired.commit("alice", completed(get(hired)))
    assert line(hired, "a") == []
