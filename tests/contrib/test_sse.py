"""Server-Sent Events, by real requests: what a browser would read."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest

from rsq import App
from rsq.contrib import sse
from tests.helpers import wait_until

PATIENT_S = 60.0

app = App("sse")


@app.task(bind=True, max_retries=0)
def counts(self: Any, number: int, fails: bool = False) -> None:
    for n in range(number):
        self.emit({"n": n})
    if fails:
        raise ValueError("a secret of the server")


@app.task(bind=True, max_retries=2, retry_backoff=None, default_retry_delay=0)
def again(self: Any) -> None:
    self.emit(self.request.attempt)
    if self.request.attempt == 1:
        raise ValueError


class Event(NamedTuple):
    kind: str
    cursor: str
    data: Any


def parsed(text: str) -> list[Event]:
    """As a browser reads it; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.splitlines():
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        if "data" in fields:
            data = json.loads("\n".join(fields["data"]))
            found.append(Event(fields.get("event", ["message"])[0], fields.get("id", [""])[0], data))
    return found


# -- the servers


def starlette_app() -> Any:
    applications = pytest.importorskip("starlette.applications")
    from starlette.requests import Request
    from starlette.routing import Route

    async def watch(request: Request) -> Any:
        return sse.starlette_response(request, counts.AsyncResult(request.path_params["call"]), keep_alive=0.05)

    return applications.Starlette(routes=[Route("/{call}", watch)])


def fastapi_app() -> Any:
    fastapi = pytest.importorskip("fastapi")
    web = fastapi.FastAPI()

    async def watch(request: Any, call: str) -> Any:
        return sse.starlette_response(request, counts.AsyncResult(call), keep_alive=0.05)

    watch.__annotations__ = {"request": fastapi.Request, "call": str}
    web.get("/{call}")(watch)
    return web


def django_view(request: Any, call: str) -> Any:
    return sse.django_response(request, counts.AsyncResult(call), keep_alive=0.05)


def use_django() -> None:
    import django
    from django.conf import settings
    from django.urls import path

    global urlpatterns  # where Django looks for it
    urlpatterns = [path("<str:call>", django_view)]
    if not settings.configured:
        settings.configure(SECRET_KEY="x")
        django.setup()
    settings.ROOT_URLCONF = __name__
    settings.ALLOWED_HOSTS = ["*"]
    settings.MIDDLEWARE = []


urlpatterns: list[Any] = []


def django_asgi() -> Any:
    use_django()
    from django.core.handlers.asgi import ASGIHandler

    return ASGIHandler()


@contextmanager
def uvicorn_serves(make: Callable[[], Any]) -> Iterator[int]:
    web = make()
    uvicorn = pytest.importorskip("uvicorn")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(web, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENT_S)


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def wsgi_serves() -> Iterator[int]:
    use_django()
    from django.core.handlers.wsgi import WSGIHandler

    class Threaded(WSGIServer):
        def process_request(self, request: Any, address: Any) -> None:
            threading.Thread(target=self.process_request_thread, args=(request, address), daemon=True).start()

        def process_request_thread(self, request: Any, address: Any) -> None:
            with closing(request):
                self.finish_request(request, address)

    with Threaded(("127.0.0.1", 0), _Quiet) as server:
        server.set_app(WSGIHandler())
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(PATIENT_S)


SERVERS: dict[str, Callable[[], Any]] = {
    "starlette": lambda: uvicorn_serves(starlette_app),
    "fastapi": lambda: uvicorn_serves(fastapi_app),
    "django, asgi": lambda: uvicorn_serves(django_asgi),
    "django, wsgi": wsgi_serves,
}


@pytest.fixture(params=SERVERS)
def port(request: pytest.FixtureRequest, url: str) -> Iterator[int]:
    with app.testing.worker(url=url), SERVERS[request.param]() as port:
        yield port


@contextmanager
def requested(port: int, call: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENT_S)
    connection.request("GET", f"/{call}", headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def read_all(port: int, call: str, **headers: str) -> list[Event]:
    with requested(port, call, **headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-cache"
        return parsed(response.read().decode())


def messages(first: int, last: int) -> list[Event]:
    return [Event("message", f"1-{n + 1}", {"n": n}) for n in range(first, last)]


# -- what is read


def test_values_and_the_end(port: int) -> None:
    assert read_all(port, counts.delay(5).id) == [*messages(0, 5), Event("end", "", {"ended": "succeeded"})]


def test_a_browser_goes_on_where_it_was(port: int) -> None:
    call = counts.delay(5)
    call.get(timeout=PATIENT_S)
    assert read_all(port, call.id, Last_Event_ID="1-3")[:-1] == messages(3, 5)


@pytest.mark.parametrize("cursor", ["x", "1-2-3", "-1", "1-12345678901", "1-3 OR 1=1", "*"])
def test_what_is_no_cursor_begins_from_the_start(port: int, cursor: str) -> None:
    assert read_all(port, counts.delay(5).id, Last_Event_ID=cursor)[:-1] == messages(0, 5)


def test_another_run_is_told(port: int) -> None:
    seen = read_all(port, again.delay().id)
    assert [(each.kind, each.data) for each in seen] == [
        ("message", 1),
        ("run", {"run": 2}),
        ("message", 2),
        ("end", {"ended": "succeeded"}),
    ]


def test_a_failure_tells_no_reason(port: int) -> None:
    call = counts.delay(1, fails=True).id
    with requested(port, call) as response:
        text = response.read().decode()
    assert parsed(text)[-1] == Event("end", "", {"ended": "dead"})
    assert "secret" not in text


def test_missing_values_are_told(port: int) -> None:
    result = counts.apply_async((500,), output_length=1)
    result.get(timeout=PATIENT_S)
    first, second, *_ = read_all(port, result.id)
    assert first.kind == "gap"
    assert second.data == {"n": first.data["count"]}


def test_who_waits_is_kept_alive_and_sees_what_comes_then(port: int) -> None:
    call = counts.apply_async((1,), countdown=1)
    with requested(port, call.id) as response:
        comments = 0
        while (line := response.readline()) in (b":\n", b"\n"):
            comments += line == b":\n"
        assert comments >= 2
        assert line == b"id: 1-1\n"


def test_who_goes_away_is_watched_for_no_more(port: int, redis: Any) -> None:
    call = counts.apply_async((1,), countdown=3600)
    channel = app.client.queue(None).keys.output(call.id)

    def watchers() -> int:
        return sum(number for _, number in redis.pubsub_numsub(channel) + redis.pubsub_shardnumsub(channel))

    with requested(port, call.id) as response:
        response.readline()
        wait_until(lambda: watchers() == 1, PATIENT_S, "the watcher")
    wait_until(lambda: watchers() == 0, PATIENT_S, "the end of the watching")
    call.revoke()


def test_a_value_of_several_lines_stays_one_event() -> None:
    with app.testing.eager():
        result = counts.delay(1)
        text = b"".join(sse.plain_events(result, dumps=lambda value: "a\nevent: end\rb\r\nc")).decode()
    assert text.split("\n\n")[1] == "id: 1-1\ndata: a\ndata: event: end\ndata: b\ndata: c"


async def test_eager_calls_have_events_too() -> None:
    with app.testing.eager():
        stream = counts.delay(2).stream()
        found: AsyncIterator[bytes] = sse.events(stream)
        text = b"".join([each async for each in found]).decode()
    assert parsed(text) == [*messages(0, 2), Event("end", "", {"ended": "succeeded"})]
