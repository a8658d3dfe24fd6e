"""Handles of many calls at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rsq.broker.deadline import Deadline
from rsq.calls.progress import Progress
from rsq.errors import ResultTimeout
from rsq.handles import HandleData, Handles, Numbers
from rsq.home import Home
from rsq.result import AsyncResult
from rsq.result_member import MemberResult
from rsq.states import State

if TYPE_CHECKING:
    from typing_extensions import Self

    from rsq.broker.client import Client
    from rsq.broker.waiting import InFlow

T = TypeVar("T")


class ResultSet(AsyncResult[list[T]]):
    """Several handles as one: waited for by one subscription, and read in one pipeline.

    results  the handles, in order; one of them may be a set itself
    id, queue, duplicate, parent, children  as of one handle; empty here
    """

    __slots__ = ("results",)
    kind = "set"

    def __init__(self, client: Client, results: Iterable[AsyncResult[Any]]) -> None:
        super().__init__(client, "", None)
        self.results = list(results)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}: {len(self.results)} results>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultSet) and (other.id, other.results) == (self.id, self.results)

    def __hash__(self) -> int:
        return hash(self.id)

    def _holds(self) -> Iterable[HandleData]:
        return self.results

    def _row(self, number_of: Numbers) -> list[Any]:
        return [[number_of(each) for each in self.results]]

    @classmethod
    def _of_row(cls, app: Home, row: Sequence[Any], handle_of: Handles) -> Self:
        (results,) = row
        return cls(app.client, [handle_of(each) for each in results])

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AsyncResult[T]]:
        return iter(self.results)

    @overload
    def __getitem__(self, index: int) -> AsyncResult[T]: ...

    @overload
    def __getitem__(self, index: slice) -> list[AsyncResult[T]]: ...

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def add(self, result: AsyncResult[Any]) -> None:
        """One more, at the end, unless it is there."""
        if result not in self.results:
            self.results.append(result)

    def discard(self, result: AsyncResult[Any]) -> None:
        """Without this one."""
        if result in self.results:
            self.results.remove(result)

    def remove(self, result: AsyncResult[Any]) -> None:
        """`discard`, but raises KeyError where it is not there."""
        if result not in self.results:
            raise KeyError(result)
        self.results.remove(result)

    def update(self, results: Iterable[AsyncResult[Any]]) -> None:
        """`add` for several."""
        known = set(self.results)
        self.results += [each for each in dict.fromkeys(results) if each not in known]

    def clear(self) -> None:
        """Without any."""
        self.results.clear()

    # -- to wait for them

    def get(self, timeout: float | None = None, propagate: bool = True, **unknown: Any) -> list[T]:
        """Wait for all results, and give them in the order of `results`.

        The first that fails, in time, raises its error at once; with `propagate=False` errors stand among the values.

        timeout  seconds, for all together
        Raises   as `AsyncResult.get`
        """
        self._check_options(unknown)
        with closing(self.as_completed(timeout)) as arriving:
            for each in arriving:
                each.get(0, propagate)
        return self._values(propagate)

    async def aget(self, timeout: float | None = None, propagate: bool = True, **unknown: Any) -> list[T]:
        """`get` for coroutines."""
        self._check_options(unknown)
        async with aclosing(self.aas_completed(timeout)) as arriving:
            async for each in arriving:
                each.get(0, propagate)
        return self._values(propagate)

    def join(self, timeout: float | None = None, propagate: bool = True, **unknown: Any) -> list[T]:
        """Celery's other word for `get`."""
        return self.get(timeout, propagate, **unknown)

    def join_native(self, timeout: float | None = None, propagate: bool = True, **unknown: Any) -> list[T]:
        """Celery's other word for `get`: there is one way to wait, and it is the quick one."""
        return self.get(timeout, propagate, **unknown)

    def iter_native(self, timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """As `as_completed`, in Celery's form: pairs of id and a map with status, result, traceback and task_id."""
        for each in self.as_completed(timeout):
            told = {"status": each.state, "result": each.result, "traceback": each.traceback, "task_id": each.id}
            yield each.id, told

    def as_completed(self, timeout: float | None = None) -> Generator[AsyncResult[Any], None, None]:
        """The handles in the order in which they end, each as soon as it has; of a set in this one its handles.

        Raises  ResultTimeout where some have not ended after so many seconds
        """
        open_ = _Open(self, timeout)
        yield from open_.known
        while open_.handles:
            keys = [self._client.result_keys(each.id, each.queue) for each in open_.handles]
            with closing(self._client.listener.arrivals(keys, open_.left_s(), open_.places())) as arrivals:
                for number, data in arrivals:
                    yield open_.note(number, data)
            yield from open_.look()
            open_.check()

    async def aas_completed(self, timeout: float | None = None) -> AsyncGenerator[AsyncResult[Any], None]:
        """`as_completed` for coroutines."""
        open_ = _Open(self, timeout)
        for each in open_.known:
            yield each
        while open_.handles:
            keys = [await self._client.aresult_keys(each.id, each.queue) for each in open_.handles]
            async with aclosing(self._client.alistener.arrivals(keys, open_.left_s(), open_.places())) as arrivals:
                async for number, data in arrivals:
                    yield open_.note(number, data)
            for each in await self._aside(open_.look):
                yield each
            open_.check()

    # -- to look at them

    def handles(self) -> Iterator[AsyncResult[Any]]:
        """Those of single calls, in order, also those of sets in this one."""
        for each in self.results:
            if isinstance(each, ResultSet):
                yield from each.handles()
            else:
                yield each

    def _looked(self) -> list[AsyncResult[Any]]:
        """All of `handles`, as they stand now on the server: one pipeline for all that have not ended yet."""
        open_ = _Open(self, 0)
        if open_.handles:
            open_.look()
        return list(self.handles())

    def completed_count(self) -> int:
        """How many have succeeded, as in Celery."""
        return sum(_state_of(each) is State.SUCCESS for each in self._looked())

    def ready(self) -> bool:
        """Whether all have ended, one way or the other."""
        return all(_state_of(each) for each in self._looked())

    def waiting(self) -> bool:
        """Whether one has not ended yet."""
        return not self.ready()

    def successful(self) -> bool:
        """Whether all have succeeded."""
        return self.state is State.SUCCESS

    def failed(self) -> bool:
        """Whether one has failed for good."""
        return any(_state_of(each) is State.FAILURE for each in self._looked())

    @property
    def state(self) -> State | str:
        """FAILURE or REVOKED once one is, SUCCESS when all are, STARTED when one has ended, else PENDING."""
        states = [_state_of(each) for each in self._looked()]
        for state in (State.FAILURE, State.REVOKED):
            if state in states:
                return state
        if all(states):
            return State.SUCCESS
        return State.STARTED if any(states) else State.PENDING

    @property
    def result(self) -> Any:
        """The values and errors, or None as long as one has not ended. Does not wait and does not raise."""
        return self._values(propagate=False) if self.ready() else None

    @property
    def traceback(self) -> str | None:
        """Text of the traceback of the first that failed, in the order of `results`."""
        return next((each.traceback for each in self._looked() if _state_of(each) is State.FAILURE), None)

    @property
    def progress(self) -> Progress | None:
        """How many have ended, of how many; None for a set of nothing. Does not wait."""
        states = [_state_of(each) for each in self._looked()]
        return Progress(sum(map(bool, states)), len(states), {}) if states else None

    def revoke(self, terminate: bool = False) -> None:
        """Have those not run that have not ended; see `AsyncResult.revoke`."""
        for each in self.results:
            each.revoke(terminate)

    async def arevoke(self, terminate: bool = False) -> None:
        """`revoke` for coroutines."""
        await self._aside(lambda: self.revoke(terminate))

    async def acompleted_count(self) -> int:
        """`completed_count` for coroutines."""
        return await self._aside(self.completed_count)

    async def awaiting(self) -> bool:
        """`waiting` for coroutines."""
        return await self._aside(self.waiting)

    def forget(self) -> None:
        """Delete the results from the server."""
        for each in self.results:
            each.forget()

    def _values(self, propagate: bool) -> list[T]:
        return [
            each._values(propagate) if isinstance(each, ResultSet) else each.get(0, propagate)  # type: ignore[misc]
            for each in self.results
        ]


class _Open:
    """The handles of a set that have not ended, as far as it is known.

    known    those of which it was known before
    handles  those that are waited for
    """

    def __init__(self, results: ResultSet[Any], timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = Deadline(float("inf") if timeout is None else timeout)
        self._client = results._client
        every = list(results.handles())
        self.known = [each for each in every if each._result is not None]
        self.handles = [each for each in every if each._result is None]
        for each in self.handles:
            each._refuse_if_ignored()

    def left_s(self) -> float | None:
        """How long to wait for them yet; None = until they come."""
        return None if self._timeout is None else max(0.0, self._deadline.left_s())

    def places(self) -> list[InFlow | None]:
        """Where else their results may be found."""
        return [each._place() for each in self.handles]

    def note(self, number: int, data: bytes) -> AsyncResult[Any]:
        """This handle has its result."""
        handle = self.handles[number]
        handle._take(data)
        return handle

    def look(self) -> list[AsyncResult[Any]]:
        """Look at all that have not ended; gives those that have."""
        self.handles = [each for each in self.handles if each._result is None]
        read = self._client.read_results([self._client.result_keys(each.id, each.queue) for each in self.handles])
        ended = [self.note(number, data) for number, data in enumerate(read) if data is not None]
        by_flow: dict[str, list[MemberResult[Any]]] = {}
        for each in self.handles:
            if each._result is None and isinstance(each, MemberResult) and not each.last:
                by_flow.setdefault(each.flow, []).append(each)
        for flow, members in by_flow.items():
            told = self._client.flows.outcomes(flow, [each.number for each in members])
            for each, data in zip(members, told, strict=True):
                if data is not None:
                    each._take(data)
                    ended.append(each)
        self.handles = [each for each in self.handles if each._result is None]
        return ended

    def check(self) -> None:
        """Raises ResultTimeout where some have not ended in time."""
        if self.handles and self._deadline.left_s() <= 0:
            within = "" if self._timeout is None else f" within {self._timeout:g} s"
            raise ResultTimeout(f"{len(self.handles)} results have not come{within}, {self.handles[0].id} among them")


def _state_of(handle: AsyncResult[Any]) -> State | None:
    """How it has ended, as far as this process knows."""
    return None if handle._result is None else handle._result.state
