"""When something is due: intervals and cron expressions, as pure functions of time.

A schedule is an endless row of slots, each a moment in ms since the epoch. It depends on nothing but itself, so every
beat computes the same slots, whenever it started.

every    slots are the multiples of the interval since the epoch: ``every(minutes=15)`` is due at :00, :15, :30, :45 UTC
crontab  slots are times on the wall clock of a zone. One that the clock skips (spring) is due at the moment of the
         jump; one that it repeats (autumn) is due in the first pass only
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import count
from typing import Any, Protocol, TypeAlias
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, CroniterError, croniter

from rsq.clock import zone_of
from rsq.errors import LONGEST_S, SettingsError

SHORTEST_MS = 100
"""No interval is shorter: below it a worker that loops does better than a schedule."""

FIELDS = (
    ("minute", 59, "0 to 59"),
    ("hour", 23, "0 to 23"),
    ("day of month", 31, "1 to 31, L for the last one"),
    ("month", 12, "1 to 12, jan to dec"),
    ("day of week", 7, "0 to 7, sun to sat, 5#2 for the second Friday, L5 for the last one"),
    ("second", 59, "0 to 59"),
)
"""Name of each field, its largest number, and what it takes."""

_FROM_ONE = (2, 3)
"""Places of the fields whose smallest number is 1: day of month, month."""

ALIASES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")

# `H` and `R` of croniter stand for numbers drawn by chance: each beat would draw its own.
_DRAWN = re.compile(r"(?:^|,)[hr](?![a-z])", re.IGNORECASE)
# Celery takes the names of days and months in full; croniter knows their first three letters.
_DAYS = "(?:sun|mon|tues|wednes|thurs|fri|satur)day"
_MONTHS = "january|february|march|april|june|july|august|september|october|november|december"
_LONG_NAME = re.compile(rf"\b(?=(?:{_DAYS}|{_MONTHS})\b)(...)\w+", re.IGNORECASE)

_OF_THE_MONTH = re.compile("[#l]", re.IGNORECASE)
"""In a day of week: not each one, but the second or the last one of a month."""

_LEAP_YEAR = datetime(2024, 1, 1)
_SECOND = timedelta(seconds=1)


class Schedule(Protocol):
    """A row of slots."""

    def next_after(self, moment_ms: int) -> int:
        """The first slot after this moment."""

    def latest_at(self, moment_ms: int) -> int:
        """The last slot that is not after this moment."""

    def pack(self) -> dict[str, Any]:
        """As a map that `unpack` reads."""


@dataclass(frozen=True)
class Every:
    """A fixed interval. Made by `every`, or from a timedelta or a number of seconds."""

    interval_ms: int

    def __post_init__(self) -> None:
        if self.interval_ms < SHORTEST_MS:
            raise SettingsError(
                f"an interval must be at least {SHORTEST_MS / 1000:g} s, not {self.interval_ms / 1000:g} s"
            )
        if self.interval_ms > LONGEST_S * 1000:
            raise SettingsError(f"an interval must be a hundred years at most, not {self.interval_ms / 1000:g} s")

    def __str__(self) -> str:
        return f"every {timedelta(milliseconds=self.interval_ms)}"

    def next_after(self, moment_ms: int) -> int:
        return moment_ms - moment_ms % self.interval_ms + self.interval_ms

    def latest_at(self, moment_ms: int) -> int:
        return moment_ms - moment_ms % self.interval_ms

    def pack(self) -> dict[str, Any]:
        return {"every_ms": self.interval_ms}


@dataclass(frozen=True)
class Crontab:
    """A cron expression on the wall clock of a time zone. Made by `crontab`.

    expression  5 fields, or 6 with the seconds last; names, ranges, steps, ``L``, ``#``; or ``@daily`` and the like
    tz          name of the zone, such as ``Europe/Paris``; "" = that of the app, see `in_zone`
    both_days   where day of month and day of week are given, both must fit, as in Celery; False: either, as in cron,
                where a field that begins with ``*`` does not count as given
    """

    expression: str
    tz: str = ""
    both_days: bool = False

    def __post_init__(self) -> None:
        _check(self.expression, self.both_days)
        zone_of(self.tz or "UTC")

    def __str__(self) -> str:
        return f"{self.expression}{', both days' if self.both_days else ''} ({self.tz or 'zone of the app'})"

    @property
    def zone(self) -> tzinfo:
        """The time zone of its wall clock."""
        return zone_of(self.tz or "UTC")

    def next_after(self, moment_ms: int) -> int:
        zone = self.zone
        wall = datetime.fromtimestamp(moment_ms // 1000, zone).replace(tzinfo=None, fold=0)
        while True:
            wall = _step(self.expression, self.both_days, wall, forward=True)
            # In the second pass of a repeated hour the wall times ahead have been: their moments lie behind.
            if (found_ms := _moment_ms(wall, zone)) > moment_ms:
                return found_ms

    def latest_at(self, moment_ms: int) -> int:
        zone = self.zone
        local = datetime.fromtimestamp(moment_ms // 1000, zone)
        wall = local.replace(tzinfo=None, fold=0) + _SECOND
        if local.fold:  # the first pass went on beyond this wall time
            wall += (_offset(local, fold=0)) - (_offset(local, fold=1))
        while True:
            wall = _step(self.expression, self.both_days, wall, forward=False)
            if (found_ms := _moment_ms(wall, zone)) <= moment_ms:
                return found_ms

    def pack(self) -> dict[str, Any]:
        return {"cron": self.expression, "tz": self.tz} | ({"both_days": True} if self.both_days else {})


Scheduled: TypeAlias = "Every | Crontab | timedelta | float | int"
"""What may stand where a schedule is asked for; a number is seconds."""


def every(*, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0, weeks: float = 0) -> Every:
    """A fixed interval, such as ``every(seconds=30)``. Raises SettingsError when it is too short or too long."""
    return _every(seconds + 60 * minutes + 3600 * (hours + 24 * (days + 7 * weeks)))


def crontab(
    expression: str | None = None,
    *,
    tz: str | ZoneInfo | None = None,
    minute: Any = "*",
    hour: Any = "*",
    day_of_week: Any = "*",
    day_of_month: Any = "*",
    month_of_year: Any = "*",
) -> Crontab:
    """A cron schedule: ``crontab("*/5 * * * *", tz="Europe/Paris")``, or its fields by name, as in Celery.

    tz          a time zone; default: that of the app, its setting `timezone`
    minute ...  a number, a text, or several numbers. A day of month and a day of week must both fit then, as in Celery;
                in an expression either is enough, as in cron
    Raises      SettingsError, which names the field that is wrong
    """
    fields = [_text(field) for field in (minute, hour, day_of_month, month_of_year, day_of_week)]
    both_days = False
    if expression is None:
        expression = " ".join(fields)
        both_days = "*" not in (fields[2], fields[4])
    elif fields != ["*"] * 5:
        raise SettingsError("crontab takes one expression or its fields by name, not both")
    name = str(tz) if isinstance(tz, ZoneInfo) else "" if tz is None else tz
    if isinstance(expression, str):
        expression = _LONG_NAME.sub(r"\1", " ".join(map(_within_its_field, expression.split(), count())))
    return Crontab(expression, name, both_days)


def schedule_of(value: object) -> Every | Crontab:
    """The schedule that `value` means. Raises SettingsError."""
    if isinstance(value, (Every, Crontab)):
        return value
    if isinstance(value, timedelta):
        return _every(value.total_seconds())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _every(value)
    if type(value).__module__ == "celery.schedules":
        raise SettingsError(f"{value!r} is Celery's: import crontab from rsq, it takes the same")
    raise SettingsError(f"a schedule is crontab(...), every(...), a timedelta or a number of seconds, not {value!r}")


def _every(seconds: float) -> Every:
    if not -LONGEST_S <= seconds <= LONGEST_S:  # NaN, too
        raise SettingsError("an interval must be a number of seconds, a hundred years of them at most")
    return Every(round(seconds * 1000))


def in_zone(schedule: Every | Crontab, zone: str) -> Every | Crontab:
    """The same; one that names no time zone is in this one."""
    return replace(schedule, tz=zone) if isinstance(schedule, Crontab) and not schedule.tz else schedule


def unpack(kept: Mapping[str, Any]) -> Every | Crontab:
    """The inverse of `Schedule.pack`. Raises SettingsError."""
    if "cron" in kept:
        return Crontab(str(kept["cron"]), str(kept.get("tz", "UTC")), bool(kept.get("both_days")))
    return Every(int(kept.get("every_ms", 0)))


# -- the text of an expression


def _text(field: object) -> str:
    if isinstance(field, str):
        return "".join(field.split())
    if isinstance(field, Iterable):
        return ",".join(str(each) for each in field)
    return str(field)


def _within_its_field(field: str, place: int) -> str:
    """The same without steps over the end of the field: as in Celery, of these only the first number is left."""
    largest = FIELDS[place][1] if place < len(FIELDS) else 0
    parts = []
    for part in field.split(","):
        numbers, _, step = part.partition("/")
        if step.isdecimal() and int(step) > largest:
            part = ("1" if place in _FROM_ONE else "0") if numbers == "*" else numbers.partition("-")[0]
        parts.append(part)
    return ",".join(parts)


@lru_cache(maxsize=4096)
def _check(expression: str, both_days: bool) -> None:
    """Raises SettingsError, which names the field that is wrong."""
    if not isinstance(expression, str):
        raise SettingsError(f"a cron expression is a text such as '*/5 * * * *', not {expression!r}")
    said = f"cron expression {expression!r}"
    if expression.startswith("@"):
        if expression not in ALIASES:
            raise SettingsError(f"{said}: there are {', '.join(ALIASES)}; for intervals there is every(...)")
        return
    fields = expression.split()
    if len(fields) not in (5, 6):
        raise SettingsError(
            f"{said} has {len(fields)} fields: take 5 (minute, hour, day of month, month, day of week), "
            "or 6 with the second last"
        )
    for place, field in enumerate(fields):
        # Alone among stars, so that what is wrong is this one.
        name, largest, takes = FIELDS[place]
        alone = ["*"] * len(fields)
        alone[place] = field
        try:
            if _DRAWN.search(field):
                raise CroniterError("drawn by chance")
            if any(int(step) > largest for step in re.findall(r"/(\d+)", field)):
                raise CroniterError("a step over its end")
            croniter.expand(" ".join(alone))
        except (CroniterError, ValueError, KeyError, IndexError):
            raise SettingsError(
                f"{said}: {name} {field!r} cannot be used; it takes {takes}, and *, ranges, lists and steps of these"
            ) from None
    if _OF_THE_MONTH.search(fields[4]) and not _both_must_fit(expression, both_days) and fields[2] != "?":
        raise SettingsError(
            f"{said}: day of month {fields[2]!r} and day of week {fields[4]!r} do not go together: take one of them, "
            "or two schedules"
        )
    try:
        _step(expression, both_days, _LEAP_YEAR, forward=True)
    except CroniterBadDateError:
        try:
            _step(" ".join([*fields[:4], "*", *fields[5:]]), both_days, _LEAP_YEAR, forward=True)
        except CroniterBadDateError:
            why = f"its day of month {fields[2]!r} is in no month {fields[3]!r}"
        else:
            why = f"its day of month {fields[2]!r} is never its day of week {fields[4]!r}: take one of them"
        raise SettingsError(f"{said} is never due: {why}") from None
    except (CroniterError, ValueError, KeyError, IndexError) as error:
        raise SettingsError(f"{said} cannot be used ({error})") from None


@lru_cache(maxsize=4096)
def _iterator(expression: str, both_days: bool) -> croniter:
    """Half a millisecond to make, so made once; `_step` winds it to where it is wanted."""
    return croniter(expression, _LEAP_YEAR, day_or=not _both_must_fit(expression, both_days))


def _both_must_fit(expression: str, both_days: bool) -> bool:
    """Whether both the day of month and the day of week must fit: in cron, when one of them begins with a star."""
    return both_days or any(day.startswith("*") for day in expression.split()[2:5:2])


_winding = threading.Lock()


def _step(expression: str, both_days: bool, wall: datetime, *, forward: bool) -> datetime:
    """The next wall time of an expression after `wall`, or the one before it. Knows no zone: naive in, naive out."""
    with _winding:
        iterator = _iterator(expression, both_days)
        iterator.set_current(wall, force=True)
        found: datetime = iterator.get_next(datetime) if forward else iterator.get_prev(datetime)
        return found


# -- the clock on the wall


def _offset(wall: datetime, *, fold: int) -> timedelta:
    offset = wall.replace(fold=fold).utcoffset()
    assert offset is not None, "a time in a zone has one"
    return offset


def _moment_ms(wall: datetime, zone: tzinfo) -> int:
    """When the clock of `zone` first shows `wall`; where it never does, the moment at which it jumps over it."""
    local = wall.replace(tzinfo=zone)
    before, after = _offset(local, fold=0), _offset(local, fold=1)
    epoch_s = int((wall.replace(tzinfo=timezone.utc) - before).timestamp())
    if after <= before or datetime.fromtimestamp(epoch_s, zone).replace(tzinfo=None) == wall:
        return epoch_s * 1000
    # In a gap the first offset is the one from before the jump; the jump lies between the two readings of the time.
    low, high = epoch_s - int((after - before).total_seconds()), epoch_s
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high * 1000
