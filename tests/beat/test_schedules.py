"""Slots of intervals and cron expressions, by a set clock: no server."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsq import App, crontab, every
from rsq.beat.entry import Entry, entry_of, slot_id
from rsq.calls.due import MISSED_MS, due_slots
from rsq.calls.message import check_id
from rsq.calls.schedules import Crontab, Every, in_zone, schedule_of, unpack
from rsq.errors import SettingsError

MINUTE_MS = 60_000
DAY_MS = 86_400_000


def ms(text: str, tz: str = "UTC") -> int:
    """A wall time as ms since the epoch; with an offset in the text `tz` does not matter."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(tz))).timestamp() * 1000)


def slots(schedule: Crontab, after: str, number: int) -> list[str]:
    """The slots after a wall time, as the clock of the schedule's zone shows them."""
    zone = ZoneInfo(schedule.tz or "UTC")
    found, moment_ms = [], ms(after, schedule.tz or "UTC")
    for _ in range(number):
        moment_ms = schedule.next_after(moment_ms)
        found.append(datetime.fromtimestamp(moment_ms / 1000, zone).strftime("%Y-%m-%dT%H:%M:%S%z"))
    return found


# -- intervals


def test_slots_of_an_interval_are_its_multiples() -> None:
    quarter = every(minutes=15)
    assert quarter.next_after(ms("2026-01-01T10:07:00")) == ms("2026-01-01T10:15:00")
    assert quarter.next_after(ms("2026-01-01T10:15:00")) == ms("2026-01-01T10:30:00")
    assert quarter.latest_at(ms("2026-01-01T10:15:00")) == ms("2026-01-01T10:15:00")
    assert quarter.latest_at(ms("2026-01-01T10:14:59")) == ms("2026-01-01T10:00:00")


@pytest.mark.parametrize("written", [every(seconds=90), timedelta(seconds=90), 90, 90.0])
def test_an_interval_is_written_in_many_ways(written: object) -> None:
    assert schedule_of(written) == Every(90_000)


@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf, 1e300, 10**30, -(10**30)])
@pytest.mark.parametrize("unit", ["seconds", "minutes", "hours", "days", "weeks"])
def test_an_interval_is_finite(unit: str, amount: float) -> None:
    with pytest.raises(SettingsError, match="an interval must be"):
        every(**{unit: amount})
    with pytest.raises(SettingsError, match="an interval must be"):
        schedule_of(amount)
    with pytest.raises(SettingsError, match="expires takes seconds"):
        Entry("x", "note", every(days=1), options={"expires": amount})


@pytest.mark.parametrize("written", [timedelta.max, 0, -1, 0.05, timedelta(0), "30", None, True, [30]])
def test_what_is_no_schedule(written: object) -> None:
    with pytest.raises(SettingsError):
        schedule_of(written)


def test_a_schedule_of_celery_is_told_where_to_come_from() -> None:
    foreign = type("crontab", (), {"__module__": "celery.schedules"})()
    with pytest.raises(SettingsError, match="import crontab from rsq"):
        schedule_of(foreign)


# -- cron expressions


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("*/20 * * * *", "2026-01-01T10:07:00", ["10:20:00", "10:40:00", "11:00:00"]),
        ("0 9-11 * * *", "2026-01-01T09:30:00", ["10:00:00", "11:00:00", "09:00:00"]),
        ("* * * * * */30", "2026-01-01T10:00:10", ["10:00:30", "10:01:00", "10:01:30"]),
        ("@hourly", "2026-01-01T10:07:00", ["11:00:00", "12:00:00", "13:00:00"]),
    ],
)
def test_times_of_the_day(expression: str, after: str, expected: list[str]) -> None:
    assert [slot[11:19] for slot in slots(crontab(expression), after, 3)] == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("0 0 * * fri#2", ["2026-01-09", "2026-02-13", "2026-03-13"]),
        ("0 0 * * L5", ["2026-01-30", "2026-02-27", "2026-03-27"]),
        ("0 0 1 jan,mar *", ["2026-03-01", "2027-01-01", "2027-03-01"]),
        ("0 0 * * mon-tue", ["2026-01-05", "2026-01-06", "2026-01-12"]),
        ("0 0 * * Monday-tuesday", ["2026-01-05", "2026-01-06", "2026-01-12"]),
        ("0 0 1 january,march *", ["2026-03-01", "2027-01-01", "2027-03-01"]),
        ("0 0 1-7 * mon", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        # A day that begins with a star does not count as given: both must fit then.
        ("0 0 */2 * mon", ["2026-01-05", "2026-01-19", "2026-02-09"]),
        ("0 0 13 * */5", ["2026-02-13", "2026-03-13", "2026-09-13"]),
        ("0 0 *,13 * mon", ["2026-01-05", "2026-01-12", "2026-01-19"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("@daily", ["2026-01-02", "2026-01-03", "2026-01-04"]),
    ],
)
def test_days(expression: str, expected: list[str]) -> None:
    assert [slot[:10] for slot in slots(crontab(expression), "2026-01-01T00:00:00", 3)] == expected


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        ("61 * * * *", "minute '61'"),
        ("* 25 * * *", "hour '25'"),
        ("* * 32 * *", "day of month '32'"),
        ("* * * foo *", "month 'foo'"),
        ("* * * * 8", "day of week '8'"),
        ("* * * * 5#9", "day of week '5#9'"),
        ("* * * * * 60", "second '60'"),
        ("*/0 * * * *", "minute '*/0'"),
        ("0 5-2/x * * *", "hour '5-2/x'"),
        ("0 0 5L * *", "day of month '5L'"),
        ("1,,2 * * * *", "minute '1,,2'"),
        ("R * * * *", "minute 'R'"),
        ("H(0-9) * * * *", "minute 'H(0-9)'"),
        ("0 0 31 2 *", "day of month '31' is in no month '2'"),
        ("0 0 15 * 1#1", "day of month '15' and day of week '1#1' do not go together"),
        ("0 0 1,L * mon#1", "day of month '1,L' and day of week 'mon#1' do not go together"),
        ("0 0 1 * L5", "day of month '1' and day of week 'L5' do not go together"),
        ("* * * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("", "0 fields"),
        ("@often", "@hourly"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_field(expression: str, field: str) -> None:
    with pytest.raises(SettingsError) as caught:
        crontab(expression)
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ({"hour": "*/30"}, "* 0 * * *"),
        ({"minute": "*/90"}, "0 * * * *"),
        ({"hour": "*/24"}, "* 0 * * *"),
        ({"day_of_month": "*/32"}, "* * 1 * *"),
        ({"month_of_year": "*/13"}, "* * * 1 *"),
        ({"day_of_week": "*/8"}, "* * * * 0"),
        ({"minute": "10-20/90,5", "hour": "8/30"}, "10,5 8 * * *"),
        ({"day_of_week": "monday-friday/9"}, "* * * * mon"),
        ({"expression": "*/70 * * * * */99"}, "0 * * * * 0"),
        ({"minute": "10-20/30"}, "10-20/30 * * * *"),
        ({"minute": "*/59"}, "*/59 * * * *"),
    ],
)
def test_a_step_over_the_end_leaves_the_first_number_as_in_celery(fields: dict[str, str], expression: str) -> None:
    assert crontab(**fields).expression == expression


def test_it_says_what_the_field_takes() -> None:
    with pytest.raises(SettingsError, match=r"minute '61' cannot be used; it takes 0 to 59, and \*, ranges, lists"):
        crontab("61 * * * *")


def test_a_wrong_zone() -> None:
    with pytest.raises(SettingsError, match="Europe/Atlantis"):
        crontab("@daily", tz="Europe/Atlantis")


def test_days_that_never_fall_together() -> None:
    with pytest.raises(SettingsError, match="day of month '15' is never its day of week '1#1'"):
        crontab(minute=0, hour=0, day_of_month=15, day_of_week="1#1")
    assert slots(crontab(minute=0, hour=0, day_of_month=1, day_of_week="1#1"), "2026-01-01T00:00:00", 2) == [
        "2026-06-01T00:00:00+0000",
        "2027-02-01T00:00:00+0000",
    ]


def test_fields_by_name_as_in_celery() -> None:
    assert crontab(minute=0, hour="*/3", day_of_week="mon, fri") == Crontab("0 */3 * * mon,fri")
    assert crontab(minute=[0, 30], day_of_month=1, month_of_year=2) == Crontab("0,30 * 1 2 *")
    assert crontab(minute=0, hour=0, day_of_week="sunday") == Crontab("0 0 * * sun")
    with pytest.raises(SettingsError):
        crontab("* * * * *", minute=1)


def test_by_name_both_days_must_fit_as_in_celery() -> None:
    first_monday = crontab(minute=0, hour=0, day_of_month="1-7", day_of_week="mon")
    assert [slot[:10] for slot in slots(first_monday, "2026-01-01T00:00:00", 3)] == [
        "2026-01-05",
        "2026-02-02",
        "2026-03-02",
    ]
    assert "both days" in str(first_monday)
    assert first_monday != crontab("0 0 1-7 * mon")
    with pytest.raises(SettingsError, match="is never due"):
        crontab(day_of_month=31, month_of_year=2, day_of_week=1)


def test_without_a_zone_it_is_in_that_of_the_app() -> None:
    noon = in_zone(crontab("0 12 * * *"), "Europe/Paris")
    assert noon == crontab("0 12 * * *", tz="Europe/Paris")
    assert noon.next_after(ms("2026-01-01T00:00:00")) == ms("2026-01-01T11:00:00")
    elsewhere = crontab("0 12 * * *", tz="UTC")
    assert in_zone(elsewhere, "Europe/Paris") is elsewhere
    assert in_zone(every(seconds=5), "Europe/Paris") == every(seconds=5)


# -- the clock is put forward and back


@pytest.mark.parametrize(
    ("tz", "expression", "after", "expected"),
    [
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-03-28T03:00:00",
            ["2026-03-29T03:00:00+0200", "2026-03-30T02:30:00+0200"],
        ),
        (
            "America/New_York",
            "30 2 * * *",
            "2026-03-07T03:00:00",
            ["2026-03-08T03:00:00-0400", "2026-03-09T02:30:00-0400"],
        ),
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            "2026-10-03T03:00:00",
            ["2026-10-04T02:30:00+1100", "2026-10-05T02:15:00+1100"],
        ),
        # Many slots in the gap are one, at the jump; and where that is a slot of its own, too, it is still one.
        (
            "Europe/Berlin",
            "*/20 * * * *",
            "2026-03-29T01:30:00",
            ["2026-03-29T01:40:00+0100", "2026-03-29T03:00:00+0200", "2026-03-29T03:20:00+0200"],
        ),
        (
            "Australia/Lord_Howe",
            "*/10 * * * *",
            "2026-10-04T01:45:00",
            ["2026-10-04T01:50:00+1030", "2026-10-04T02:30:00+1100", "2026-10-04T02:40:00+1100"],
        ),
    ],
)
def test_a_slot_that_the_clock_skips_fires_once_right_after(
    tz: str, expression: str, after: str, expected: list[str]
) -> None:
    assert slots(crontab(expression, tz=tz), after, len(expected)) == expected


@pytest.mark.parametrize(
    ("tz", "expression", "after", "expected"),
    [
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-24T03:00:00",
            ["2026-10-25T02:30:00+0200", "2026-10-26T02:30:00+0100"],
        ),
        (
            "America/New_York",
            "30 1 * * *",
            "2026-10-31T02:00:00",
            ["2026-11-01T01:30:00-0400", "2026-11-02T01:30:00-0500"],
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-04T02:00:00",
            ["2026-04-05T01:45:00+1100", "2026-04-06T01:45:00+1030"],
        ),
        (
            "Europe/Berlin",
            "*/30 * * * *",
            "2026-10-25T01:30:00",
            ["2026-10-25T02:00:00+0200", "2026-10-25T02:30:00+0200", "2026-10-25T03:00:00+0100"],
        ),
    ],
)
def test_a_slot_that_the_clock_repeats_fires_once(tz: str, expression: str, after: str, expected: list[str]) -> None:
    assert slots(crontab(expression, tz=tz), after, len(expected)) == expected


def test_in_the_second_pass_the_latest_slot_is_of_the_first() -> None:
    berlin = crontab("*/30 * * * *", tz="Europe/Berlin")
    assert berlin.latest_at(ms("2026-10-25T02:10:00+01:00")) == ms("2026-10-25T02:30:00+02:00")
    assert berlin.next_after(ms("2026-10-25T02:10:00+01:00")) == ms("2026-10-25T03:00:00+01:00")


expressions = st.sampled_from(
    [
        "*/7 * * * *",
        "30 2 * * *",
        "15,45 1-3 * * *",
        "0 0 L * *",
        "0 */5 * * sun",
        "59 23 * * *",
        "5 2 * 3,4,10,11 *",
        "30 2 20-31 * sun",
        "0 0 */2 * tue#1",
    ]
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])
near_a_jump = st.one_of(
    st.integers(ms("2026-03-27T00:00:00"), ms("2026-04-06T00:00:00")),
    st.integers(ms("2026-10-02T00:00:00"), ms("2026-11-03T00:00:00")),
    st.integers(ms("2011-12-28T00:00:00"), ms("2012-01-01T00:00:00")),  # Apia had no 30 December
)


@given(expressions, st.booleans(), zones, near_a_jump)
def test_both_directions_give_the_same_slots(expression: str, both_days: bool, tz: str, moment_ms: int) -> None:
    schedule = Crontab(expression, tz, both_days)
    row = [schedule.latest_at(moment_ms)]
    while len(row) < 5:
        row.append(schedule.next_after(row[-1]))
    assert row[0] <= moment_ms < row[1]
    assert schedule.next_after(moment_ms) == row[1]
    for earlier, later in pairwise(row):
        assert earlier < later
        assert schedule.latest_at(later) == later
        assert schedule.latest_at(later - 1) == earlier
        assert schedule.next_after(later - 1) == later


@given(st.integers(100, 10**10), st.integers(10**12, 2 * 10**12))
def test_both_directions_of_an_interval(interval_ms: int, moment_ms: int) -> None:
    schedule = Every(interval_ms)
    latest, following = schedule.latest_at(moment_ms), schedule.next_after(moment_ms)
    assert latest <= moment_ms < following == latest + interval_ms


@pytest.mark.parametrize(
    "schedule",
    [every(seconds=5), crontab("*/5 * * * *", tz="Europe/Paris"), crontab(day_of_month="1-7", day_of_week=1)],
)
def test_a_schedule_survives_its_packing(schedule: Every | Crontab) -> None:
    assert unpack(schedule.pack()) == schedule


# -- what is fired


MINUTELY = crontab("* * * * *")
NOON = ms("2026-01-01T12:00:00")


def test_what_is_on_time_is_fired_by_every_policy() -> None:
    for catchup in ("latest", "none", "all"):
        assert due_slots(MINUTELY, NOON - 1, NOON + 5, catchup, 10) == [NOON]
        assert due_slots(MINUTELY, NOON, NOON + 5, catchup, 10) == []


def test_slots_that_are_a_little_late_are_all_fired() -> None:
    second = every(seconds=1)
    expected = [NOON - 2000, NOON - 1000, NOON]
    for catchup in ("latest", "none", "all"):
        assert due_slots(second, NOON - 2001, NOON, catchup, 1) == expected


@pytest.mark.parametrize(
    ("catchup", "expected"),
    [("latest", [-1]), ("none", []), ("all", [-3, -2, -1])],
)
def test_missed_slots(catchup: str, expected: list[int]) -> None:
    now_ms = NOON - MISSED_MS
    slots = due_slots(MINUTELY, NOON - 60 * MINUTE_MS, now_ms, catchup, 3)
    assert slots == [NOON + minutes * MINUTE_MS for minutes in expected]


@pytest.mark.parametrize(
    ("catchup", "expected"),
    [("latest", [0]), ("none", [0]), ("all", [-3, -2, -1, 0])],
)
def test_missed_slots_before_one_that_is_on_time(catchup: str, expected: list[int]) -> None:
    slots = due_slots(MINUTELY, NOON - 60 * MINUTE_MS, NOON + 5, catchup, 3)
    assert slots == [NOON + minutes * MINUTE_MS for minutes in expected]


def test_a_slot_is_missed_after_ten_seconds() -> None:
    assert due_slots(MINUTELY, NOON - 1, NOON + MISSED_MS, "none", 1) == [NOON]
    assert due_slots(MINUTELY, NOON - 1, NOON + MISSED_MS + 1, "none", 1) == []


# -- how schedules are declared


def test_the_shape_of_celery() -> None:
    app = App("shop")
    app.schedule = {
        "every 30 s": {"task": "shop.add", "schedule": 30.0, "args": (16, 16)},
        "monday": {
            "task": "shop.add",
            "schedule": crontab(hour=7, minute=30, day_of_week=1),
            "kwargs": {"x": 1},
            "options": {"queue": "mail", "expires": 60, "priority": 3},
        },
    }
    assert app.schedule["every 30 s"] == Entry("every 30 s", "shop.add", Every(30_000), (16, 16))
    assert app.schedule["monday"].schedule == Crontab("30 7 * * 1")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"schedule": 5}, "needs a task"),
        ({"task": "t"}, "needs a schedule"),
        ({"task": "t", "schedule": "5"}, "a schedule is crontab"),
        ({"task": "t", "schedule": 5, "argz": ()}, "has no 'argz'"),
        ({"task": "t", "schedule": 5, "args": "word"}, "args takes"),
        ({"task": "t", "schedule": 5, "kwargs": [1]}, "kwargs takes"),
        ({"task": "t", "schedule": 5, "options": {"que": "x"}}, "no option of a call is called 'que'"),
        ({"task": "t", "schedule": 5, "options": {"priority": 11}}, "priority"),
        ({"task": "t", "schedule": 5, "options": {"task_id": "x"}}, "task_id is for one call"),
        ({"task": "t", "schedule": 5, "options": {"expires": datetime(2030, 1, 1)}}, "expires takes seconds here"),
        ({"task": "t", "schedule": 5, "catchup": "some"}, "catchup takes"),
        ({"task": "t", "schedule": 5, "catchup_limit": 0}, "catchup_limit takes"),
        ({"task": "", "schedule": 5}, "task takes"),
        ("t", "takes a map"),
    ],
)
def test_a_mistake_is_refused_where_it_is_written(written: Any, text: str) -> None:
    app = App("shop")
    with pytest.raises(SettingsError) as caught:
        app.schedule = {"mine": written}
    assert text in str(caught.value)
    assert "'mine'" in str(caught.value)
    assert app.schedule == {}


def test_periodic_takes_a_task_or_a_function() -> None:
    app = App("shop")

    @app.periodic(crontab("*/5 * * * *", tz="Europe/Paris"))
    @app.task(name="sweep", queue="low")
    def sweep() -> None: ...

    @app.periodic(every(seconds=30), name="often", args=(1,), catchup="none")
    @app.periodic(timedelta(hours=1), name="seldom", args=(2,))
    @app.task(name="clean")
    def clean(level: int) -> None: ...

    assert sweep is app.tasks["sweep"]
    assert clean is app.tasks["clean"]
    assert app.schedule == {
        "sweep": Entry("sweep", "sweep", Crontab("*/5 * * * *", "Europe/Paris")),
        "often": Entry("often", "clean", Every(30_000), (1,), catchup="none"),
        "seldom": Entry("seldom", "clean", Every(3_600_000), (2,)),
    }
    with pytest.raises(SettingsError, match="two periodic schedules"):
        app.periodic(every(seconds=31), name="often")(clean)


def test_a_plain_function_becomes_a_task() -> None:
    app = App("shop")
    entry = app.periodic(every(seconds=30))(test_a_plain_function_becomes_a_task)
    assert list(app.tasks) == [entry.name] == list(app.schedule)


@given(st.text(min_size=1, max_size=200).filter(str.isprintable), st.integers(0, 10**13))
def test_every_name_makes_a_task_id(name: str, slot_ms: int) -> None:
    assert entry_of(name, {"task": "t", "schedule": 5}).name == name
    assert check_id(slot_id(name, slot_ms)).endswith(f":{slot_ms}")


def test_long_names_make_different_ids() -> None:
    assert slot_id("x" * 150 + "a", 1) != slot_id("x" * 150 + "b", 1)
    assert slot_id("daily report", 5) == "daily%20report:5"
