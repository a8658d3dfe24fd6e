"""Eager mode, the worker inside a test, and the pytest fixtures around them."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from rsq import App, DuplicateCall, Ignore, Reject, SoftTimeLimitExceeded, State, Task, TimeLimitExceeded
from rsq.broker.embedded import from_url
from rsq.errors import (
    BrokerUnavailable,
    EncodeError,
    MaxRetriesExceededError,
    MessageTooLarge,
    Rejected,
    RemoteError,
    ResultIgnored,
    ResultTimeout,
    SettingsError,
    TaskRevoked,
    UnknownTask,
)
from rsq.result import AsyncResult
from rsq.testing.eager import MOST_NESTED
from rsq.testing.server import TemporaryServer, temporary_server
from rsq.worker.solo import SoloWorker
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.servers import find_binary

pytest_plugins = ["pytester"]

DOCS = Path(__file__).parents[1] / "docs" / "testing.md"

# Nobody listens there: whatever asks the server in eager mode fails at once.
app = App("testing", url="redis://127.0.0.1:1/0")

Body = Task[..., Any]


class OutOfStock(Exception):
    def __init__(self, item: str, left: int) -> None:
        super().__init__(item, left)
        self.left = left


class Picky(Exception):
    def __init__(self, thing: object) -> None:
        super().__init__(object())


@pytest.fixture(autouse=True)
def _server_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_SERVER_BINARY", str(find_binary()))


@pytest.fixture
def runs() -> list[Any]:
    """What the bodies of the tasks have noted, in order."""
    noted.clear()
    return noted


noted: list[Any] = []


@app.task
def add(a: int, b: int = 0) -> int:
    noted.append((a, b))
    return a + b


@app.task
def echo(value: Any) -> Any:
    noted.append(value)
    return value


@app.task(bind=True)
def describe(self: Body) -> dict[str, Any]:
    request = self.request
    names = (
        "id",
        "task",
        "queue",
        "priority",
        "attempt",
        "retries",
        "deliveries",
        "crashes",
        "parent",
        "root",
        "headers",
    )
    return {name: getattr(request, name) for name in (*names, "called_directly")}


@app.task(bind=True, retry_backoff=600)
def flaky(self: Body, failures: int) -> int:
    noted.append(self.request.attempt)
    if self.request.retries < failures:
        raise OutOfStock("chair", self.request.retries)
    return self.request.attempt


@app.task(bind=True, autoretry_for=())
def asks_for_retry(self: Body, failures: int, countdown: float) -> int:
    noted.append(self.request.attempt)
    if self.request.retries < failures:
        self.retry(countdown=countdown)
    return self.request.attempt


@app.task(max_retries=None)
def never_works() -> None:
    raise ValueError("not yet")


@app.task
def sleeps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task
def runs_on() -> None:
    while True:
        pass


@app.task
def picky() -> None:
    raise Picky(1)


@app.task
def rejects(requeues: int) -> str:
    noted.append("run")
    if len(noted) <= requeues:
        raise Reject("later", requeue=True)
    raise Reject("useless")


@app.task
def ignores() -> None:
    raise Ignore


@app.task(ignore_result=True)
def keeps_nothing(fails: bool = False) -> int:
    if fails:
        raise LookupError("gone")
    return 1


@app.task
def returns_what_cannot_travel() -> object:
    noted.append("run")
    return object()


@app.task(queue="other")
def calls(name: str, *args: Any) -> str:
    noted.append("began")
    handle = app.tasks[f"{__name__}.{name}"].delay(*args)
    noted.append("ended")
    return handle.id


@app.task
def sends_itself() -> None:
    noted.append("run")
    sends_itself.delay()


@app.task
async def on_a_loop(delay_s: float = 0.0) -> int:
    await asyncio.sleep(delay_s)
    noted.append(threading.current_thread())
    return id(asyncio.get_running_loop())


@app.task
async def awaits_another(a: int) -> int:
    handle = await add.adelay(a, 1)
    loop = await on_a_loop.adelay()
    assert await loop.aget(timeout=10) != id(asyncio.get_running_loop())
    return await handle.aget(timeout=10)


@app.task
async def sends_from_its_loop(a: int) -> str:
    return (await add.adelay(a)).id


@app.task(dedupe_key="{a}")
def once(a: int) -> int:
    noted.append(a)
    return a


@app.task(dedupe_key="{key}")
def counts(key: str, number: int) -> int:
    noted.append(number)
    return number


@app.task
def interrupted() -> None:
    raise KeyboardInterrupt


@app.task(acks_late=False)
def at_most_once(value: int) -> int:
    noted.append(value)
    add.delay(value)
    return value


class TestEager:
    @pytest.fixture(autouse=True)
    def _eager(self, runs: list[Any]) -> Any:
        with app.testing.eager():
            yield

    def test_the_handle_has_the_result(self) -> None:
        handle = add.delay(1, b=2)
        assert isinstance(handle, AsyncResult)
        assert handle.get() == 3
        assert handle.get(timeout=0) == 3
        assert handle.result == 3
        assert handle.state is State.SUCCESS
        assert (handle.ready(), handle.successful(), handle.failed()) == (True, True, False)
        assert handle.traceback is None
        assert handle.queue == "default"

    def test_it_outlives_the_block(self) -> None:
        with App("inner", url="redis://127.0.0.1:1/0").testing.eager():
            handle = add.delay(1)
        assert handle.get() == 1

    def test_every_way_to_call(self, runs: list[Any]) -> None:
        assert add.apply_async((1,), {"b": 2}).get() == 3
        assert [handle.get() for handle in add.map_async([(1,), (2,), (3, 4)])] == [1, 2, 7]
        assert app.send_task(add.name, (5, 6)).get() == 11

        async def main() -> list[int]:
            handles = [await add.adelay(1, 1), await add.aapply_async((2,), {"b": 2})]
            return [await handle.aget() for handle in handles]

        assert asyncio.run(main()) == [2, 4]
        assert runs == [(1, 2), (1, 0), (2, 0), (3, 4), (5, 6), (1, 1), (2, 2)]

    def test_values_make_the_round_trip(self, runs: list[Any]) -> None:
        given = {"when": datetime(2024, 1, 2, tzinfo=timezone.utc), "pair": (1, 2)}
        got = echo.delay(given).get()
        assert got == given == runs[0]
        assert got is not given
        assert runs[0] is not given

    def test_what_cannot_travel_is_refused_by_its_path(self, runs: list[Any]) -> None:
        with pytest.raises(EncodeError, match=re.escape("args[0]['x']: cannot serialise")):
            echo.delay({"x": object()})
        with pytest.raises(MessageTooLarge):
            echo.delay(b"x" * 1024 * 1024)
        assert runs == []

    def test_arguments_must_fit(self, runs: list[Any]) -> None:
        bad: Any = add.delay
        with pytest.raises(TypeError, match=r"add\(\) missing a required argument: 'a'"):
            bad()
        with pytest.raises(TypeError, match=r"add\(\) got an unexpected keyword argument 'c'"):
            bad(1, c=2)
        assert runs == []

    def test_a_result_that_cannot_travel_is_a_failure_without_retries(self, runs: list[Any]) -> None:
        with pytest.raises(EncodeError, match="result: cannot serialise"):
            returns_what_cannot_travel.delay()
        assert runs == ["run"]

    def test_the_request(self) -> None:
        told = describe.apply_async(task_id="mine", priority=7, queue="q", headers={"trace": "t"}).get()
        assert told == {
            "id": "mine",
            "task": describe.name,
            "queue": "q",
            "priority": 7,
            "attempt": 1,
            "retries": 0,
            "deliveries": 1,
            "crashes": 0,
            "parent": None,
            "root": None,
            "headers": {"trace": "t"},
            "called_directly": False,
        }

    def test_calls_of_tasks_know_their_parent(self) -> None:
        handle = calls.delay("describe")
        inner = app.AsyncResult(handle.get()).get()
        assert (inner["parent"], inner["root"]) == (handle.id, handle.id)
        outermost = calls.delay("calls", "describe")
        middle = app.AsyncResult(outermost.get())
        innermost = app.AsyncResult(middle.get()).get()
        assert (innermost["parent"], innermost["root"]) == (middle.id, outermost.id)

    def test_retries_are_followed_without_waiting(self, runs: list[Any]) -> None:
        assert flaky.delay(3).get() == 4
        assert runs == [1, 2, 3, 4]
        runs.clear()
        assert asks_for_retry.delay(2, 3600).get() == 3
        assert runs == [1, 2, 3]

    def test_retries_come_to_an_end(self, runs: list[Any]) -> None:
        with pytest.raises(OutOfStock) as caught:
            flaky.apply_async((9,), max_retries=1)
        assert caught.value.left == 1
        assert runs == [1, 2]
        assert "in flaky\n    raise OutOfStock" in str(caught.value.__cause__)

    def test_the_error_is_the_one_that_a_caller_would_get(self) -> None:
        with pytest.raises(RemoteError, match="Picky"):
            picky.delay()

    def test_errors_can_stay_in_the_result(self) -> None:
        with app.testing.eager(propagate=False):
            handle = flaky.apply_async((1,), max_retries=0)
        assert handle.state is State.FAILURE
        assert handle.failed()
        assert isinstance(handle.result, OutOfStock)
        assert "raise OutOfStock" in (handle.traceback or "")
        with pytest.raises(OutOfStock):
            handle.get()
        assert isinstance(handle.get(propagate=False), OutOfStock)

    def test_a_task_does_not_hear_of_errors_in_its_calls_but_the_test_does(self, runs: list[Any]) -> None:
        with pytest.raises(OutOfStock):
            calls.delay("flaky", 9)
        assert runs == ["began", 1, 2, 3, 4, "ended"]

    def test_its_own_error_goes_first(self) -> None:
        @app.task(name="fails-after-a-call", max_retries=0)
        def fails_after_a_call() -> None:
            flaky.delay(9)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails_after_a_call.delay()

    def test_reject_and_ignore(self, runs: list[Any]) -> None:
        with pytest.raises(Rejected, match="useless"):
            rejects.delay(2)
        assert runs == ["run"] * 3
        handle = ignores.delay()
        assert handle.state is State.PENDING
        with pytest.raises(ResultTimeout, match="in eager mode none will come"):
            handle.get(timeout=60)
        with pytest.raises(ResultTimeout):
            asyncio.run(handle.aget())

    def test_ignored_results(self) -> None:
        with pytest.raises(ResultIgnored):
            keeps_nothing.delay().get()
        with pytest.raises(LookupError, match="gone"):
            keeps_nothing.delay(fails=True)

    def test_coroutines_run_on_a_loop_that_lives_on(self, runs: list[Any]) -> None:
        first = on_a_loop.delay().get()

        async def main() -> tuple[int, int]:
            return id(asyncio.get_running_loop()), await (await on_a_loop.adelay()).aget()

        own, second = asyncio.run(main())
        assert first == second != own
        assert threading.current_thread() not in runs

    def test_coroutines_inside_coroutines(self) -> None:
        assert awaits_another.delay(3).get() == 4

    def test_times_mean_nothing(self) -> None:
        assert add.apply_async((1,), countdown=3600).get() == 1
        assert add.apply_async((1,), eta=datetime.now(timezone.utc) + timedelta(days=1)).get() == 1
        assert add.apply_async((1,), expires=3600).get() == 1

    def test_a_call_may_expire(self, runs: list[Any]) -> None:
        handle = add.apply_async((1,), expires=-1)
        assert handle.state is State.REVOKED
        with pytest.raises(TaskRevoked, match="expired"):
            handle.get()
        assert runs == []
        with pytest.raises(MaxRetriesExceededError):  # it was run, and failed: not what "revoked" tells
            asks_for_retry.apply_async((2, 3600), expires=5400)
        assert runs == [1, 2]

    def test_dedupe(self, runs: list[Any]) -> None:
        first, second, other = once.delay(1), once.delay(1), once.delay(2)
        assert (first.duplicate, second.duplicate, other.duplicate) == (False, True, False)
        assert first.id == second.id != other.id
        assert second.get() == 1
        assert once.apply_async((1,), task_id="a", dedupe_key="x").duplicate is False
        assert once.apply_async((3,), task_id="a", dedupe_key="y").duplicate is True
        assert runs == [1, 2, 1]

    def test_what_frees_a_key(self, runs: list[Any]) -> None:
        for until, duplicate in (("ttl", True), ("done", False), ("started", False)):
            first = counts.apply_async((until, 1), dedupe_until=until)
            second = counts.apply_async((until, 2), dedupe_until=until)
            assert (first.duplicate, second.duplicate) == (False, duplicate), until
        with pytest.raises(DuplicateCall):
            counts.apply_async(("ttl", 3), on_duplicate="raise")
        assert runs == [1, 1, 2, 1, 2]

    def test_an_older_version_is_superseded(self, runs: list[Any]) -> None:
        handles = [counts.apply_async(("k", version), version=version) for version in (2, 1, 3)]
        assert [handle.state for handle in handles] == [State.SUCCESS, State.REVOKED, State.SUCCESS]
        with pytest.raises(TaskRevoked, match="superseded"):
            handles[1].get()
        assert counts.apply_async(("k", 3), version=3).duplicate
        assert runs == [2, 3]

    def test_results_are_found_by_id(self) -> None:
        handle = calls.delay("add", 1)
        for found in (app.AsyncResult(handle.id), app.AsyncResult(handle.id, "other"), calls.AsyncResult(handle.id)):
            assert found.get() == handle.get()
            assert found.ready()
        assert app.AsyncResult(handle.id, "default").state is State.PENDING
        handle.forget()
        assert not app.AsyncResult(handle.id).ready()
        with pytest.raises(ResultTimeout):
            handle.get()

    def test_a_task_that_nobody_knows(self) -> None:
        with pytest.raises(UnknownTask, match=r"no task is registered as 'billing\.charge'"):
            app.send_task("billing.charge", (1,))

    def test_what_has_no_end_is_ended(self, runs: list[Any]) -> None:
        with pytest.raises(ResultTimeout, match="has not ended after 1000 retries: ValueError: not yet"):
            never_works.delay()
        with pytest.raises(RecursionError, match=r"a task that sends itself never ends in eager mode"):
            sends_itself.delay()
        assert len(runs) == MOST_NESTED + sends_itself.options.max_retries  # type: ignore[operator]

    def test_ctrl_c_is_no_failure_of_the_task(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            interrupted.delay()

    def test_it_holds_in_all_threads(self, runs: list[Any]) -> None:
        threads = [threading.Thread(target=add.delay, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(runs) == [(number, 0) for number in range(4)]

    def test_logging_and_settings_of_the_app_stay(self) -> None:
        assert app.client.settings is app.settings


def test_eager_mode_knows_no_time_limits() -> None:
    with app.testing.eager():
        assert sleeps.apply_async((0.05,), time_limit=0.02, soft_time_limit=0.01).get() == 0.05


def test_eager_mode_ends_with_its_block(runs: list[Any]) -> None:
    client = app.client
    for error in (None, OutOfStock("chair", 1)):
        try:
            with app.testing.eager(), app.testing.eager(propagate=False):
                assert app.eager is not None
                assert app.client is not client
                if error:
                    raise error
        except OutOfStock:
            pass
        assert app.eager is None
        assert app.client is client
    with pytest.raises(BrokerUnavailable):
        App("other", url="redis://127.0.0.1:1/0", broker_timeout_s=0.1).send_task("x")


def test_nested_blocks_of_several_threads_end_in_any_order() -> None:
    first, second = app.testing.eager(), app.testing.eager()
    with first:
        second.__enter__()
    assert add.delay(1).get() == 1
    second.__exit__(None, None, None)
    assert app.eager is None


def test_an_app_that_was_never_used_is_left_unconnected() -> None:
    fresh = App("fresh", url="redis://127.0.0.1:1/0")
    with fresh.testing.eager():
        pass
    assert "client" not in vars(fresh)


def test_eager_mode_never_asks_the_app_s_own_server(url: str) -> None:
    own = App("own", url=url, namespace="eager-own")
    asks: list[Callable[[], object]] = [
        lambda: own.pause("mail"),
        lambda: own.resume("mail"),
        lambda: own.control.shutdown(),
        lambda: own.inspect(timeout=0.1).active(),
        lambda: own.inspect(timeout=0.1).scheduled(),
        lambda: own.schedules.add("daily", 5, "shop.sum"),
        lambda: own.schedules.list(),
    ]
    with own.testing.eager():
        for ask in asks:
            with pytest.raises(SettingsError, match="in eager mode no server is asked"):
                ask()
        with own.testing.isolated(url), pytest.raises(SettingsError, match="in eager mode"):
            own.pause("mail")
    with own.testing.isolated(url), own.testing.eager():
        own.pause("mail")
        assert own.resume("mail") == ["mail"]
    assert own.client.ask(("KEYS", "*eager-own*")) == [[]]
    own.close()


class TestWorker:
    def test_it_runs_tasks(self, url: str, runs: list[Any]) -> None:
        with app.testing.worker(url=url):
            told = describe.apply_async(headers={"trace": "t"})
            assert add.delay(1, 2).get(timeout=10) == 3
            assert told.get(timeout=10)["headers"] == {"trace": "t"}
            assert isinstance(on_a_loop.delay().get(timeout=10), int)
        assert runs[1].name == "rsq-test-worker"

    def test_what_coroutines_have_opened_is_closed_with_their_loop(self, url: str) -> None:
        with app.testing.worker(url=url) as worker:
            inner = sends_from_its_loop.delay(1).get(timeout=10)
            assert app.AsyncResult(inner).get(timeout=10) == 1
            worker.wait_idle()
        gc.collect()  # a connection that was left open warns when it goes, and a warning is an error

    async def test_coroutines_wait_for_it(self, url: str) -> None:
        with app.testing.worker(url=url):
            handles = [await on_a_loop.adelay(), await on_a_loop.adelay()]
            first, second = [await handle.aget(timeout=10) for handle in handles]
            await app.aclose()
        assert first == second != id(asyncio.get_running_loop())

    def test_it_serves_all_queues_that_tasks_name_or_those_that_it_is_told(self, url: str) -> None:
        with app.testing.worker(url=url) as worker:
            calls.delay("add", 1)
            worker.wait_idle()
        with app.testing.worker("other", url=url) as worker:
            handle = calls.delay("add", 1)
            worker.wait_idle()
            assert app.AsyncResult(handle.get(timeout=10)).state is State.PENDING

    def test_it_idles_when_all_is_done(self, url: str, runs: list[Any]) -> None:
        with app.testing.worker(url=url) as worker:
            worker.wait_idle()
            handles: list[AsyncResult[Any]] = [
                asks_for_retry.delay(2, 0.05),
                calls.delay("calls", "at_most_once", 7),
                calls.delay("add", 5),
            ]
            handles += [at_most_once.delay(number) for number in range(20)]
            worker.wait_idle()
            assert [handle.state for handle in handles] == [State.SUCCESS] * len(handles)
            assert {number for number, _ in (run for run in runs if isinstance(run, tuple))} == {5, 7, *range(20)}

    def test_it_tells_what_keeps_it_busy(self, url: str) -> None:
        opened = threading.Event()

        @app.task(name="waits", acks_late=False)
        def waits() -> None:
            opened.wait(60)

        with app.testing.worker(url=url) as worker:
            add.apply_async((1,), countdown=3600)
            worker.wait_idle(delayed=False)
            with pytest.raises(TimeoutError, match="queue default holds 0 messages and 1 delayed ones"):
                worker.wait_idle(timeout=0.05)
            handle = waits.delay()
            with pytest.raises(TimeoutError, match=rf"not idle after 0.05 s: running: waits\[{handle.id}\]"):
                worker.wait_idle(timeout=0.05, delayed=False)
            opened.set()
            worker.wait_idle(delayed=False)
            assert handle.ready()
        del app.tasks["waits"]

    def test_time_limits_hold(self, url: str) -> None:
        with app.testing.worker(url=url):
            with pytest.raises(TimeLimitExceeded):
                runs_on.apply_async(time_limit=0.3, max_retries=0).get(timeout=30)
            with pytest.raises(SoftTimeLimitExceeded):
                runs_on.apply_async(soft_time_limit=0.3, max_retries=0).get(timeout=30)

    def test_the_running_task_ends_and_what_waits_stays(self, url: str, runs: list[Any]) -> None:
        with app.testing.isolated(url):
            with app.testing.worker():
                handle = on_a_loop.delay(0.2)
                later = [add.delay(number) for number in range(5)]
            with app.testing.worker() as worker:
                worker.wait_idle()
            assert handle.get(timeout=10)
            assert [each.get(timeout=10) for each in later] == list(range(5))
            assert len(runs) == 6

    def test_it_may_end_before_it_has_begun(self, url: str) -> None:
        for _ in range(10):
            with app.testing.worker(url=url):
                pass

    def test_nothing_is_left_behind(self, url: str, redis: Any) -> None:
        redis.set("mine", 1)
        before = {*threading.enumerate()}
        with app.testing.worker(url=url) as worker:
            add.apply_async((1,), countdown=3600)
            calls.apply_async(("add", 1), priority=3).get(timeout=10)
            worker.wait_idle(delayed=False)
            assert redis.dbsize() > 1
        assert redis.keys() == [b"mine"]
        assert {*threading.enumerate()} == before
        redis.delete("mine")

    def test_the_app_is_what_it_was_before(self, url: str) -> None:
        own = App("own", namespace="mine", lease_s=20)
        settings = own.settings
        with pytest.raises(ZeroDivisionError), own.testing.worker(url=url):
            assert own.settings.url == url
            assert own.settings.namespace.startswith("test-")
            assert own.settings.lease_s == 20
            raise ZeroDivisionError
        assert own.settings == settings
        with pytest.raises(BrokerUnavailable), own.testing.worker(url="redis://127.0.0.1:1/0"):
            pass
        assert own.settings == settings

    def test_without_a_url_it_has_a_server_of_its_own(self, runs: list[Any]) -> None:
        with app.testing.worker():
            assert app.settings.url == temporary_server().url
            assert add.delay(1).get(timeout=10) == 1
        assert from_url(temporary_server().url).status().running

    def test_an_isolated_block_that_sends_nothing_starts_no_server(self) -> None:
        server = TemporaryServer()
        with app.testing.isolated(server.url), app.testing.eager():
            assert add.delay(1).get() == 1
        assert not from_url(server.url).status().running

    def test_eager_blocks_and_isolated_ones_may_be_nested_either_way(self, runs: list[Any]) -> None:
        with app.testing.eager(), app.testing.isolated("redis://127.0.0.1:1/0"):
            inner = add.delay(1, 2)
            assert app.AsyncResult(inner.id).get(timeout=0) == 3
        with app.testing.eager():
            before = add.delay(2, 2)
            app.configure(lease_s=app.settings.lease_s)
            assert app.AsyncResult(before.id).get(timeout=0) == 4

    def test_after_an_eager_block_the_app_goes_by_what_was_configured_in_it(self) -> None:
        own = App("own", url="redis://127.0.0.1:1/0")
        before = own.client
        with own.testing.eager():
            own.configure(url="redis://127.0.0.1:2/0")
        assert own.client.settings.url == "redis://127.0.0.1:2/0"
        with own.testing.eager(), own.configured(url="redis://127.0.0.1:1/0"):
            pass
        assert own.client is not before
        assert own.client.settings == own.settings

    def test_isolated_blocks_do_not_meet(self, url: str, runs: list[Any]) -> None:
        with app.testing.isolated(url):
            add.delay(1)
            with app.testing.isolated(url), app.testing.worker() as worker:
                worker.wait_idle()
            assert runs == []
            with app.testing.worker() as worker:
                worker.wait_idle()
            assert runs == [(1, 0)]

    def test_what_ends_it_is_raised_in_the_test(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        serve = SoloWorker.serve

        def breaks(worker: SoloWorker) -> bool:
            serve(worker)
            raise OutOfStock("chair", 0)

        monkeypatch.setattr(SoloWorker, "serve", breaks)
        with pytest.raises(OutOfStock), app.testing.worker(url=url) as worker:
            add.delay(1).get(timeout=10)
            worker.stop()
            add.delay(2)
            with pytest.raises(OutOfStock):
                worker.wait_idle()

    def test_outcomes_that_could_not_be_committed_fail_the_test(self, own_server: MakeServer) -> None:
        server = own_server()
        losing = App("losing")
        began, opened = threading.Event(), threading.Event()

        @losing.task(name="waits")
        def waits() -> None:
            began.set()
            opened.wait(60)

        with pytest.raises(BrokerUnavailable, match="outcomes that it could not commit"):  # noqa: SIM117
            with losing.testing.worker(url=server.url):
                waits.delay()
                assert began.wait(10)
                server.kill()
                opened.set()

    def test_a_task_that_does_not_end_is_named(self, url: str) -> None:
        patient = App("patient", shutdown_timeout_s=0.1)
        began, opened = threading.Event(), threading.Event()

        @patient.task(name="waits")
        def waits() -> None:
            began.set()
            opened.wait(60)

        with pytest.raises(TimeoutError, match=r"the worker does not end: running: waits\["):  # noqa: SIM117
            with patient.testing.worker(url=url) as worker:
                waits.delay()
                assert began.wait(10)
        opened.set()
        worker._thread.join()


def test_the_server_ends_with_the_process_that_used_it(pytester: pytest.Pytester) -> None:
    script = pytester.makepyfile(
        """
        import os, signal, sys
        from rsq.testing.server import temporary_server
        print(temporary_server().url, flush=True)
        temporary_server().start()
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    for how in ("ended", "killed"):
        server = from_url(pytester.run(sys.executable, script, how).outlines[0])
        wait_until(lambda: not server.directory.exists(), what=f"the server of the process that was {how} to end")  # noqa: B023
        assert not server.status().running


TESTS = """
import rsq
import pytest

@rsq.task
def add(a, b):
    return a + b

seen = set()

def test_worker(rsq_worker, rsq_app, rsq_server):
    assert rsq_app is rsq.default_app
    assert rsq_app.settings.url == rsq_server.url
    assert add.delay(1, 2).get(timeout=10) == 3
    rsq_worker.wait_idle()
    seen.add(rsq_app.settings.namespace)

def test_worker_again(rsq_worker, rsq_app):
    assert add.delay(1, 2).get(timeout=10) == 3
    seen.add(rsq_app.settings.namespace)
    assert len(seen) == 2

def test_eager(rsq_eager):
    with pytest.raises(TypeError):
        add.delay(1, "x")
    assert add.delay(1, 2).get() == 3

def test_tell(rsq_server):
    print("server:", rsq_server.url)
"""


class TestPlugin:
    @pytest.fixture(autouse=True)
    def _settings(self, pytester: pytest.Pytester) -> None:
        pytester.makeini(
            """
            [pytest]
            asyncio_mode = auto
            asyncio_default_fixture_loop_scope = function
            filterwarnings = error
            pythonpath = .
            """
        )

    def test_fixtures(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(TESTS)
        result = pytester.runpytest_subprocess("-s")
        result.assert_outcomes(passed=4)
        url = re.search(r"server: (\S+)", result.stdout.str())
        assert url is not None
        assert not from_url(url[1]).directory.exists()

    def test_eager_tests_start_no_server(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RSQ_SERVER_BINARY", "/bin/false")
        pytester.makepyfile(test_shop=TESTS)
        pytester.runpytest_subprocess("-k", "eager").assert_outcomes(passed=1, deselected=3)
        result = pytester.runpytest_subprocess("-k", "tell")
        result.assert_outcomes(errors=1, deselected=3)
        result.stdout.fnmatch_lines(["E *BrokerUnavailable: the embedded server in * did not start*"])

    def test_each_process_of_xdist_has_its_own_server(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_a=TESTS, test_b=TESTS)
        pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile").assert_outcomes(passed=8)

    def test_an_override_may_give_the_bare_app(self, pytester: pytest.Pytester) -> None:
        pytester.makeconftest(
            """
            import pytest, rsq
            shop = rsq.App("shop", url="redis://127.0.0.1:1/0")
            @shop.task(name="add")
            def add(a, b):
                return a + b
            @pytest.fixture
            def rsq_app():
                return shop
            """
        )
        pytester.makepyfile(
            """
            def test_worker(rsq_app, rsq_worker, rsq_server):
                assert rsq_app.settings.url == rsq_server.url
                assert rsq_app.send_task("add", (1, 2)).get(timeout=10) == 3
            def test_eager(rsq_app, rsq_eager):
                assert rsq_app.send_task("add", (1, 2)).get() == 3
            """
        )
        pytester.runpytest_subprocess().assert_outcomes(passed=2)

    def test_a_run_that_uses_no_fixture_imports_nothing_of_rsq(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import sys
            def test_nothing(pytestconfig):
                assert pytestconfig.pluginmanager.hasplugin("rsq")
                assert [name for name in sys.modules if name.partition(".")[0] == "rsq"] == []
            """
        )
        pytester.runpytest_subprocess().assert_outcomes(passed=1)

    def test_the_examples_of_the_documentation(self, pytester: pytest.Pytester) -> None:
        blocks = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
        assert len(blocks) == 5
        for name, code in blocks:
            path = pytester.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
        pytester.runpytest_subprocess().assert_outcomes(passed=10)
