"""The handle of a call that was sent: its state, and its result when that is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from rsq.calls.outcome import Result, unpack_result
from rsq.calls.output import WELL
from rsq.calls.progress import Progress, unpack_progress
from rsq.errors import ResultIgnored, ResultTimeout, TaskRevoked, WorkerLost
from rsq.handles import HandleData, Handles, Numbers, checked_place
from rsq.hints import hinted, unknown_text
from rsq.home import Home, reading_for
from rsq.output import OutputStream
from rsq.remote import decode_error
from rsq.states import State

if TYPE_CHECKING:
    from typing_extensions import Self

    from rsq.broker.client import Client
    from rsq.broker.waiting import InFlow

R = TypeVar("R")
T = TypeVar("T")

_OF_GET = ("timeout", "propagate")


@hinted("AsyncResult")
class AsyncResult(HandleData, Generic[R]):
    """What `delay` gives back. Cheap to make and to keep: it holds an id, and asks the server when asked.

    id         task id
    queue      queue of the call; None means unknown, then every known queue is searched
    duplicate  True when this call was not enqueued, since an earlier one stands (this is its handle)
    parent     the handle of what comes before it in its canvas, or None
    children   the handles of what follows it: by `link`, and then as the next step of its chain
    """

    kind = "call"
    parent: AsyncResult[Any] | None = None
    children: Sequence[AsyncResult[Any]] = ()

    __slots__ = ("_client", "_ignored", "_result", "duplicate", "id", "queue")

    def __init__(
        self, client: Client, task_id: str, queue: str | None, ignored: bool = False, duplicate: bool = False
    ) -> None:
        self.id = task_id
        self.queue = queue
        self.duplicate = duplicate
        self._client = client
        self._ignored = ignored
        self._result: Result | None = None

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def task_id(self) -> str:
        """Celery's other word for `id`."""
        return self.id

    def get(self, timeout: float | None = None, propagate: bool = True, **unknown: NoReturn) -> R:
        """Wait for the result and give it.

        timeout    seconds; None waits without end, 0 only looks
        propagate  raise what the task raised; False gives the exception as the value
        Raises     ResultTimeout; the task's own exception (RemoteError where its class is unknown here); TaskRevoked;
                   ResultIgnored; BrokerUnavailable
        """
        self._check_options(unknown)
        if self._result is None:
            self._refuse_if_ignored()
            data = self._wait(timeout)
            if data is None:
                raise self._timed_out(timeout)
            return self._value(self._take(data), propagate)
        return self._value(self._result, propagate)

    async def aget(self, timeout: float | None = None, propagate: bool = True, **unknown: NoReturn) -> R:
        """`get` for coroutines."""
        self._check_options(unknown)
        if self._result is None:
            self._refuse_if_ignored()
            data = await self._await(timeout)
            if data is None:
                raise self._timed_out(timeout)
            return self._value(self._take(data), propagate)
        return self._value(self._result, propagate)

    def stream(
        self, after: str | None = None, timeout: float | None = None, propagate: bool = True
    ) -> OutputStream[Any]:
        """What the call emits, from its beginning and then as it comes, until its end; for `for` and `async for`.

        It gives an `Item` for each value; a `NewRun` where the call began anew, after a failed attempt or the end of
        its worker, before the first value of that; and a `Gap` where values are missing. All come once, in order, also
        across a server that was away.

        after    the cursor of an item: begin behind that
        timeout  seconds to wait for the next one; None waits without end, 0 only looks
        propagate  raise what the call failed with, after all that it has emitted; False only ends there
        Raises   what `get` raises; SettingsError for what is no cursor
        """
        conclude = self._conclude if propagate else None
        return OutputStream(self._client, self.id, self.queue, after, timeout, conclude, self._place())

    @property
    def state(self) -> State | str:
        """Where the call stands: a State, or the word that the running task gave with `update_state`.

        PENDING also for a call that was never heard of or whose result has expired.
        """
        result = self.result_record()
        if result is not None:
            return result.state
        progress = self.progress
        state = self._client.unfinished_state(self.id, self.queue)
        return progress.state if progress and progress.state and state is not State.RETRY else state

    @property
    def status(self) -> State | str:
        """Celery's other word for `state`."""
        return self.state

    def ready(self) -> bool:
        """Whether the call has ended, one way or the other."""
        return self.result_record() is not None

    def successful(self) -> bool:
        """Whether it has succeeded."""
        return self.state is State.SUCCESS

    def failed(self) -> bool:
        """Whether it has failed for good."""
        return self.state is State.FAILURE

    @property
    def result(self) -> Any:
        """The value, the exception, or None as long as there is neither. Does not wait and does not raise."""
        record = self.result_record()
        return None if record is None else self._value(record, propagate=False)

    @property
    def traceback(self) -> str | None:
        """Text of the worker's traceback, if it failed."""
        record = self.result_record()
        return None if record is None or record.error is None else str(record.error.get("traceback", ""))

    def result_record(self) -> Result | None:
        """The outcome with attempt and run time, or None as long as there is none. Does not wait."""
        if self._result is None:
            data = self._read()
            if data is not None:
                return self._take(data)
        return self._result

    @property
    def progress(self) -> Progress | None:
        """What the task told last of its progress, or None; readable for a day after that. Does not wait."""
        data = self._client.read_progress(self.id, self.queue)
        return None if data is None else unpack_progress(data)

    @property
    def info(self) -> Any:
        """As in Celery: the result when there is one, else the progress as one map, {} if none was told. Does not wait.

        Never None while the call has no result.
        """
        if self.result_record() is not None:
            return self.result
        progress = self.progress
        return {} if progress is None else progress.meta

    # -- what follows it

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[AsyncResult[Any] | None, AsyncResult[Any]]]:
        """This handle and all that it leads to, each behind the one that led there (None: this one), level by level.

        A handle leads to its `children`, and to the handle that its call gave as its value.

        intermediate  go on behind what has not ended
        Raises        ResultTimeout at one that has not
        """
        waiting: deque[tuple[AsyncResult[Any] | None, AsyncResult[Any]]] = deque([(None, self)])
        seen = {self}
        while waiting:
            parent, handle = waiting.popleft()
            yield parent, handle
            if not (intermediate or handle.ready()):
                raise handle._timed_out(0)
            for child in handle._following():
                if child not in seen:
                    seen.add(child)
                    waiting.append((handle, child))

    def collect(
        self, intermediate: bool = False, timeout: float | None = None, propagate: bool = True
    ) -> Iterator[tuple[AsyncResult[Any], Any]]:
        """Wait for this and for all that it leads to: pairs of handle and value, see `iterdeps` and `get`.

        intermediate  do not wait: None stands for a value that is not there yet
        """
        for _, handle in self.iterdeps(intermediate=True):
            yield handle, handle.result if intermediate else handle.get(timeout, propagate)

    @property
    def graph(self) -> dict[AsyncResult[Any], list[AsyncResult[Any]]]:
        """Each handle of `iterdeps`, with those that it leads to. Does not wait."""
        return {handle: handle._following() for _, handle in self.iterdeps(intermediate=True)}

    def _following(self) -> list[AsyncResult[Any]]:
        value = self.result
        return [*self.children, *((value,) if isinstance(value, AsyncResult) else ())]

    # -- as data

    def _row(self, number_of: Numbers) -> list[Any]:
        return [self.id, self.queue, self._ignored, self.duplicate]

    @classmethod
    def _of_row(cls, app: Home, row: Sequence[Any], handle_of: Handles) -> Self:
        task_id, queue, ignored, duplicate = row
        return cls(app.client, *checked_place(task_id, queue), bool(ignored), bool(duplicate))

    # -- for coroutines

    async def astate(self) -> State | str:
        """`state` for coroutines."""
        return await self._aside(lambda: self.state)

    async def aready(self) -> bool:
        """`ready` for coroutines."""
        return await self._aside(self.ready)

    async def asuccessful(self) -> bool:
        """`successful` for coroutines."""
        return await self._aside(self.successful)

    async def afailed(self) -> bool:
        """`failed` for coroutines."""
        return await self._aside(self.failed)

    async def aforget(self) -> None:
        """`forget` for coroutines."""
        await self._aside(self.forget)

    async def aresult(self) -> Any:
        """`result` for coroutines: does not wait for the call."""
        return await self._aside(lambda: self.result)

    async def aprogress(self) -> Progress | None:
        """`progress` for coroutines."""
        return await self._aside(lambda: self.progress)

    async def ainfo(self) -> Any:
        """`info` for coroutines."""
        return await self._aside(lambda: self.info)

    async def _aside(self, look: Callable[[], T]) -> T:
        """Look without holding the loop up."""
        import asyncio  # late: it takes long, and only those who have a loop pay for it

        return await asyncio.get_running_loop().run_in_executor(None, look)

    def revoke(self, terminate: bool = False) -> None:
        """Have the call not run: if it waits or is delayed it never starts, and `get` raises TaskRevoked.

        terminate  if it runs, raise TaskRevoked in its body, whose outcome counts no more; without it, it runs on and
                   its result stands
        """
        self._client.revoke([self.id], self.queue, terminate)

    async def arevoke(self, terminate: bool = False) -> None:
        """`revoke` for coroutines."""
        await self._client.arevoke([self.id], self.queue, terminate)

    def forget(self) -> None:
        """Delete the result from the server."""
        self._client.forget_result(self.id, self.queue)
        self._result = None

    def _conclude(self, way: str, data: bytes | None) -> None:
        """The call has ended so: raise what waiting for it raises. `data`: the packed result, where there is one."""
        if data is not None:
            self._value(self._take(data), True)
        elif way == "dead":
            raise ResultIgnored(
                f"{self.id} failed, and its task ignores its result, which would say why: see its dead letter"
            )
        elif way == "lost":
            raise WorkerLost(f"the worker that ran {self.id} is gone")
        elif way not in WELL:
            raise TaskRevoked(f"{self.id} was not run: {way}")

    @staticmethod
    def _check_options(unknown: Mapping[str, object]) -> None:
        if unknown:
            raise TypeError(unknown_text("option of get", next(iter(unknown)), "option of get", _OF_GET))

    def _wait(self, timeout: float | None) -> bytes | None:
        return self._client.listener.wait(self._client.result_keys(self.id, self.queue), timeout, self._place())

    async def _await(self, timeout: float | None) -> bytes | None:
        keys = await self._client.aresult_keys(self.id, self.queue)
        return await self._client.alistener.wait(keys, timeout, self._place())

    def _place(self) -> InFlow | None:
        """Where else the result may be found."""
        return None

    def _read(self) -> bytes | None:
        return self._client.read_result(self.id, self.queue)

    def _take(self, data: bytes) -> Result:
        """This is its packed result."""
        with reading_for(self._client.home):
            self._result = unpack_result(data)
        return self._result

    def _refuse_if_ignored(self) -> None:
        if self._ignored:
            raise ResultIgnored(
                f"the task of {self.id} ignores its result (ignore_result=True): there is nothing to wait for"
            )

    def _timed_out(self, timeout: float | None) -> ResultTimeout:
        within = "" if timeout is None else f" within {timeout:g} s"
        return ResultTimeout(f"no result of {self.id}{within}")

    def _value(self, result: Result, propagate: bool) -> R:
        if result.state is State.SUCCESS:
            return cast(R, result.value)
        error: Exception
        if result.error is not None:
            error = decode_error(dict(result.error))
        else:
            error = TaskRevoked(f"{self.id} was not run: {result.reason or 'revoked'}")
        if propagate:
            raise error
        return cast(R, error)
