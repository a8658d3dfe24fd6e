"""What the caller sees of a call while it runs: the values that it emits, as they come."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from rsq import codec
from rsq.broker.deadline import Deadline
from rsq.calls.outcome import ending_of
from rsq.calls.output import Gap, Item, NewRun, Seen, place_of
from rsq.errors import ResultTimeout
from rsq.home import reading_for

if TYPE_CHECKING:
    from typing_extensions import Self

    from rsq.broker.client import Client
    from rsq.broker.waiting import InFlow
    from rsq.broker.watched import Watched

V = TypeVar("V")


class OutputStream(Iterator["Item[V] | NewRun | Gap"], AsyncIterator["Item[V] | NewRun | Gap"]):
    """The output of a call, as an iterator and as an asynchronous one; made by `AsyncResult.stream`.

    conclude  raises what the call raises for those who wait for it; it gets how it has ended, and its packed result.
              None: nothing is raised
    place     where its end is found, too, if it never ran
    cursor    of the last item that it gave, for the `after` of another stream; None before the first one
    ended     how the call has ended, by the words of `rsq.states.ENDINGS`; '' before that
    """

    def __init__(
        self,
        client: Client,
        task_id: str,
        queue: str | None,
        after: str | None,
        timeout: float | None,
        conclude: Callable[[str, bytes | None], None] | None,
        place: InFlow | None = None,
    ) -> None:
        self.cursor = after
        self.ended = ""
        self._after = None if after is None else place_of(after)
        self._client = client
        self._call = (task_id, queue)
        self._timeout = timeout
        self._conclude = conclude
        self._place = place
        self._plain: Generator[Seen, None, None] | None = None
        self._coroutine: AsyncGenerator[Seen, None] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item[V] | NewRun | Gap:
        if self._plain is None:
            self._plain = self._follow()
        return self._noted(next(self._plain))

    def close(self) -> None:
        """Watch no more. Needed by nobody who goes on to the end, or drops it."""
        if self._plain is not None:
            self._plain.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item[V] | NewRun | Gap:
        if self._coroutine is None:
            self._coroutine = self._afollow()
        return self._noted(await anext(self._coroutine))

    async def aclose(self) -> None:
        """`close` for coroutines."""
        if self._coroutine is not None:
            await self._coroutine.aclose()

    def _noted(self, seen: Seen) -> Seen:
        if isinstance(seen, Item):
            self.cursor = seen.cursor
        return seen

    def _follow(self) -> Generator[Seen, None, None]:
        watched = self._client.watched(*self._call, self._after, self._place)
        deadline = self._deadline()
        while watched:
            with closing(self._client.watch(watched, self._patience(deadline))) as arrivals:
                for seen in arrivals:
                    yield self._read(seen)
                    deadline = self._deadline()
            self._check(watched, deadline)
        if watched.lacks_result:
            watched.conclude(self._client.read_result(*self._call))
        self._end(watched)

    async def _afollow(self) -> AsyncGenerator[Seen, None]:
        aside = asyncio.get_running_loop().run_in_executor
        watched = await aside(None, self._client.watched, *self._call, self._after, self._place)
        deadline = self._deadline()
        while watched:
            async with aclosing(self._client.awatch(watched, self._patience(deadline))) as arrivals:
                async for seen in arrivals:
                    yield self._read(seen)
                    deadline = self._deadline()
            self._check(watched, deadline)
        if watched.lacks_result:
            watched.conclude(await aside(None, self._client.read_result, *self._call))
        self._end(watched)

    def _deadline(self) -> Deadline:
        return Deadline(math.inf if self._timeout is None else self._timeout)

    def _patience(self, deadline: Deadline) -> float | None:
        """How long to wait, in seconds; None = until something comes."""
        left_s = deadline.left_s()
        return None if left_s == math.inf else max(0.0, left_s)

    def _check(self, watched: Watched, deadline: Deadline) -> None:
        if watched and deadline.left_s() <= 0:
            raise ResultTimeout(f"nothing has come of {self._call[0]} within {self._timeout or 0:g} s")

    def _read(self, seen: Seen) -> Seen:
        if not isinstance(seen, Item):
            return seen
        with reading_for(self._client.home):
            return replace(seen, value=codec.decode(seen.value))

    def _end(self, watched: Watched) -> None:
        self.ended = watched.way or ending_of(watched.result)
        if self._conclude is not None:
            self._conclude(watched.way, watched.result)
