"""Server-Sent Events: what a call emits, in a browser as it comes, from Starlette, FastAPI or Django.

@app.get("/jobs/{job}/events")
async def events(request: Request, job: str):
    return sse.starlette_response(request, tasks.AsyncResult(job, "default"))
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any

from rsq.calls.output import Gap, Item, Seen
from rsq.errors import ResultTimeout
from rsq.output import OutputStream
from rsq.result import AsyncResult

if TYPE_CHECKING:
    from django.http import HttpRequest, StreamingHttpResponse
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

KEEP_ALIVE_S = 15.0
"""After so long without an event there is a comment, so that nobody between takes the connection for dead."""

CONTENT_TYPE = "text/event-stream"

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""No proxy keeps anything, or waits for more."""

ALIVE = b":\n\n"

# It comes from a browser.
_CURSOR = re.compile(r"[0-9]{1,10}-[0-9]{1,10}")
_BREAKS = re.compile(r"\r\n|\r|\n")

Dumps = Callable[[Any], str]


def as_json(value: Any) -> str:
    """A value as JSON; what that cannot carry as its text."""
    return json.dumps(value, default=str)


def starlette_response(
    request: Request,
    result: AsyncResult[Any],
    *,
    keep_alive: float = KEEP_ALIVE_S,
    dumps: Dumps = as_json,
) -> StreamingResponse:
    """The response for Starlette and FastAPI. Whether the asker may see this call is for the caller to check.

    keep_alive  seconds
    dumps       makes the data of an event of a value
    """
    from starlette.responses import StreamingResponse

    stream = result.stream(cursor_of(request.headers.get("Last-Event-ID")), propagate=False)
    return StreamingResponse(events(stream, keep_alive, dumps), media_type=CONTENT_TYPE, headers=HEADERS)


def django_response(
    request: HttpRequest,
    result: AsyncResult[Any],
    *,
    keep_alive: float = KEEP_ALIVE_S,
    dumps: Dumps = as_json,
) -> StreamingHttpResponse:
    """As `starlette_response` for Django, under ASGI and WSGI: there each of these holds a thread."""
    from django.core.handlers.asgi import ASGIRequest
    from django.http import StreamingHttpResponse

    after = cursor_of(request.headers.get("Last-Event-ID"))
    content: Any
    if isinstance(request, ASGIRequest):
        content = events(result.stream(after, propagate=False), keep_alive, dumps)
    else:
        content = plain_events(result, after, keep_alive, dumps)
    return StreamingHttpResponse(content, content_type=CONTENT_TYPE, headers=HEADERS)


def cursor_of(last_event_id: str | None) -> str | None:
    """Where a browser goes on that says this; None, the beginning, for what is no cursor."""
    return last_event_id if last_event_id and _CURSOR.fullmatch(last_event_id) else None


async def events(
    stream: OutputStream[Any], keep_alive: float = KEEP_ALIVE_S, dumps: Dumps = as_json
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, with comments between where nothing comes for so many seconds."""
    coming: asyncio.Task[Seen] | None = None
    try:
        yield ALIVE  # the headers go at once
        while True:
            coming = coming or asyncio.create_task(stream.__anext__())
            await asyncio.wait([coming], timeout=keep_alive)
            if not coming.done():
                yield ALIVE
                continue
            came, coming = coming, None
            try:
                seen = came.result()
            except StopAsyncIteration:
                break
            yield _event(seen, dumps)
        yield _end(stream)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await stream.aclose()


def plain_events(
    result: AsyncResult[Any], after: str | None = None, keep_alive: float = KEEP_ALIVE_S, dumps: Dumps = as_json
) -> Generator[bytes, None, None]:
    """`events` without coroutines."""
    yield ALIVE
    while True:
        stream = result.stream(after, keep_alive, propagate=False)
        try:
            for seen in stream:
                yield _event(seen, dumps)
        except ResultTimeout:
            after = stream.cursor
            yield ALIVE
        else:
            yield _end(stream)
            return
        finally:
            stream.close()


def _event(seen: Seen, dumps: Dumps) -> bytes:
    if isinstance(seen, Item):
        return f"id: {seen.cursor}\n{_data(dumps(seen.value))}\n".encode()
    if isinstance(seen, Gap):
        return b'event: gap\ndata: {"count": %d}\n\n' % seen.count
    return b'event: run\ndata: {"run": %d}\n\n' % seen.run


def _end(stream: OutputStream[Any]) -> bytes:
    """The reason of a failure is for the log, not for a browser."""
    return f"event: end\n{_data(json.dumps({'ended': stream.ended}))}\n".encode()


def _data(text: str) -> str:
    return "".join(f"data: {line}\n" for line in _BREAKS.split(text))
