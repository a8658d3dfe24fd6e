"""What fails beside a body buries one message at most, and ends nobody. A worker in this process, on a real server."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from rsq import App, MaxRetriesExceededError, Rejected, RemoteError, State, Task, signals
from rsq.broker.dead_letters import DeadLetter, dead_letters
from rsq.calls.message import pack_meta
from rsq.calls.outcome import Buried
from rsq.clock import ServerClock
from rsq.errors import Reject, Retry, UnknownTask
from rsq.settings import Settings
from rsq.worker.attempt import Attempts
from rsq.worker.solo import SoloWorker
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.worker.test_parts import delivery


@contextmanager
def working(app: App) -> Iterator[SoloWorker]:
    """A worker of this app, in a thread."""
    worker = SoloWorker(app, main_thread=False)
    worker.begin()
    thread = threading.Thread(target=worker.serve)
    thread.start()
    try:
        yield worker
        assert thread.is_alive(), "it works on"
    finally:
        worker.stop()
        thread.join(30)
        app.close()
    assert not thread.is_alive()


@pytest.fixture
def app(url: str) -> App:
    app = App("borders", url=url, task_defaults={"retry_backoff": 0.01})

    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    return app


def add(app: App) -> object:
    return app.tasks["add"].delay(1, 2).get(timeout=30)


def letters(app: App) -> list[DeadLetter]:
    with app.client.link() as link:
        return list(dead_letters(link, app.client.queue(None)))


def test_a_limit_may_be_named_by_any_text_that_travels(app: App) -> None:
    @app.task(name="scan", max_concurrency=2, max_concurrency_key="{path}")
    def scan(path: str) -> str:
        return path

    with working(app):
        assert scan.delay("report-\udcff.txt").get(timeout=30) == "report-\udcff.txt"
        first = scan.apply_async(("a",), dedupe_key="\udcff")
        assert scan.apply_async(("b",), dedupe_key="\udcff").id == first.id
        assert first.get(timeout=30) == "a"
    assert letters(app) == []


def test_a_call_that_expires_between_its_attempts_ends_as_the_failure_that_it_was(app: App) -> None:
    @app.task(name="outlasts")
    def outlasts(moment_ms: int | None) -> None:
        assert moment_ms is not None
        wait_until(lambda: time.time() * 1000 > moment_ms, 30, "the other to expire")

    @app.task(name="fails", bind=True, autoretry_for=(KeyError,), retry_backoff=0.2)
    def fails(self: Task[..., Any]) -> None:
        outlasts.delay(self.request.expires)  # stands before the retry, and there is one slot
        raise KeyError("why")

    with working(app):
        handle = fails.apply_async(expires=5)
        with pytest.raises(MaxRetriesExceededError, match="expired before attempt 2"):
            handle.get(timeout=30)
        assert handle.state is State.FAILURE
        assert [(letter.id, letter.reason) for letter in letters(app)] == [(handle.id, "retries-exhausted")]


class Unkind(type):
    """Its classes fail when somebody asks what belongs to them."""

    def __instancecheck__(cls, instance: object) -> bool:
        raise SystemExit("ask somebody else")


class Secret(Exception, metaclass=Unkind):
    pass


def test_a_fault_beside_the_body_buries_its_call_alone(app: App) -> None:
    @app.task(name="fails", autoretry_for=(Secret,))
    def fails(text: str) -> None:
        raise ValueError(text)

    with working(app):
        handle = fails.delay("no")
        with pytest.raises(RemoteError, match="ask somebody else"):
            handle.get(timeout=30)
        assert add(app) == 3
        assert [(each.id, each.reason, each.attempts) for each in letters(app)] == [(handle.id, "internal", 1)]


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("not a word")


class Hidden(Exception):
    @property
    def args(self) -> Any:
        raise KeyboardInterrupt

    @args.setter
    def args(self, value: Any) -> None:
        pass


class Last(BaseException):
    pass


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD: dict[str, Callable[[], BaseException]] = {
    "mute": lambda: Mute(),
    "hidden": lambda: Hidden("args"),
    "last": lambda: Last("of all"),
    "stop": lambda: StopIteration(1),
    "generator": lambda: GeneratorExit(),
    "interrupt": lambda: KeyboardInterrupt(),
    "surrogate": lambda: ValueError("\udcff"),
    **{f"deep {levels}": partial(lambda levels: ValueError(deep(levels)), levels) for levels in (509, 1020, 1022)},
}


@pytest.mark.parametrize("name", ODD)
def test_errors_of_odd_classes_are_errors_of_their_calls(app: App, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is captured goes through xdist, which cannot carry a lone surrogate.
    monkeypatch.setattr(logging.getLogger("rsq.task"), "disabled", True)

    @app.task(name="raises", max_retries=0)
    def raises() -> None:
        raise ODD[name]()

    with working(app):
        handle = raises.delay()
        wait_until(lambda: handle.state is State.FAILURE, 30, "it to be told")
        assert [each.reason for each in letters(app)] == ["failed"]
        if name in ("mute", "hidden", "last", "stop", "generator", "interrupt"):
            with pytest.raises(RemoteError):
                handle.get(timeout=30)
        assert add(app) == 3


def test_a_wait_that_nobody_can_keep_is_the_bodys_error(app: App) -> None:
    @app.task(name="asks", bind=True, max_retries=1)
    def asks(self: Task[..., Any], countdown: float) -> None:
        self.retry(countdown=countdown)

    with working(app):
        for countdown in (1e306, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="countdown takes seconds"):
                asks.apply_async((countdown,), max_retries=0).get(timeout=30)
        assert add(app) == 3


def test_what_steers_a_task_does_not_steer_who_waits_for_it(app: App) -> None:
    @app.task(name="child", max_retries=0)
    def child(how: str) -> None:
        if how == "retry":
            raise Retry("once more")
        if how == "retry of":
            raise Retry("once more", KeyError("lost"))
        raise Reject("not mine")

    with working(app):
        with pytest.raises(MaxRetriesExceededError, match="once more"):
            child.delay("retry").get(timeout=30)
        with pytest.raises(KeyError, match="lost"):
            child.delay("retry of").get(timeout=30)
        with pytest.raises(Rejected, match="not mine"):
            child.delay("reject").get(timeout=30)


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, SystemExit])
@pytest.mark.parametrize("signal", [signals.task_prerun, signals.task_postrun, signals.task_success])
def test_what_a_handler_raises_is_nobodys_business(
    app: App, signal: signals.Signal, error: type[BaseException]
) -> None:
    def handler(**rest: Any) -> None:
        raise error

    signal.connect(handler)
    try:
        with working(app):
            assert [add(app), add(app)] == [3, 3]
    finally:
        signal.disconnect(handler)
    assert letters(app) == []


def test_what_a_log_filter_raises_is_nobodys_business(app: App) -> None:
    def reads_what_is_not_there(record: Any) -> bool:
        return bool(record.user_id)

    handler = logging.StreamHandler()
    handler.addFilter(reads_what_is_not_there)
    logger = logging.getLogger("rsq.task")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with working(app):
            assert [add(app), add(app), add(app)] == [3, 3, 3]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def test_an_unknown_task_is_given_up_whatever_its_meta_says(app: App, redis: Any) -> None:
    app.configure(unknown_task_grace_s=0.5)
    far = pack_meta({"deferred_since": 2**62})
    redis.xadd(
        app.client.queue(None).keys.stream(), {"id": "x1", "task": "nobody", "body": b"\x92\x90\x80", "meta": far}
    )
    with working(app), pytest.raises(UnknownTask):
        app.AsyncResult("x1").get(timeout=30)


@pytest.mark.parametrize(("name", "number"), [("crashes", 3), ("deliveries", 100)])
def test_an_unknown_task_is_not_put_off_for_ever(name: str, number: int) -> None:
    mine = delivery(1)
    setattr(mine, name, number)
    verdict = Attempts({}, Settings(), lambda queue: ServerClock()).run(mine)
    assert isinstance(verdict, Buried)
    assert verdict.reason == "worker-lost"


@pytest.fixture
def rights(own_server: MakeServer, app: App) -> Iterator[Callable[[str], None]]:
    """Changes what the worker may do on a server of its own."""
    server = own_server()
    app.configure(url=server.url)
    with server.client() as admin:
        # Who changes them must keep his own.
        admin.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        app.configure(url=server.url.replace("://", "://worker:secret@"))
        yield lambda change: admin.execute_command("ACL", "SETUSER", "worker", change)


def test_a_start_that_the_server_refuses_holds_up_nobody(app: App, redis: Any) -> None:
    @app.task(name="limited", rate_limit="100/s")
    def limited() -> str:
        return "ran"

    rate = f"{app.client.queue(None).keys.prefix}:rate:limited"
    redis.rpush(rate, "what nobody expects there")
    redis.expire(rate, 600)
    with working(app):
        handle = limited.delay()
        assert add(app) == 3
        wait_until(lambda: counted(app, "deferred") == 1, 30, "it to be put off")
        assert handle.state is State.PENDING
        redis.delete(rate)
        assert handle.get(timeout=60) == "ran"


def test_outcomes_that_the_server_refuses_are_kept_until_it_takes_them(
    app: App, rights: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsq.worker.committer.REFUSED_AGAIN_S", 0.2)
    runs: list[int] = []

    @app.task(name="counts")
    def counts(number: int) -> int:
        runs.append(number)
        return number

    with working(app) as worker:
        rights("-xack")
        handles = [counts.delay(number) for number in range(3)]
        wait_until(lambda: len(worker._crew._lanes[0].committer._refused) == 3, 30, "them to be refused")
        rights("+xack")
        wait_until(lambda: not worker.unsettled(), 30, "them to be written")
        assert sorted(runs) == [0, 1, 2]
        assert all(handle.state in (State.SUCCESS, State.FAILURE) for handle in handles)


def counted(app: App, how: str) -> int:
    with app.client.link() as link:
        return int(link.call("HGET", app.client.queue(None).keys.stats, how) or 0)
