"""Tasks on the producer's side, without a server."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import pickle
import runpy
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial, wraps
from pathlib import Path
from typing import Any, get_type_hints
from uuid import uuid4

import pytest

import rsq
from rsq import App, MaxRetriesExceededError, RsqError, SettingsError, Task, codec
from rsq.app import shared
from rsq.calls.options import TaskOptions
from rsq.calls.placement import marker_key
from rsq.calls.retry import RetryPolicy
from rsq.errors import DuplicateTask, InvalidTask, Retry, UnknownTask
from rsq.loader import load_app
from rsq.settings import Settings

app = App("unit", url="redis://localhost:1")


@app.task
def plain(a: int, b: int = 2, *, c: int = 3) -> int:
    """What it does."""
    return a + b + c


@app.task(bind=True, name="renamed", queue="mail")
def bound(self: Task[..., Any], a: int) -> tuple[str, int]:
    return self.name, a


@app.task
async def asynchronous(a: int) -> int:
    return a


def test_a_task_is_still_the_function() -> None:
    assert plain(1) == 6
    assert plain(1, 1, c=1) == 3
    assert bound(5) == ("renamed", 5)
    assert asyncio.run(asynchronous(4)) == 4
    assert plain.__doc__ == "What it does."
    assert plain.__name__ == "plain"
    assert bound.request.called_directly


@pytest.mark.parametrize(
    ("zone", "moment", "hour"),
    [
        ("UTC", datetime(2030, 7, 1, 12), 12),
        ("Europe/Paris", datetime(2030, 7, 1, 12), 10),
        ("Europe/Paris", datetime(2030, 1, 1, 12), 11),
        ("Asia/Tokyo", datetime(2030, 1, 1, 12), 3),
        ("Asia/Tokyo", datetime(2030, 1, 1, 12, tzinfo=timezone.utc), 12),
        ("Asia/Tokyo", datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=-5))), 17),
    ],
)
def test_a_time_without_an_offset_is_in_the_zone_of_the_app(zone: str, moment: datetime, hour: int) -> None:
    expected_ms = int(moment.replace(hour=hour, tzinfo=timezone.utc).timestamp() * 1000)
    with app.configured(timezone=zone):
        message, placement = plain.message((1,), eta=moment, expires=moment)
        assert placement.eta_ms == expected_ms
        assert message.meta["expires"] == expected_ms


def test_names() -> None:
    assert plain.name == "tests.test_task.plain"
    assert bound.name == "renamed"
    assert set(app.tasks) == {"tests.test_task.plain", "renamed", "tests.test_task.asynchronous"}


def test_a_script_gives_its_tasks_the_name_by_which_workers_import_it(tmp_path: Path) -> None:
    script = tmp_path / "jobs.py"
    script.write_text("from rsq import App\napp = App('s')\n@app.task\ndef work(): ...\n")
    found = runpy.run_path(str(script), run_name="__main__")
    # run_path puts no module into sys.modules; the running program's own file stands in.
    assert found["work"].name.endswith(".work")
    assert not found["work"].name.startswith("__main__")


def test_lambdas_and_nested_functions_need_a_name() -> None:
    with pytest.raises(InvalidTask, match="lambda"):
        app.task(lambda: 1)

    def nested() -> int:
        return 1

    with pytest.raises(InvalidTask, match="defined inside a function"):
        app.task(nested)
    other = App("other")
    assert other.task(name="named")(nested).name == "named"


@pytest.mark.parametrize("what", [3, int, App, partial(print, 1)])
@pytest.mark.parametrize("options", [{}, {"name": "named"}])
def test_only_functions_can_be_tasks(what: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask, match="is not a function"):
        App("other").task(**options)(what)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\ud800", "x" * 501, "\x00"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidTask, match="a task cannot be named"):
        App("other").task(name=name)(plain.function)
    with pytest.raises(InvalidTask, match="a task cannot be named"):
        app.send_task(name)


def test_a_name_that_is_given_as_the_function() -> None:
    with pytest.raises(InvalidTask, match=r"the name of a task is given as name='shop\.add'"):
        App("other").task("shop.add")  # type: ignore[call-overload]
    with pytest.raises(InvalidTask, match="known by its name"):
        app.send_task(plain)  # type: ignore[arg-type]


def test_two_functions_under_one_decorator_are_two() -> None:
    def logged(function: Any) -> Any:
        @wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    other = App("other")
    other.task(name="x")(logged(test_names))
    with pytest.raises(DuplicateTask, match="give one of them another name"):
        other.task(name="x")(logged(test_one_name_is_one_function))


@pytest.mark.parametrize("function", [os.getpid, test_names])
def test_what_takes_no_argument_cannot_be_bound(function: Any) -> None:
    with pytest.raises(InvalidTask, match="takes no argument, and bind=True passes the task as the first one"):
        App("other").task(name="x", bind=True)(function)


@pytest.mark.parametrize("name", ["", "a\n", 5])
def test_names_of_apps_that_cannot_be(name: Any) -> None:
    with pytest.raises(SettingsError, match="an app is named by a text"):
        App(name)


def test_an_app_without_a_name_has_that_of_the_module_that_makes_it() -> None:
    assert App().name == __name__

    class Mine(App):
        pass

    assert Mine(namespace="x").name == __name__


def test_a_function_whose_parameters_python_does_not_tell() -> None:
    with pytest.raises(InvalidTask, match="write a function that calls it"):
        App("other").task(max)


def test_one_name_is_one_function() -> None:
    other = App("other")
    other.task(name="x")(test_names)
    other.task(name="x")(test_names)  # the module was imported twice
    with pytest.raises(DuplicateTask, match="give one of them another name"):
        other.task(name="x")(test_one_name_is_one_function)
    with pytest.raises(InvalidTask, match="is a task already"):
        other.task(plain)


def test_celerys_words_for_retries() -> None:
    other = App("other")

    def of(**options: Any) -> TaskOptions:
        task: Task[..., Any] = other.task(name="t", **options)(plain.function)
        return task.options

    assert of(retry_backoff=True).retry_backoff == 1.0
    assert of(retry_backoff=False).retry_backoff == 0.0
    assert of(retry_backoff=5).retry_backoff == 5.0
    assert of(default_retry_delay=timedelta(minutes=1)).default_retry_delay == 60.0
    assert of(retry_backoff=timedelta(seconds=2), retry_backoff_max=timedelta(hours=1)).retry_backoff_max == 3600.0
    for classes in ([OSError, KeyError], (OSError, KeyError), {OSError, KeyError}):
        assert set(of(autoretry_for=classes).autoretry_for) == {OSError, KeyError}
    assert of(autoretry_for=OSError, dont_autoretry_for=[KeyError]).policy() == RetryPolicy((OSError,), (KeyError,))
    both = of(retry_kwargs={"max_retries": 5, "countdown": 3})
    assert (both.max_retries, both.default_retry_delay) == (5, 3.0)
    task = other.task(name="bound", bind=True, retry_kwargs={"max_retries": None})(bound.function)
    assert task.max_retries is None
    assert task.MaxRetriesExceededError is MaxRetriesExceededError


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retry_kwargs": 5}, "retry_kwargs takes a map with max_retries and countdown"),
        ({"retry_kwargs": {"eta": 1}}, "eta: write countdown"),
        (
            {"retry_kwargs": {"jitter": 1}},
            "no name in retry_kwargs is called 'jitter'; there are",
        ),
        ({"retry_kwargs": {"max_retries": 1}, "max_retries": 2}, "leave out max_retries in retry_kwargs"),
        ({"retry_kwargs": {"countdown": 1}, "retry_backoff": True}, "says nothing beside retry_backoff"),
        ({"retry_kwargs": {"countdown": "1"}}, "default_retry_delay takes seconds"),
        ({"autoretry_for": "OSError"}, "autoretry_for takes classes of exceptions, not 'OSError'"),
        ({"autoretry_for": [3]}, "autoretry_for takes classes"),
        ({"retry_backoff": "1"}, "retry_backoff takes seconds"),
        ({"retry_backoff_max": None}, "retry_backoff_max takes seconds"),
        ({"default_retry_delay": -1}, "default_retry_delay must be 0 seconds or more"),
        ({"base": object}, "base: there are no base classes"),
        ({"track_started": True}, "track_started: needless"),
        ({"max_retry": 1}, "no task option is called 'max_retry'; did you mean max_retries"),
        ({"zzz": 1}, "no task option is called 'zzz'; there are: acks_late"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidTask, match=text):
        app.task(**options)
    with pytest.raises(InvalidTask, match=text):
        App("x", task_defaults=options)
    with pytest.raises(InvalidTask, match=text):
        rsq.task(**options)


def test_options_are_checked_where_they_are_given() -> None:
    wrong: list[dict[str, Any]] = [
        {"max_retry": 1},
        {"priority": 11},
        {"queue": "a b"},
        {"result_expires": 0},
        {"max_length": -1},
        {"max_length_wait": "long"},
        {"rate_limit": "often"},
        {"rate_limit": "0/s"},
        {"rate_limit": 5},
        {"rate_limit": "5/s", "rate_burst": 0},
        {"rate_limit_key": "{a}"},
        {"max_concurrency": 0},
        {"max_concurrency_key": "{a}"},
        {"max_concurrency": 1, "max_concurrency_key": 1},
        {"dedupe_until": "done"},
        {"dedupe_key": "{a}", "dedupe_until": "later"},
        {"dedupe_key": "{a}", "on_duplicate": "drop"},
        {"debounce": 1},
        {"dedupe_key": "{a}", "debounce": 0},
    ]
    for options in wrong:
        with pytest.raises((InvalidTask, SettingsError)):
            app.task(**options)
        with pytest.raises((InvalidTask, SettingsError)):
            App("x", task_defaults=options)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e300, 4e9, timedelta(days=99_999), True, "1"])
def test_times_that_cannot_be_kept(seconds: Any) -> None:
    for name in ("result_expires", "dedupe_ttl", "expires"):
        with pytest.raises(InvalidTask, match=name):
            TaskOptions(**{name: seconds})
    for name in ("result_expires", "dedupe_ttl", "expires", "countdown"):
        with pytest.raises(SettingsError, match=name):
            plain.message((1,), **{name: seconds})
    with pytest.raises(ValueError, match="countdown takes seconds"):
        raise Retry("again", countdown="soon" if seconds == "1" else math.nan)  # type: ignore[arg-type]


def test_times_may_be_timedeltas_and_tiny() -> None:
    hour = TaskOptions(result_expires=timedelta(hours=1), dedupe_ttl=timedelta(hours=1))  # type: ignore[arg-type]
    assert (hour.result_ttl_ms, hour.dedupe_ttl) == (3_600_000, 3600.0)
    assert TaskOptions(expires=timedelta(minutes=1)).expires == 60.0  # type: ignore[arg-type]
    assert TaskOptions(result_expires=0.0001).result_ttl_ms == 1, "Redis takes no 0"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"time_limit": 0}, "time_limit must be above 0 seconds, not 0"),
        ({"soft_time_limit": float("nan")}, "soft_time_limit takes seconds"),
        ({"time_limit": "1m"}, "time_limit takes seconds"),
        ({"time_limit": 5, "soft_time_limit": 5}, r"soft_time_limit \(5 s\) must be below time_limit \(5 s\)"),
    ],
)
def test_time_limits_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidTask, match=text):
        app.task(**options)
    with pytest.raises(SettingsError, match=text):
        plain.message((1,), **options)


def test_time_limits_of_a_task_and_of_a_call() -> None:
    other = App("other", task_defaults={"time_limit": timedelta(minutes=1)})
    task = other.task(name="t", soft_time_limit=50)(plain.function)
    assert task.timelimit == (60, 50)
    assert task.message((1, 2))[0].meta == {}
    assert task.message((1, 2), time_limit=timedelta(seconds=70), soft_time_limit=None)[0].meta == {"time_limit": 70}
    for changed in ({"time_limit": 40}, {"soft_time_limit": 60}):
        with pytest.raises(SettingsError, match="must be below time_limit"):
            task.message((1, 2), **changed)


def test_threads_that_meet_at_the_first_call_get_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = App("fresh", url="redis://localhost:1")
    make, meet = fresh._client_for, threading.Barrier(2)

    def slowly(settings: Settings) -> Any:
        with suppress(threading.BrokenBarrierError):  # up to Python 3.11 one waits for the other
            meet.wait(0.2)
        return make(settings)

    monkeypatch.setattr(fresh, "_client_for", slowly)
    with ThreadPoolExecutor(2) as pool:
        got = [future.result() for future in [pool.submit(lambda: fresh.client) for _ in range(2)]]
    assert got[0] is got[1] is fresh.client


def test_app_wide_defaults() -> None:
    careful = App("careful", task_defaults={"autoretry_for": (), "queue": "slow"})
    task = careful.task(name="t", queue="fast")(test_names)
    assert (task.policy.autoretry_for, task.options.queue) == ((), "fast")
    assert TaskOptions().autoretry_for == (Exception,)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"d": 1}, "unexpected keyword argument 'd'"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
    ],
)
def test_arguments_that_do_not_fit(args: tuple[int, ...], kwargs: dict[str, int], text: str) -> None:
    with pytest.raises(TypeError, match=rf"plain\(\) .*{text}"):
        plain.apply_async(args, kwargs)


def test_unknown_names_are_helped_along() -> None:
    with pytest.raises(UnknownTask, match=r"did you mean tests\.test_task\.plain"):
        app.get_task("tests.test_task.plian")


def test_a_dedupe_key_that_does_not_fit_the_arguments() -> None:
    with pytest.raises(SettingsError, match="does not fit the arguments"):
        plain.apply_async((1,), dedupe_key="{nothing}")
    with pytest.raises(SettingsError, match="1 to 500 characters"):
        plain.apply_async((1,), dedupe_key=lambda *_, **__: "")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"version": 1}, "needs a dedupe_key"),
        ({"version": -1, "dedupe_key": "k"}, "from 0 to 2"),
        ({"version": time.time_ns(), "dedupe_key": "k"}, "take milliseconds"),
        ({"version": "1", "dedupe_key": "k"}, "takes int"),
        ({"debounce": 1, "dedupe_key": "k", "countdown": 1}, "no countdown or eta"),
        ({"on_duplicate": "replace"}, "need a dedupe_key"),
    ],
)
def test_options_of_a_call_that_do_not_fit(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        plain.apply_async((1,), **options)


@pytest.mark.parametrize(
    ("rate", "microseconds"),
    [("10/s", 100_000), ("100/m", 600_000), ("5/30s", 6_000_000), (" 1.5 / 3 s ", 2_000_000), ("24/d", 3_600_000_000)],
)
def test_rates(rate: str, microseconds: int) -> None:
    assert TaskOptions(rate_limit=rate, rate_burst=3).rate == (microseconds, 3)


def test_a_version_of_a_key_meets_no_key_without_one() -> None:
    keys = ("tea", "tea@3", "@3:tea", "@@3:tea", "3:tea", "@")
    made = [marker_key(key, version) for key in keys for version in (None, 3)]
    assert len(set(made)) == len(made)
    assert marker_key("tea", None) == "tea"


@pytest.mark.parametrize("task_id", ["", "a b", "x" * 101, "é", "a\n"])
def test_task_ids_that_cannot_be_used(task_id: str) -> None:
    with pytest.raises(SettingsError, match="task id"):
        plain.apply_async((1,), task_id=task_id)


def test_an_id_may_be_a_uuid() -> None:
    unique = uuid4()
    assert plain.message((1,), task_id=unique)[0].id == str(unique)
    assert plain.AsyncResult(unique).task_id == app.AsyncResult(unique).id == str(unique)
    for wrong in ("", "a b", 5, None):
        with pytest.raises(SettingsError, match="task id"):
            plain.AsyncResult(wrong)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="task id"):
            app.AsyncResult(wrong)  # type: ignore[arg-type]


def test_no_arguments_may_be_none() -> None:
    assert codec.decode_call(plain.message(None, {"a": 1})[0].body) == ([], {"a": 1})
    assert codec.decode_call(app.task_by_name("elsewhere").message(None, None)[0].body) == ([], {})


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ("ab", None, r"plain\(\) args: a tuple or a list .* not 'ab'"),
        (b"ab", None, "args: a tuple"),
        (5, None, "args: a tuple"),
        ({"a": 1}, None, "args: a tuple"),
        ({1, 2}, None, "args: a tuple"),
        (iter([1]), None, "args: a tuple"),
        ((1,), [("b", 2)], "kwargs: a map"),
        ((1,), {1: 2}, "kwargs: a map"),
    ],
)
def test_arguments_that_are_no_sequence_and_no_map(args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        plain.apply_async(args, kwargs)
    if kwargs is None:
        with pytest.raises(TypeError, match="args: a tuple"):
            plain.map_async([args])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_retries": -1}, "max_retries must be 0 or more"),
        ({"max_length": -1}, "max_length must be 0 or more"),
        ({"max_length_wait": -1}, "max_length_wait must be 0 seconds or more"),
        ({"wait_replicas": -1}, "wait_replicas must be 0 or more"),
        ({"headers": "a"}, "headers takes Mapping"),
        ({"headers": {"a": object()}}, r"headers\['a'\]: cannot serialise"),
        ({"headers": {"a": "x" * 2_000_000}}, "headers: .* bytes packed"),
        ({"link": plain.s()}, "no option of a call is called 'link'"),
        ({"serializer": "json"}, "serializer: needless, values travel as msgpack; leave it out"),
        ({"count_down": 3}, "no option of a call is called 'count_down'; did you mean countdown"),
    ],
)
def test_options_of_a_call_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RsqError, match=text):
        plain.message((1,), **options)


def test_map_async_takes_no_task_id() -> None:
    with pytest.raises(SettingsError, match="task_id"):
        plain.map_async([(1,)], task_id="x")


def test_loading_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shop_one.py").write_text("from rsq import App\nmy = App('one')\n")
    (tmp_path / "shop_two.py").write_text("from rsq import task\n@task\ndef work(): ...\n")
    (tmp_path / "shop_three.py").write_text("from rsq import App\ndef make():\n    return App('three')\n")
    assert load_app("shop_one").name == "one"
    assert load_app("shop_one:my").name == "one"
    assert "shop_two.work" in load_app("shop_two").tasks
    assert load_app("shop_three:make").name == "three"
    monkeypatch.setenv("RSQ_APP", "shop_one:my")
    assert load_app(None).name == "one"


def test_two_apps_of_one_name_in_a_module_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shop_four.py").write_text("from rsq import App\none, two, again = App(), App(), App('other')\n")
    (tmp_path / "shop_five.py").write_text("from rsq import App\none = two = App()\n")
    for place in ("shop_four", "shop_four:one", "shop_four:again"):
        with pytest.raises(SettingsError, match="shop_four holds several apps of one name"):
            load_app(place)
    assert load_app("shop_five").name == "shop_five"


def test_a_program_and_its_worker_agree_on_the_names(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = "from rsq import App\napp = App()\n@app.task\ndef add(): ...\nprint(app.name, *app.tasks)\n"
    for module in ("__main__", "jobs"):
        (package / f"{module}.py").write_text(code)

    def said(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert said("-m", "pkg") == said("-c", "import pkg.__main__") == "pkg.__main__ pkg.__main__.add"
    assert said("-m", "pkg.jobs") == said("-c", "import pkg.jobs") == "pkg.jobs pkg.jobs.add"


# -- pickling and hints


def test_tasks_are_pickled_by_name() -> None:
    for task in (plain, bound, asynchronous):
        assert pickle.loads(pickle.dumps(task)) is task
        assert copy.deepcopy({"task": task})["task"] is task
    hidden = app.task(name="hidden")(test_names)
    try:
        assert pickle.loads(pickle.dumps(hidden)) is hidden
        packed = pickle.dumps(hidden)
    finally:
        del app.tasks["hidden"]
    with pytest.raises(UnknownTask, match=r"there is no task 'hidden' in tests\.test_task"):
        pickle.loads(packed)


def test_handles_are_pickled_by_id() -> None:
    handle = shared.app.AsyncResult("x1", "mail")
    back = pickle.loads(pickle.dumps(handle))
    assert (back, back.queue, back.duplicate) == (handle, "mail", False)
    elsewhere = App("elsewhere", url="redis://user:secret@example.com/3", namespace="other").AsyncResult("x1")
    packed = pickle.dumps(elsewhere)
    assert b"secret" not in packed
    with pytest.raises(SettingsError, match=r"is of redis://.*@example\.com/3, namespace other; the app"):
        pickle.loads(packed)


def test_type_hints_of_a_task() -> None:
    assert get_type_hints(plain) == {"a": int, "b": int, "c": int, "return": int}
    assert get_type_hints(asynchronous) == {"a": int, "return": int}
