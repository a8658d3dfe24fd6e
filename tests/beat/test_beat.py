"""A beat step by step, and `app.schedules`, on the real server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rsq import App, codec, crontab
from rsq.beat import beat as beat_module
from rsq.beat.beat import Beat, youngest
from rsq.beat.store import Store
from rsq.errors import DecodeError, SettingsError
from tests.beat.conftest import SECOND_MS, MakeApp, calls, note
from tests.helpers import wait_until

YEARLY = {"schedule": crontab("@yearly")}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and compare at every step."""
    monkeypatch.setattr(beat_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(beat_module, "VERIFY_EVERY_S", 0.0)


def started(app: App) -> Beat:
    beat = Beat(app)
    beat.begin()
    return beat


def names(app: App) -> list[str]:
    return [each.name for each in app.schedules]


def test_a_beat_writes_the_code_and_fires(make_app: MakeApp) -> None:
    app = make_app(tick={}, new_year=YEARLY)
    beat = Beat(app)
    report = beat.begin()
    assert "app shop" in report
    assert "2 in its code, 2 in all" in report
    assert "\n" not in report

    def fired() -> list[str]:
        beat.step()
        return calls(app)

    wait_until(lambda: len(fired()) >= 2, what="two slots")
    first, second, *_ = calls(app)
    assert int(second.partition(":")[2]) - int(first.partition(":")[2]) == SECOND_MS
    shown = {each.name: each for each in app.schedules}
    assert shown["tick"].last_id in calls(app)
    assert shown["tick"].origin == "shop"
    assert shown["new_year"].last_ms is None
    beat.end()
    assert Store(app.client).beats() == {}


def test_two_beats_fire_each_slot_once(make_app: MakeApp) -> None:
    app, other = make_app(tick={}), make_app(tick={})
    beats = [started(app), started(other)]

    def fired() -> list[str]:
        for beat in beats:
            beat.step()
        return calls(app)

    wait_until(lambda: len(fired()) >= 3, what="three slots")
    found = calls(app)
    assert len(set(found)) == len(found)


def test_what_left_the_code_is_removed_and_run_time_stays(make_app: MakeApp) -> None:
    started(make_app(a=YEARLY, b=YEARLY)).end()
    app = make_app(b=YEARLY, c=YEARLY)
    app.schedules.add("mine", crontab("@daily"), "note", ("x",))
    app.schedules.pause("b")
    before = Store(app.client).read("b")
    started(app)
    assert names(app) == ["b", "c", "mine"]
    assert Store(app.client).read("b") == before, "what did not change is left alone"


def test_another_app_has_schedules_of_its_own(make_app: MakeApp) -> None:
    started(make_app("shop", a=YEARLY))
    other = make_app("bank", b=YEARLY)
    started(other)
    assert names(other) == ["a", "b"]


def test_a_changed_definition_keeps_pause_and_place(make_app: MakeApp) -> None:
    old = make_app(a=YEARLY, b=YEARLY)
    started(old).end()
    old.schedules.pause("a")
    due = {each.name: each.next_ms for each in old.schedules}
    new = make_app(a={**YEARLY, "args": ("new",)}, b={**YEARLY, "args": ("new",)})
    started(new)
    assert {each.name: each.next_ms for each in new.schedules} == due
    assert [each.paused for each in new.schedules] == [True, False]
    changed = make_app(a={"schedule": crontab("@monthly")}, b={"schedule": crontab("@monthly")})
    started(changed)
    a, b = changed.schedules.list()
    assert a.paused
    assert b.next_ms is not None
    assert due["b"] is not None
    assert b.next_ms <= due["b"]


def test_the_code_of_the_beat_that_started_last_counts(make_app: MakeApp) -> None:
    """A rolling deploy: old and new side by side, and an old one that starts again in between."""
    old, new = make_app(a=YEARLY, b=YEARLY), make_app(b=YEARLY, c=YEARLY)
    old_beat, new_beat = started(old), started(new)
    old_beat.step()
    assert names(new) == ["b", "c"]
    again = started(make_app(a=YEARLY, b=YEARLY))
    new_beat.step()
    old_beat.step()
    assert names(new) == ["a", "b"]
    again.end()
    new_beat.step()
    assert names(new) == ["b", "c"]
    old_beat.step()
    assert names(new) == ["b", "c"]


def test_what_somebody_removed_from_the_server_comes_back(make_app: MakeApp) -> None:
    app = make_app(a=YEARLY)
    beat = started(app)
    with app.client.link() as link:
        link.call("FLUSHALL")
    beat.step()
    assert names(app) == ["a"]


def test_a_name_that_is_taken(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(mine=YEARLY)
    make_app().schedules.add("mine", 60, "note", ("x",))
    started(app)
    assert "'mine' is left out: it was added at run time" in caplog.text
    assert [(each.name, each.origin) for each in app.schedules] == [("mine", "")]


@pytest.mark.parametrize(("entry", "text"), [({"args": (1, 2)}, "too many"), ({"args": (object(),)}, "object")])
def test_arguments_that_do_not_fit_are_told_at_the_start(make_app: MakeApp, entry: Any, text: str) -> None:
    with pytest.raises(SettingsError, match="schedule 'a'") as caught:
        Beat(make_app(a=entry)).begin()
    assert text in str(caught.value)


def test_a_task_of_another_program_is_told(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(a={"task": "elsewhere.task", "args": (1, 2, 3), **YEARLY})
    started(app)
    assert "a task that this app does not have" in caplog.text
    assert names(app) == ["a"]


def test_a_pending_change_is_finished_by_a_beat(make_app: MakeApp) -> None:
    app = make_app(a=YEARLY, b=YEARLY)
    beat, store = started(app), Store(app.client)
    due = {each.name: each.next_ms for each in app.schedules}
    for name in ("a", "b"):
        there = store.read(name)
        assert there is not None
        store._replace(there, replace(there, queue="other") if name == "a" else there)
    beat.step()
    settled = [store.read(name) for name in ("a", "b")]
    assert not any(each is None or each.pending for each in settled)
    assert {each.name: each.next_ms for each in app.schedules} == due


def test_missed_slots_are_caught_up(make_app: MakeApp) -> None:
    app = make_app(last={}, none={"catchup": "none", "schedule": 60}, every={"catchup": "all", "catchup_limit": 30})
    beat, store = started(app), Store(app.client)
    ago_ms = app.client.now_ms() // 60_000 * 60_000 - 3_600_000
    for name in ("last", "none", "every"):
        there = store.read(name)
        assert there is not None
        store.change(name, lambda found: found and replace(found, since_ms=ago_ms, due_ms=ago_ms + 60_000))
    # The slots of an hour lie behind; of those of a second the last ten are only late, not missed.
    beat.step()
    fired = [task_id.partition(":")[0] for task_id in calls(app)]
    assert 10 <= fired.count("last") <= 12
    assert 39 <= fired.count("every") <= 43
    assert fired.count("none") <= 1
    assert store.due(app.client.now_ms() - 10_000, 10) == []


# -- run time


def test_add_change_and_remove(app: App) -> None:
    app.schedules.add("mine", 3600, app.tasks["note"], ("x",), queue="low", priority=4)
    app.schedules.add("mine", 3600, "note", ("y",), queue="low")
    (shown,) = app.schedules.list()
    assert (shown.name, shown.task, shown.queue, shown.schedule) == ("mine", "note", "low", "every 1:00:00")
    app.schedules.remove("mine")
    assert app.schedules.list() == []
    for act in (app.schedules.remove, app.schedules.pause, app.schedules.resume, app.schedules.trigger):
        with pytest.raises(SettingsError, match="there is no schedule 'mine'"):
            act("mine")


def test_the_code_is_not_changed_at_run_time(make_app: MakeApp) -> None:
    app = make_app(a=YEARLY)
    started(app)
    with pytest.raises(SettingsError, match="stands in the code of app 'shop'"):
        app.schedules.add("a", 60, "note", ("x",))
    with pytest.raises(SettingsError, match="stands in the code of app 'shop'"):
        app.schedules.remove("a")


def test_arguments_are_checked_where_they_are_given(app: App) -> None:
    with pytest.raises(SettingsError, match="schedule 'mine'"):
        app.schedules.add("mine", 60, "note")
    with pytest.raises(SettingsError, match="no option of a call"):
        app.schedules.add("mine", 60, "note", ("x",), que="x")
    assert app.schedules.list() == []


def test_trigger_sends_a_call_now(app: App, url: str) -> None:
    with app.testing.isolated(url):
        app.schedules.add("mine", crontab("@yearly"), "note", ("x",))
        app.schedules.pause("mine")
        sent = app.schedules.trigger("mine")
        assert calls(app) == [sent.id]
        (shown,) = app.schedules.list()
        assert shown.paused
        assert (shown.last_id, shown.outcome) == (sent.id, "")
        with app.testing.worker():
            assert sent.get(timeout=30) == "x"
        assert [each.outcome for each in app.schedules] == ["SUCCESS"]


def test_a_beat_sees_a_change_at_its_next_look(make_app: MakeApp) -> None:
    app = make_app()
    beat = started(app)
    beat.step()
    app.schedules.add("mine", 0.1, "note", ("x",))
    wait_until(lambda: beat.step() is not None and calls(app), what="the first slot")
    app.schedules.pause("mine")
    number = len(calls(app))
    paused_ms = app.client.now_ms()
    wait_until(lambda: beat.step() is not None and app.client.now_ms() > paused_ms + 500)
    assert len(calls(app)) == number


def test_expires_counts_from_the_moment_it_is_fired(app: App) -> None:
    app.schedules.add("mine", 3600, "note", ("x",), expires=60)
    there = Store(app.client).read("mine")
    assert there is not None
    assert there.message("id", 1_000_000).meta == {"expires": 1_060_000}


def test_a_crontab_without_a_zone_is_in_that_of_the_app(make_app: MakeApp) -> None:
    app = make_app(a={"schedule": crontab("0 12 * * *")}, b={"schedule": crontab("0 12 * * *", tz="Asia/Tokyo")})
    app.configure(timezone="Europe/Paris")
    started(app)
    app.schedules.add("mine", crontab("0 12 * * *"), "note", ("x",))
    assert [each.schedule for each in app.schedules] == [
        "0 12 * * * (Europe/Paris)",
        "0 12 * * * (Asia/Tokyo)",
        "0 12 * * * (Europe/Paris)",
    ]


UNREADABLE = {
    "no-msgpack": b"5:\xc1",
    "no-generation": b"garbage",
    "no-map": b"7:" + codec.encode([1]),
    "of a newer rsq": b"8:" + codec.encode({"format": 2}),
    "\udcff": b"9:" + codec.encode({}),
}


def spoil(app: App, kept: Mapping[str, bytes], due_ms: int = 1) -> None:
    """Put records there that no beat can read, due long ago."""
    keys = Store(app.client).keys
    with app.client.link() as link:
        for name, packed in kept.items():
            raw = name.encode("utf-8", "surrogateescape")
            link.pipeline([("HSET", keys.schedules, raw, packed), ("ZADD", keys.due, due_ms, raw)])


def test_what_cannot_be_read_is_set_aside_and_said_once(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(tick={})
    beat = started(app)
    spoil(app, UNREADABLE)

    def fired() -> list[str]:
        beat.step()
        return calls(app)

    wait_until(lambda: len(fired()) >= 2, what="two slots")
    told = [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()]
    assert len(told) == len(UNREADABLE), told
    beat._aside.clear()  # a minute later
    beat.step()
    assert [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()] == told


def test_many_that_cannot_be_read_starve_nobody(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beat_module, "PAGE", 10)
    app = make_app(**{f"tick{number}": {} for number in range(3)})
    beat = started(app)
    spoil(app, {f"broken{number}": b"5:?" for number in range(55)})

    def fired() -> set[str]:
        beat.step()
        return {name.partition(":")[0] for name in calls(app)}

    wait_until(lambda: len(fired()) == 3, what="each to be fired")
    asked: list[int] = []
    due = beat._store.due

    def noted(until_ms: int, limit: int) -> list[tuple[str, int]]:
        asked.append(limit)
        return due(until_ms, limit)

    monkeypatch.setattr(beat._store, "due", noted)
    for _ in range(3):
        beat._look_at = 0.0
        beat.step()
    assert asked == 3 * [10 + 55], "one look is enough"


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_hides_no_other_and_can_be_removed(app: App, name: str) -> None:
    app.schedules.add("mine", crontab("@daily"), "note", ("x",))
    spoil(app, {name: UNREADABLE[name]})
    assert names(app) == ["mine"]
    ((unreadable, why),) = app.schedules.unreadable().items()
    assert unreadable == name
    assert "rsq schedule remove" in why
    for act in (app.schedules.pause, app.schedules.resume, app.schedules.trigger):
        with pytest.raises(DecodeError, match="cannot be read"):
            act(name)
    app.schedules.remove(name)
    assert app.schedules.unreadable() == {}
    assert names(app) == ["mine"]
    store = Store(app.client)
    assert [due for due, _ in store.due(10**15, 10)] == ["mine"]
    with pytest.raises(SettingsError, match="there is no schedule"):
        app.schedules.remove(name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", "high"), ("meta", None), ("queue", "a b"), ("queue", 5), ("before", ["a b"]), ("since_ms", 1.5)],
)
def test_a_record_of_wrong_types_is_one_that_cannot_be_read(app: App, field: str, value: Any) -> None:
    app.schedules.add("mine", crontab("@daily"), "note", ("x",))
    (kept,) = Store(app.client).raw(["mine"])
    assert kept is not None
    generation, _, packed = kept.partition(b":")
    spoil(app, {"mine": generation + b":" + codec.encode({**codec.decode(packed), field: value})})
    assert list(app.schedules.unreadable()) == ["mine"]
    beat = started(app)
    beat.step()
    assert calls(app) == []


def test_other_things_that_nobody_can_read(app: App, redis: Any) -> None:
    app.schedules.add("mine", crontab("@daily"), "note", ("x",))
    keys = Store(app.client).keys
    redis.hset(keys.last, mapping={"mine": "nonsense", b"\xff": "1 default x", "gone": "1 default x"})
    redis.zadd(keys.due, {"mine": "inf", "nothing": "-inf"})
    (shown,) = app.schedules.list()
    assert (shown.last_ms, shown.outcome) == (None, "")
    started(app).step()


def test_after_a_step_back_to_an_older_rsq_the_code_says_what_to_do(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(mine=YEARLY)
    spoil(app, {"mine": UNREADABLE["of a newer rsq"]})
    beat = started(app)
    assert "`rsq schedule remove` deletes it; until then that of the code is left out" in caplog.text
    assert names(app) == []
    app.schedules.remove("mine")
    beat.step()
    assert names(app) == ["mine"]


def test_the_youngest_beat() -> None:
    beats = ["9 ff host-1 shop", "10 aa host-2 shop", "11 aa host-3 my bank"]
    assert youngest(beats, "shop") == "10 aa host-2 shop"
    assert youngest(beats, "my bank") == "11 aa host-3 my bank"
    assert youngest(beats, "none") is None


def test_a_schedule_needs_no_event_in_the_log(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        started(make_app(a=YEARLY)).step()
    assert caplog.records == []
    assert note("x") == "x"
