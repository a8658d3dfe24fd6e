"""One slot is fired once: the scripts and the store, on the real server."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from rsq import App
from rsq.beat.entry import Record, slot_id
from rsq.beat.store import LastRun, Store
from rsq.broker import scripts
from rsq.errors import DecodeError
from tests.beat.conftest import SECOND_MS, MakeApp, calls, record, written


def slot_of(app: App, seconds_ago: int = 0) -> int:
    return app.client.now_ms() // SECOND_MS * SECOND_MS - seconds_ago * SECOND_MS


def verdicts(store: Store, app: App, *slots: tuple[Record, int]) -> list[str]:
    return [fired.verdict for fired in store.fire(slots, app.client.now_ms())]


# -- fire


def test_a_slot_becomes_a_call(app: App, store: Store) -> None:
    kept, slot = written(store, record(app)), slot_of(app)
    (fired,) = store.fire([(kept, slot)], app.client.now_ms())
    assert (fired.verdict, fired.detail) == ("fired", slot_id("s", slot))
    assert calls(app) == [f"s:{slot}"]
    assert app.client.queue_names() == ["default"]


def test_a_slot_is_fired_once(app: App, store: Store) -> None:
    kept, slot = written(store, record(app)), slot_of(app)
    assert verdicts(store, app, (kept, slot), (kept, slot)) == ["fired", "done"]
    assert verdicts(store, app, (kept, slot)) == ["done"]
    assert verdicts(store, app, (kept, slot - SECOND_MS)) == ["done"], "what lies before it is past, too"
    assert calls(app) == [f"s:{slot}"]


def test_a_slot_that_no_replica_confirms_stands(app: App, redis: Any) -> None:
    """It is fired once more, in vain, in case that the master is another one by then."""
    with app.configured(wait_replicas=1, broker_timeout_s=0.2):
        store = Store(app.client)
        kept, slot = written(store, record(app)), slot_of(app)
        waits = int(redis.info("commandstats").get("cmdstat_wait", {}).get("calls", 0))
        assert verdicts(store, app, (kept, slot), (kept, slot)) == ["fired", "done"]
        assert redis.info("commandstats")["cmdstat_wait"]["calls"] == waits + 2
        assert calls(app) == [f"s:{slot}"]


def test_many_beats_at_once_fire_each_slot_once(make_app: MakeApp) -> None:
    apps = [make_app() for _ in range(4)]
    store = Store(apps[0].client)
    kept = [written(store, record(apps[0], f"s{number}", queue=f"q{number % 3}")) for number in range(6)]
    first = slot_of(apps[0], 40)
    slots = [(each, first + number * SECOND_MS) for number in range(40) for each in kept]
    everybody = threading.Barrier(len(apps))

    def beat(app: App) -> None:
        everybody.wait()
        Store(app.client).fire(slots, app.client.now_ms())

    threads = [threading.Thread(target=beat, args=(app,)) for app in apps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted(task_id for number in range(3) for task_id in calls(apps[0], f"q{number}"))
    assert found == sorted(slot_id(each.name, slot) for each, slot in slots)


def test_nothing_is_fired_before_its_time(app: App, store: Store) -> None:
    kept, slot = written(store, record(app)), slot_of(app, -60)
    (fired,) = store.fire([(kept, slot)], app.client.now_ms())
    assert fired.verdict == "early"
    assert 0 < int(fired.detail) <= 60 * SECOND_MS
    assert calls(app) == []


def test_nothing_is_fired_from_before_it_was_added(app: App, store: Store) -> None:
    kept = written(store, record(app))
    assert verdicts(store, app, (kept, kept.since_ms), (kept, kept.since_ms - 1)) == ["done", "done"]
    assert calls(app) == []


def test_a_countdown_counts_from_the_slot(app: App, store: Store) -> None:
    kept, slot = written(store, record(app, countdown=600)), slot_of(app, 5)
    assert verdicts(store, app, (kept, slot)) == ["fired"]
    with app.client.link() as link:
        (due,) = link.call("ZRANGE", app.client.queue(None).keys.delayed, 0, -1, "WITHSCORES")[1::2]
    assert int(due) == slot + 600 * SECOND_MS


def test_a_full_queue_and_a_taken_key_pass_a_slot_over(app: App, store: Store) -> None:
    bounded = written(store, record(app, "bounded", max_length=1))
    keyed = written(store, record(app, "keyed", dedupe_key="one", queue="other"))
    first, second = slot_of(app, 1), slot_of(app)
    assert verdicts(store, app, (bounded, first), (bounded, second), (bounded, second)) == ["fired", "full", "done"]
    assert verdicts(store, app, (keyed, first), (keyed, second), (keyed, second)) == ["fired", "duplicate", "done"]
    assert calls(app) == [f"bounded:{first}"]
    assert calls(app, "other") == [f"keyed:{first}"]


def test_a_key_that_is_kept_until_the_call_is_done_passes_over_no_more_than_that(app: App, url: str) -> None:
    """A schedule whose calls must not overlap: without a release it would rest for a day after its first one."""
    with app.testing.isolated(url):
        store = Store(app.client)
        kept = written(store, record(app, dedupe_key="one", dedupe_until="done"))
        first = slot_of(app, 3)
        assert verdicts(store, app, (kept, first), (kept, first + SECOND_MS)) == ["fired", "duplicate"]
        with app.testing.worker():
            assert app.AsyncResult(slot_id("s", first), "default").get(timeout=30) == "s"
        assert verdicts(store, app, (kept, first + 2 * SECOND_MS)) == ["fired"]


def test_a_trigger_keeps_the_key_as_a_slot_does(app: App, url: str) -> None:
    with app.testing.isolated(url):
        app.schedules.add("mine", 3600, "note", ("x",), dedupe_key="one", dedupe_until="done")
        sent = app.schedules.trigger("mine")
        assert app.schedules.trigger("mine").id == sent.id
        with app.testing.worker():
            assert sent.get(timeout=30) == "x"
        assert app.schedules.trigger("mine").id != sent.id


def test_it_wakes_a_worker_that_blocks(app: App, store: Store) -> None:
    """A first message of a new priority goes into a stream that nobody reads yet."""
    urgent = replace(record(app), priority=9)
    queue = app.client.queue(None)
    with app.client.link() as link:
        link.run(scripts.REGISTER, queue.keys.prefix, "alice", 60_000)
        assert verdicts(store, app, (written(store, urgent), slot_of(app))) == ["fired"]
        assert link.call("XLEN", queue.keys.stream(9)) == 1
        assert [fields[0] for _, fields in link.call("XRANGE", queue.keys.stream(), "-", "+")] == [b"wake"]


# -- definitions that change


def test_an_old_definition_fires_nothing_any_more(app: App, store: Store) -> None:
    old, slot = written(store, record(app)), slot_of(app, 2)
    assert verdicts(store, app, (old, slot)) == ["fired"]
    new = written(store, replace(old, task="another"))
    assert new.generation > old.generation
    assert verdicts(store, app, (old, slot + SECOND_MS)) == ["stale"]
    assert verdicts(store, app, (new, slot), (new, slot + SECOND_MS)) == ["done", "fired"]
    assert calls(app) == [f"s:{slot}", f"s:{slot + SECOND_MS}"]


def test_a_schedule_moves_to_another_queue_and_back(app: App, store: Store) -> None:
    first = written(store, record(app))
    slot = slot_of(app, 4)
    assert verdicts(store, app, (first, slot)) == ["fired"]
    second = written(store, replace(first, queue="other"))
    assert verdicts(store, app, (second, slot)) == ["done"], "it was fired, if into another queue"
    assert verdicts(store, app, (second, slot + SECOND_MS)) == ["fired"]
    third = written(store, replace(second, queue="default"))
    assert verdicts(store, app, (third, slot + SECOND_MS)) == ["done"]
    for old in (first, second):
        assert verdicts(store, app, (old, slot + 2 * SECOND_MS)) == ["stale"]
    assert verdicts(store, app, (third, slot + 2 * SECOND_MS)) == ["fired"]
    assert calls(app) == [f"s:{slot}", f"s:{slot + 2 * SECOND_MS}"]
    assert calls(app, "other") == [f"s:{slot + SECOND_MS}"]


def test_after_a_pause_nothing_is_fired(app: App, store: Store) -> None:
    kept = written(store, record(app))
    app.schedules.pause("s")
    assert verdicts(store, app, (kept, slot_of(app))) == ["stale"]
    assert [(each.paused, each.next_ms) for each in app.schedules] == [(True, None)]
    assert store.due(app.client.now_ms() + 10**6, 10) == []
    app.schedules.pause("s")
    app.schedules.resume("s")
    (resumed,) = app.schedules.list()
    assert resumed.next_ms is not None
    assert resumed.next_ms > app.client.now_ms() - 10 * SECOND_MS


def test_after_a_removal_nothing_is_fired_or_kept(app: App, store: Store) -> None:
    kept, slot = written(store, record(app)), slot_of(app, 3)
    assert verdicts(store, app, (kept, slot)) == ["fired"]
    store.advance([(kept, slot + SECOND_MS, LastRun(slot, "default", slot_id("s", slot)))])
    app.schedules.remove("s")
    assert verdicts(store, app, (kept, slot), (kept, slot + SECOND_MS)) == ["stale", "stale"]
    assert app.schedules.list() == []
    with app.client.link() as link:
        assert link.call("EXISTS", store.keys.schedules, store.keys.due, store.keys.last) == 0
        assert link.call("PTTL", app.client.queue(None).keys.fired("s")) > 0
    again = written(store, record(app))
    assert verdicts(store, app, (again, slot), (kept, slot + SECOND_MS)) == ["done", "stale"]
    assert verdicts(store, app, (again, slot + SECOND_MS)) == ["fired"]


@pytest.mark.parametrize("removed", [False, True])
def test_a_change_whose_author_died_is_finished_by_the_next(app: App, store: Store, removed: bool) -> None:
    kept, slot = written(store, record(app)), slot_of(app, 3)
    assert verdicts(store, app, (kept, slot)) == ["fired"]
    pending = store._replace(kept, None if removed else replace(kept, queue="other"))
    assert pending is not None
    assert pending.pending
    assert store.due(app.client.now_ms(), 10) == [("s", 0)], "a beat looks at it at once"
    for _ in range(2):
        settled = store.settle(pending)
        assert settled == (None if removed else store.read("s"))
        assert verdicts(store, app, (kept, slot + SECOND_MS)) == ["stale"]
    if settled is not None:
        assert verdicts(store, app, (settled, slot), (settled, slot + SECOND_MS)) == ["done", "fired"]
        assert settled.due_ms == kept.due_ms


def test_of_two_changes_at_once_both_count(app: App, make_app: MakeApp) -> None:
    store, other = Store(app.client), Store(make_app().client)
    written(store, record(app))
    tries = []

    def change(there: Record | None) -> Record:
        assert there is not None
        tries.append(there.generation)
        if len(tries) == 1:
            other.change("s", lambda found: found and replace(found, task="theirs"))
        return replace(there, priority=7)

    changed = store.change("s", change)
    assert changed is not None
    assert (changed.task, changed.priority, len(tries)) == ("theirs", 7, 2)


def test_generations_grow_even_after_the_schedules_were_lost(app: App, store: Store) -> None:
    old, slot = written(store, record(app)), slot_of(app, 2)
    assert verdicts(store, app, (old, slot)) == ["fired"]
    with app.client.link() as link:
        link.call("DEL", store.keys.schedules, store.keys.version, store.keys.due)
    new = written(store, record(app))
    assert new.generation > old.generation
    assert verdicts(store, app, (new, slot), (new, slot + SECOND_MS)) == ["done", "fired"]


# -- bookkeeping


def test_the_next_slot_only_moves_forward(app: App, store: Store) -> None:
    kept = written(store, record(app))
    due_ms = kept.due_ms
    assert due_ms is not None
    store.advance([(kept, due_ms + 2000, LastRun(due_ms, "default", "b"))])
    store.advance([(kept, due_ms + 1000, LastRun(due_ms - 1000, "default", "a"))])
    assert store.due(due_ms + 10_000, 10) == [("s", due_ms + 2000)]
    assert store.last_runs() == {"s": LastRun(due_ms, "default", "b")}


def test_only_the_definition_that_fired_moves_it(app: App, store: Store) -> None:
    old = written(store, record(app))
    new = written(store, replace(old, task="another"))
    store.advance([(old, 10**14, LastRun(10**14, "default", "x"))])
    assert store.due(10**13, 10) == [("s", new.due_ms)]
    assert store.last_runs() == {}


def test_a_paused_schedule_gets_no_next_slot_from_a_beat_that_lags(app: App, store: Store) -> None:
    written(store, record(app))
    app.schedules.pause("s")
    paused = store.read("s")
    assert paused is not None
    store.advance([(paused, 10**13, None)])
    assert store.due(10**14, 10) == []


def test_what_cannot_be_read_is_told(app: App, store: Store) -> None:
    with app.client.link() as link:
        link.call("HSET", store.keys.schedules, "broken", b"5:\xc1")
    with pytest.raises(DecodeError, match="broken"):
        store.read("broken")
    records, unreadable = store.load()
    assert records == {}
    assert list(unreadable) == ["broken"]


def test_after_a_flush_it_is_as_new(app: App, store: Store, redis: Any) -> None:
    kept = written(store, record(app))
    redis.flushall()
    store.advance([(kept, 1, None)])
    assert store.read("s") is None
    again = written(store, record(app))
    assert verdicts(store, app, (again, slot_of(app))) == ["fired"]
