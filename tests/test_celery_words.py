"""What people write who come from Celery: taken where it means the same, else answered with what to write here."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import rsq
from rsq import App, MaxRetriesExceededError, State, Task
from rsq.broker.dead_letters import dead_letters
from rsq.celery_names import NAMES
from rsq.errors import RsqError, SettingsError
from rsq.testing import ThreadWorker
from tests.helpers import wait_until

app = App("celery-words", task_defaults={"default_retry_delay": 0.01})
noted: list[Any] = []
go_on = threading.Event()


class NotReady(Exception):
    pass


class Falsy(Exception):
    def __len__(self) -> int:
        return 0


@app.task(bind=True, max_retries=2)
def catches(self: Task[..., str], how: str) -> str:
    """The last retry is caught in the body."""
    noted.append(self.request.retries)
    try:
        if how == "exc":
            self.retry(exc=NotReady("no"))
        elif how == "class":
            self.retry(exc=NotReady)
        elif how == "falsy":
            self.retry(exc=Falsy())
        elif how == "handled":
            try:
                raise NotReady("handled")
            except NotReady:
                self.retry()
        self.retry(countdown=timedelta(milliseconds=5))
    except (NotReady, Falsy, self.MaxRetriesExceededError) as error:
        return f"{type(error).__name__}: {error}"


@app.task(bind=True, max_retries=5)
def lets_out(self: Task[..., None], exc: bool, most: int | None) -> None:
    noted.append(self.request.retries)
    try:
        raise NotReady("handled")
    except NotReady as error:
        self.retry(exc=error if exc else None, max_retries=most)


@app.task(bind=True)
def looks_at_its_request(self: Task[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    names = ("args", "kwargs", "hostname", "delivery_info", "is_eager", "called_directly")
    return {**{name: getattr(self.request, name) for name in names}, "repr": repr(self.request), "id": helper_id()}


def helper_id() -> str | None:
    request = rsq.current_request()
    return None if request is None else request.id


@app.task(bind=True, max_retries=0)
def tells(self: Task[..., None]) -> None:
    self.update_state(state="PROGRESS", meta={"current": 3, "total": 10, "status": "rows"})
    go_on.wait(60)
    self.update_state(self.request.id, "WRITING", {"file": "a"})


@app.task(bind=True, max_retries=0)
def tells_wrong(self: Task[..., None], what: dict[str, Any]) -> None:
    self.update_state(**what)


@pytest.fixture(params=["eager", "worker"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    noted.clear()
    if request.param == "eager":
        with app.testing.eager(propagate=False):
            yield "eager"
    else:
        url = request.getfixturevalue("url")
        with app.testing.worker(url=url):
            yield "worker"


@pytest.fixture
def worker(url: str) -> Iterator[ThreadWorker]:
    go_on.clear()
    with app.testing.worker(url=url) as running:
        yield running
        go_on.set()


# -- the last self.retry()

NONE_LEFT = "MaxRetriesExceededError: tests.test_celery_words.catches has no retry left (max_retries=2)"


@pytest.mark.parametrize(
    ("how", "caught"),
    [
        ("exc", "NotReady: no"),
        ("class", "NotReady: "),
        ("falsy", "Falsy: "),
        ("none", NONE_LEFT),
        ("handled", f"{NONE_LEFT}; last: NotReady: handled"),
    ],
)
def test_the_last_retry_can_be_caught_in_the_body(mode: str, how: str, caught: str) -> None:
    assert catches.delay(how).get(timeout=60) == caught
    assert noted == [0, 1, 2]


@pytest.mark.parametrize("most", [None, 1, 7])
@pytest.mark.parametrize("exc", [True, False])
def test_uncaught_it_is_the_end(mode: str, exc: bool, most: int | None) -> None:
    """Also where the task itself would allow more retries, or would retry that error by itself."""
    handle = lets_out.delay(exc, most)
    with pytest.raises(NotReady if exc else MaxRetriesExceededError, match="handled"):
        handle.get(timeout=60)
    assert noted == list(range((5 if most is None else most) + 1))
    if mode == "worker":
        with app.client.link() as link:
            (letter,) = dead_letters(link, app.client.queue(None))
        assert letter.reason == "retries-exhausted"


def test_called_directly_it_raises_what_it_was_given() -> None:
    with pytest.raises(NotReady):
        lets_out(True, None)
    with pytest.raises(rsq.Retry):
        app.task(name="direct", bind=True)(lambda self: self.retry())()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"args": (1,)}, "args: not there; a retry runs the same call"),
        ({"eta": 5}, "eta: write countdown"),
        ({"throw": False}, "throw: needless"),
        ({"count": 5}, "no argument of retry is called 'count'; did you mean countdown"),
    ],
)
def test_arguments_of_retry_that_are_not_there(given: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        catches.retry(**given)


# -- the request


def test_what_the_request_tells(mode: str) -> None:
    handle = looks_at_its_request.apply_async((1, "b"), {"c": [2]}, priority=4)
    seen = handle.get(timeout=60)
    assert seen == {
        "args": [1, "b"],
        "kwargs": {"c": [2]},
        "hostname": socket.gethostname(),
        "delivery_info": {"exchange": "", "routing_key": "default", "priority": 4, "redelivered": False},
        "is_eager": mode == "eager",
        "called_directly": False,
        "repr": f"<Request {looks_at_its_request.name}[{handle.id}] queue=default attempt=1>",
        "id": handle.id,
    }


def test_outside_of_a_call_there_is_none() -> None:
    assert rsq.current_request() is None
    seen = looks_at_its_request(1)
    assert (seen["args"], seen["called_directly"], seen["is_eager"], seen["id"]) == ([], True, False, None)
    assert seen["repr"] == "<Request called directly>"


# -- states and progress


def test_update_state_is_progress_with_a_word(worker: ThreadWorker) -> None:
    handle = tells.delay()
    assert handle.info == {} or handle.progress, "never None"
    wait_until(lambda: handle.state == "PROGRESS", 60, "the word")
    assert handle.status == "PROGRESS"
    assert handle.info == {"current": 3, "total": 10, "status": "rows"}
    progress = handle.progress
    assert progress is not None
    assert (progress.current, progress.total, progress.fraction, progress.state) == (3, 10, 0.3, "PROGRESS")

    async def look() -> tuple[Any, ...]:
        return await handle.astate(), await handle.aready(), await handle.aresult(), await handle.ainfo()

    assert asyncio.run(look()) == ("PROGRESS", False, None, handle.info)
    assert asyncio.run(handle.aprogress()) == progress
    go_on.set()
    assert handle.get(timeout=60) is None
    assert (handle.state, handle.info) == (State.SUCCESS, None)
    wait_until(lambda: (seen := handle.progress) and seen.state == "WRITING", 60, "the last report")
    told = handle.progress
    assert told is not None
    assert (told.current, told.total, told.fraction, told.meta) == (None, None, None, {"file": "a"})
    assert asyncio.run(handle.aready())


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ({"state": "FAILURE", "meta": {}}, ValueError, "cannot end it: FAILURE is what rsq says"),
        ({"state": "SUCCESS"}, ValueError, "cannot end it"),
        ({"state": 5}, TypeError, "state of a progress is a text, not 5"),
        ({"state": "X", "meta": [1]}, TypeError, "meta of update_state is a map"),
        ({"task_id": "other", "state": "X"}, ValueError, "tells of the running call"),
        ({"state": "X", "meta": {"a": "x" * 20_000}}, rsq.MessageTooLarge, "progress"),
    ],
)
def test_update_state_that_cannot_be(what: dict[str, Any], error: type[Exception], text: str) -> None:
    with app.testing.eager(propagate=False), pytest.raises(error, match=text):
        tells_wrong.delay(what).get()


def test_progress_takes_numbers() -> None:
    with pytest.raises(TypeError, match="current of a progress is a number, not 'x'"):
        tells.progress("x")  # type: ignore[arg-type]


# -- words that are not there


OBJECTS: dict[str, Callable[[], Any]] = {
    "App": lambda: app,
    "Task": lambda: catches,
    "AsyncResult": lambda: app.AsyncResult("x1"),
    "Signature": lambda: catches.s(),
    "Request": lambda: catches.request,
    "Control": lambda: app.control,
    "Inspect": lambda: app.inspect(),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_is_not_there_says_what_to_write(kind: str) -> None:
    found = OBJECTS[kind]()
    for name, said in NAMES[kind].items():
        assert not hasattr(type(found), name), name
        with pytest.raises(AttributeError) as caught:
            getattr(found, name)
        assert str(caught.value) == f"{type(found).__name__!r} object has no attribute {name!r}: {said}"
        with pytest.raises(AttributeError, match=re.escape(said)):
            setattr(found, name, 1)
    with pytest.raises(AttributeError, match=r"object has no attribute 'nothing'$"):
        found.nothing  # noqa: B018


def test_attributes_are_looked_up_as_fast_as_ever() -> None:
    """With a `__getattr__` in its class Python looks up every attribute more slowly: a send by a third."""
    for cls in (App, Task, rsq.AsyncResult):
        assert not hasattr(cls, "__getattr__")


def test_options_that_are_not_there_say_what_to_write() -> None:
    make: Any = App
    send: Any = catches.apply_async
    handle: Any = app.AsyncResult("x1")
    for name, said in NAMES["task option"].items():
        with pytest.raises(RsqError, match=re.escape(f"{name}: {said}")):
            app.task(**{name: 1})
    for name, said in NAMES["option of a call"].items():
        with pytest.raises(RsqError, match=re.escape(f"{name}: {said}")):
            send(("exc",), **{name: 1})
    for name, said in NAMES["setting"].items():
        with pytest.raises(SettingsError, match=re.escape(f"{name}: {said}")):
            make("x", **{name: 1})
    for name, said in NAMES["option of get"].items():
        with pytest.raises(TypeError, match=re.escape(f"{name}: {said}")):
            handle.get(**{name: 1})
        with pytest.raises(TypeError, match=re.escape(f"{name}: {said}")):
            asyncio.run(handle.aget(**{name: 1}))


def test_the_page_lists_every_word() -> None:
    page = (Path(rsq.__file__).parent.parent / "docs" / "from-celery.md").read_text()
    lines = [f"| {kind} | `{name}` | {said} |" for kind, names in NAMES.items() for name, said in names.items()]
    table = "\n".join(lines)
    assert f"\n{table}\n\n" in page, f"the table of docs/from-celery.md should be\n{table}"
