"""The options of a task and of one call, checked where they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from rsq import keys
from rsq.calls.checks import (
    check_key,
    check_output_length,
    check_timelimit,
    classes_of,
    count_of,
    not_negative,
    positive,
    require,
    seconds_of,
)
from rsq.calls.each import check_each
from rsq.calls.limits import interval_us
from rsq.calls.message import NO_LIMIT, NO_META, check_id, check_priority
from rsq.calls.placement import PLAIN, Placement
from rsq.calls.retry import RetryPolicy
from rsq.calls.retry_kwargs import options_in
from rsq.calls.stamps import check_stamps
from rsq.clock import epoch_ms
from rsq.errors import InvalidTask, SettingsError
from rsq.hints import unknown_text

MOST_VERSION = 2**53
"""Up to here Lua's numbers are exact."""


@dataclass(frozen=True)
class TaskOptions:
    """The options of a task. Each can be given to `@app.task(...)`, or for all tasks as `App(task_defaults={...})`.

    name            registered name; default: module and function
    bind            pass the task itself as first argument, for `self.request` and `self.retry()`
    queue           where its calls go; default: the app's `default_queue`
    priority        0 to 9, 9 is the most urgent
    autoretry_for, dont_autoretry_for, max_retries, retry_backoff, retry_backoff_max, retry_jitter, default_retry_delay,
    max_crashes     see `rsq.calls.retry.RetryPolicy`; errors as a tuple, a list, a set or one class, delays also as
                    timedelta, and a backoff of True is one second, as in Celery
    time_limit      seconds after which a run is killed, and fails with TimeLimitExceeded; None = never
    soft_time_limit  seconds after which SoftTimeLimitExceeded is raised inside it; None = never
    ignore_result   keep no result
    result_expires  seconds for which a result is kept
    output_length   values that its output keeps at most; the oldest go first
    output_expires  seconds for which an output is kept after the last value
    acks_late       acknowledge after the body ran (at least once); False: before it starts (at most once)
    expires         seconds after which a call that has not started is dropped; None = never
    dedupe_key      calls with the same key run once: text with fields of the arguments, such as "welcome:{user_id}",
                    or a function of the arguments; None = no dedupe
    dedupe_ttl      seconds for which a key is remembered
    dedupe_until    what else ends that: "done" or "started", of the call; "ttl" (default): nothing
    on_duplicate    "ignore" (default): the caller gets the handle of the call that is there; "replace": that call gets
                    the newer arguments, unless it has started; "raise": DuplicateCall
    debounce        seconds: the call waits for so long after the last duplicate, and runs once with its arguments
    rate_limit      starts by time over all workers, such as "100/m"; who comes too soon is put off, with no attempt
    rate_burst      so many may start at once after a pause
    rate_limit_key  as dedupe_key: each key has a rate of its own
    max_concurrency  run so many at once over all workers; others wait, with no attempt
    max_concurrency_key  as dedupe_key: so many of each key
    max_length      refuse a call (QueueFull) when its queue holds this many messages; 0 = no bound
    max_length_wait  seconds to wait for room before that
    """

    name: str | None = None
    bind: bool = False
    queue: str | None = None
    priority: int = 0
    autoretry_for: tuple[type[BaseException], ...] = RetryPolicy.autoretry_for
    dont_autoretry_for: tuple[type[BaseException], ...] = RetryPolicy.dont_autoretry_for
    max_retries: int | None = RetryPolicy.max_retries
    retry_backoff: float | None = RetryPolicy.retry_backoff
    retry_backoff_max: float = RetryPolicy.retry_backoff_max
    retry_jitter: bool = RetryPolicy.retry_jitter
    default_retry_delay: float | None = RetryPolicy.default_retry_delay
    max_crashes: int = RetryPolicy.max_crashes
    time_limit: float | timedelta | None = None
    soft_time_limit: float | timedelta | None = None
    ignore_result: bool = False
    result_expires: float = 86_400.0
    output_length: int = 10_000
    output_expires: float = 86_400.0
    acks_late: bool = True
    expires: float | None = None
    dedupe_key: str | Callable[..., str] | None = None
    dedupe_ttl: float = 86_400.0
    dedupe_until: str = "ttl"
    on_duplicate: str = "ignore"
    debounce: float | None = None
    rate_limit: str | None = None
    rate_burst: int = 1
    rate_limit_key: str | Callable[..., str] | None = None
    max_concurrency: int | None = None
    max_concurrency_key: str | Callable[..., str] | None = None
    max_length: int = 0
    max_length_wait: float = 0.0

    def __post_init__(self) -> None:
        try:
            for name in ("name", "queue"):
                require(name, getattr(self, name), str, None)
            for name in ("bind", "ignore_result", "acks_late", "retry_jitter"):
                require(name, getattr(self, name), bool)
            for name in ("max_retries", "max_crashes", "max_length", "rate_burst", "max_concurrency", "output_length"):
                require(name, getattr(self, name), int, None if name in ("max_retries", "max_concurrency") else int)
            for name in ("result_expires", "output_expires", "dedupe_ttl"):
                object.__setattr__(self, name, positive(name, getattr(self, name)))  # a timedelta, too, is seconds
            for name in ("retry_backoff", "retry_backoff_max", "default_retry_delay", "max_length_wait"):
                value = getattr(self, name)
                if name == "retry_backoff" and isinstance(value, bool):
                    value = float(value)  # Celery's True: from one second on
                if value is not None or name in ("retry_backoff_max", "max_length_wait"):
                    object.__setattr__(self, name, not_negative(name, value))
            for name in ("autoretry_for", "dont_autoretry_for"):
                object.__setattr__(self, name, classes_of(getattr(self, name)))
            self.policy()
            if self.expires is not None:
                object.__setattr__(self, "expires", positive("expires", self.expires))
            check_timelimit(self.timelimit)
            for name in ("dedupe_key", "rate_limit_key", "max_concurrency_key"):
                check_key(name, getattr(self, name))
            _check_duplicates(self.dedupe_until, self.on_duplicate, self.debounce, self.dedupe_key)
            self._check_limits()
            check_priority(self.priority)
            if self.queue is not None:
                keys.check_queue(self.queue)
            check_output_length(self.output_length)
            if self.max_length < 0:
                raise SettingsError(f"max_length must be 0 (no bound) or more, not {self.max_length}")
        except SettingsError as error:
            raise InvalidTask(str(error)) from None

    def _check_limits(self) -> None:
        if self.rate_limit is not None:
            interval_us(self.rate_limit)
        for name in ("rate_burst", "max_concurrency"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingsError(f"{name} must be 1 or more, not {value}")
        for name in ("rate_limit", "max_concurrency"):
            if getattr(self, f"{name}_key") is not None and getattr(self, name) is None:
                raise SettingsError(f"{name}_key says nothing without {name}")

    @property
    def limited(self) -> bool:
        """Whether a start must be asked for."""
        return self.rate_limit is not None or self.max_concurrency is not None

    @cached_property
    def rate(self) -> tuple[int, int] | None:
        """(microseconds between two starts, how many may start at once), or None."""
        return None if self.rate_limit is None else (interval_us(self.rate_limit), self.rate_burst)

    @property
    def timelimit(self) -> tuple[float | None, float | None]:
        """(hard, soft), in seconds. Raises SettingsError."""
        hard, soft = self.time_limit, self.soft_time_limit
        return (
            None if hard is None else positive("time_limit", hard),
            None if soft is None else positive("soft_time_limit", soft),
        )

    @property
    def result_ttl_ms(self) -> int:
        return max(1, int(self.result_expires * 1000))

    def policy(self) -> RetryPolicy:
        return RetryPolicy(**{field.name: getattr(self, field.name) for field in fields(RetryPolicy)})


def options_from(defaults: TaskOptions, given: Mapping[str, Any]) -> TaskOptions:
    """`defaults` with what was given; raises InvalidTask for a name that is no option.

    `retry_kwargs`, a map with max_retries and countdown, stands for the options of its content, as in Celery.
    """
    given = dict(given)
    if (retry_kwargs := given.pop("retry_kwargs", None)) is not None:
        given |= options_in(retry_kwargs, given)
    known = {field.name for field in fields(TaskOptions)}
    for name in given:
        if name not in known:
            raise InvalidTask(unknown_text("task option", name, "task option", known))
    return replace(defaults, **given)


@dataclass(frozen=True)
class CallOptions:
    """A task's options as they bear on one call, worked out once and not at each `delay`.

    placement  PLAIN as long as nothing asks for more than one XADD
    each       None, or how the function is called with each item of its argument, see `rsq.calls.each`
    base       what `placement` begins from when something does
    """

    queue: str | None
    priority: int
    placement: Placement
    base: Placement
    meta: Mapping[str, Any]
    expires: float | datetime | None
    dedupe_key: str | Callable[..., str] | None
    task_id: str | None = None
    version: int | None = None
    dedupe_until: str = "ttl"
    on_duplicate: str = "ignore"
    debounce: float | None = None
    timelimit: tuple[float | None, float | None] = NO_LIMIT
    each: str | None = None

    @classmethod
    def of(cls, options: TaskOptions) -> CallOptions:
        base = _on_duplicate(
            Placement(
                max_length=options.max_length,
                room_wait_s=options.max_length_wait,
                dedupe_ttl_ms=max(1, int(options.dedupe_ttl * 1000)),
            ),
            options.dedupe_until,
            options.on_duplicate,
            options.debounce,
        )
        plain = options.dedupe_key is None and not options.max_length and not base.raises
        return cls(
            options.queue,
            options.priority,
            PLAIN if plain else base,
            base,
            NO_META,
            options.expires,
            options.dedupe_key,
            debounce=options.debounce,
            on_duplicate=options.on_duplicate,
            dedupe_until=options.dedupe_until,
            timelimit=options.timelimit,
        )

    def changed(self, options: Mapping[str, Any], zone: str = "UTC") -> CallOptions:
        """With the options of one call; None leaves one as it is. Raises SettingsError for what does not fit.

        zone  time zone of an eta without an offset
        """
        if not options:
            return self
        for name in options:
            check_call_option(name)
        given = {name: value for name, value in options.items() if value is not None}
        place = _placed(given, zone)
        carried = _carried(given)
        hard, soft = self.timelimit
        timelimit = (carried.get("time_limit", hard), carried.get("soft_time_limit", soft))
        check_timelimit(timelimit)
        meta = {**self.meta, **carried}
        if "max_retries" in options and options["max_retries"] is None:
            meta["max_retries"] = None  # here None says something: without end
        expires = given.get("expires", self.expires)
        if expires is not None and not isinstance(expires, datetime):
            expires = seconds_of("expires", expires)
        key = given.get("dedupe_key", self.dedupe_key)
        check_key("dedupe_key", key)
        until = given.get("dedupe_until", self.dedupe_until)
        on_duplicate = given.get("on_duplicate", self.on_duplicate)
        debounce = given.get("debounce", self.debounce)
        _check_duplicates(until, on_duplicate, debounce, key)
        base = self.base
        if not given.keys().isdisjoint(("dedupe_until", "on_duplicate", "debounce")):
            base = _on_duplicate(base, until, on_duplicate, debounce)
        if "debounce" in given and {"countdown", "eta"} & given.keys():
            raise SettingsError("debounce says when the call starts: give no countdown or eta with it")
        version = given.get("version")
        if version is not None and key is None:
            raise SettingsError("a version needs a dedupe_key: the newest version of that key counts")
        return CallOptions(
            keys.check_queue(given["queue"]) if "queue" in given else self.queue,
            check_priority(given["priority"]) if "priority" in given else self.priority,
            replace(base, **place) if place or key is not None or base is not self.base else self.placement,
            base,
            meta,
            expires,
            key,
            check_id(given["task_id"]) if "task_id" in given else None,
            None if version is None else _check_version(version),
            until,
            on_duplicate,
            debounce,
            timelimit,
            carried.get("each"),
        )


def check_call_option(name: str) -> None:
    """Raises SettingsError for what is no option of a call."""
    if name not in _CALL_OPTIONS:
        raise SettingsError(unknown_text("option of a call", name, "option of a call", _CALL_OPTIONS))


def _check_version(version: Any) -> int:
    number: int = require("version", version, int)
    if not 0 <= number <= MOST_VERSION:
        raise SettingsError(
            f"version must be from 0 to 2 ** 53, which the server counts exactly, not {number}: of a time take "
            "milliseconds or microseconds"
        )
    return number


def _on_duplicate(base: Placement, until: str, on_duplicate: str, debounce: float | None) -> Placement:
    """`base` with what becomes of duplicates."""
    if debounce is not None:
        delay_ms = int(positive("debounce", debounce) * 1000)
        until = "started" if until == "ttl" else until
        base = replace(base, delay_ms=delay_ms, debounce_ms=delay_ms)
    replaces = on_duplicate == "replace" or debounce is not None
    return replace(base, dedupe_until=until, replaces=replaces, raises=on_duplicate == "raise")


def _check_duplicates(until: Any, on_duplicate: Any, debounce: Any, key: Any) -> None:
    for name, value, values in (
        ("dedupe_until", until, ("ttl", "done", "started")),
        ("on_duplicate", on_duplicate, ("ignore", "replace", "raise")),
    ):
        if value not in values:
            raise SettingsError(f"{name} takes {', '.join(map(repr, values))}, not {value!r}")
    if debounce is not None:
        positive("debounce", debounce)
    if key is None and (until != "ttl" or on_duplicate == "replace" or debounce is not None):
        raise SettingsError("dedupe_until, on_duplicate='replace' and debounce need a dedupe_key")


def _placed(given: Mapping[str, Any], zone: str) -> dict[str, Any]:
    """The fields of a Placement that the options of a call change."""
    place: dict[str, Any] = {}
    if "countdown" in given and "eta" in given:
        raise SettingsError("give countdown or eta, not both")
    if "countdown" in given:
        place["delay_ms"] = max(0, int(seconds_of("countdown", given["countdown"]) * 1000))
    if "eta" in given:
        if not isinstance(given["eta"], datetime):
            raise SettingsError(f"eta takes a datetime, not {given['eta']!r}; for seconds from now there is countdown")
        place["eta_ms"] = epoch_ms(given["eta"], zone)
    if "dedupe_ttl" in given:
        place["dedupe_ttl_ms"] = max(1, int(positive("dedupe_ttl", given["dedupe_ttl"]) * 1000))
    if "max_length" in given:
        place["max_length"] = count_of("max_length", given["max_length"])
    if "max_length_wait" in given:
        place["room_wait_s"] = not_negative("max_length_wait", given["max_length_wait"])
    if "wait_replicas" in given:
        place["replicas"] = count_of("wait_replicas", given["wait_replicas"])
    if "task_id" in given:
        place["unique"] = True
    return place


def _carried(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call that travel with the message."""
    carried: dict[str, Any] = {}
    if "max_retries" in given:
        carried["max_retries"] = count_of("max_retries", given["max_retries"])
    if "ignore_result" in given:
        carried["ignore_result"] = require("ignore_result", given["ignore_result"], bool)
    if "result_expires" in given:
        carried["result_expires"] = positive("result_expires", given["result_expires"])
    if "output_length" in given:
        carried["output_length"] = check_output_length(given["output_length"])
    if "output_expires" in given:
        carried["output_expires"] = positive("output_expires", given["output_expires"])
    if "headers" in given:
        carried["headers"] = dict(require("headers", given["headers"], Mapping))
    for name in ("time_limit", "soft_time_limit"):
        if name in given:
            carried[name] = positive(name, given[name])
    if "stamps" in given:
        carried["stamps"] = check_stamps(given["stamps"])
    if "each" in given:
        carried["each"] = check_each(given["each"])
    return carried


_PLACED = {"countdown", "eta", "dedupe_ttl", "max_length", "max_length_wait", "task_id", "wait_replicas"}
_CARRIED = {"max_retries", "ignore_result", "result_expires", "headers", "stamps", "time_limit", "soft_time_limit"}
_CARRIED |= {"output_length", "output_expires"}
_DUPLICATES = {"dedupe_key", "dedupe_until", "on_duplicate", "debounce", "version"}
_CALL_OPTIONS = _PLACED | _CARRIED | _DUPLICATES | {"queue", "priority", "expires", "each"}
