"""Eager mode: what stands in for the broker, and runs each call inline by the worker's own code."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from rsq.app import BaseApp
from rsq.broker.aio_listener import AsyncResultListener
from rsq.broker.answers import Accepted, answer
from rsq.broker.client import Client
from rsq.broker.connection import Link
from rsq.broker.listener import ResultListener
from rsq.broker.partitions import Queues
from rsq.broker.waiting import InFlow
from rsq.broker.watched import Watched
from rsq.calls.inputs import too_large
from rsq.calls.message import Delivery, Message, pack_meta
from rsq.calls.outcome import REVOKED_TTL_MS, Buried, Completed, Replaced, Retried, Verdict, pack_failure
from rsq.calls.output import Seen
from rsq.calls.placement import Placement
from rsq.calls.stamps import check_stamps
from rsq.clock import ServerClock
from rsq.errors import ResultTimeout, SettingsError
from rsq.flow.own_tasks import with_own_tasks
from rsq.keys import is_flow
from rsq.remote import decode_error
from rsq.result import AsyncResult
from rsq.settings import Settings
from rsq.states import State
from rsq.task import Task
from rsq.testing.eager_flows import MemoryFlows
from rsq.testing.eager_outputs import MemoryOutput, MemoryOutputs
from rsq.worker.attempt import Attempts

P = ParamSpec("P")
R = TypeVar("R")

MOST_RETRIES = 1000
"""Retries of one call in eager mode: a task that is retried without end must not hang its test."""

MOST_NESTED = 50
"""Eager calls inside each other: a task that sends itself would end in the middle of some innocent function."""


@dataclass(frozen=True)
class _Level:
    """How deep a call stands in others, and the errors of those in it that the outermost one is to raise."""

    number: int
    errors: list[Exception]


_level: ContextVar[_Level | None] = ContextVar("rsq.testing.level", default=None)


@dataclass(frozen=True)
class Mode:
    """What stands in for the broker in one block; see `Testing.eager`."""

    eager: Eager
    propagate: bool

    def __call__(self, task: Task[..., Any], message: Message, placement: Placement) -> AsyncResult[Any]:
        return self.eager.call(self.propagate, task, message, placement)


class Eager:
    """What eager mode keeps from the beginning of the outermost block to its end."""

    def __init__(self, app: BaseApp, may_ask: Callable[[Settings], bool]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._markers: dict[tuple[str, str, str], str] = {}
        self._versions: dict[tuple[str, str], int] = {}
        self._idle: list[_Runner] = []
        self._replaced = vars(app).get("client")
        self._client = app.client = MemoryClient(app.settings, may_ask)
        self._client.home = app
        self._client.memory_flows.runner, self._client.memory_flows.nested = self, self._run_flow

    def call(self, propagate: bool, task: Task[..., Any], message: Message, placement: Placement) -> AsyncResult[Any]:
        """Stands in for enqueueing."""
        accepted = self.accept(message, placement)
        if not accepted.duplicate:
            self._nested(propagate, message.task, lambda: self._error_of(self.follow(message, placement)))
        return task.handle_of(message, accepted.task_id, accepted.duplicate)

    def _run_flow(self, what: str, run: Callable[[], Buried | None]) -> None:
        mode = self._app.eager
        self._nested(isinstance(mode, Mode) and mode.propagate, what, lambda: self._error_of(run()))

    def _nested(self, propagate: bool, what: str, run: Callable[[], Exception | None]) -> None:
        """Run something inside of what runs already, and see to its error."""
        outer = _level.get()
        level = _Level(1, []) if outer is None else _Level(outer.number + 1, outer.errors)
        if level.number > MOST_NESTED:
            raise RecursionError(
                f"{MOST_NESTED} eager calls stand inside each other, the last one of {what}: a task that "
                "sends itself never ends in eager mode; test it with a worker"
            )
        token = _level.set(level)
        try:
            error = run()
        finally:
            _level.reset(token)
        if propagate and error is not None:
            level.errors.insert(0 if outer is None else len(level.errors), error)
        if outer is None and level.errors:
            raise level.errors[0]

    def close(self) -> None:
        """Give the app its own client back."""
        if vars(self._app).get("client") is self._client:  # else it has been configured anew meanwhile
            del self._app.client
            if self._replaced is not None and self._replaced.settings == self._app.settings:
                self._app.client = self._replaced
            elif self._replaced is not None:
                self._replaced.close()  # of settings that `configure` has changed since
        while self._idle:
            self._idle.pop().close()

    def accept(self, message: Message, placement: Placement) -> Accepted:
        """What the server would say to it. Raises DuplicateCall."""
        key = (message.queue, "key", placement.dedupe_key)
        own = (message.queue, "id", message.id)
        with self._lock:
            winner = self._markers.get(key) if placement.dedupe_key else None
            if winner is None and placement.unique:
                winner = self._markers.get(own)
            if winner is None:
                self._markers[own] = message.id
                if placement.dedupe_until != "started":
                    self._markers[key] = message.id
                return Accepted(message.id)
        return answer(self._client.queue(message.queue), message, placement, (b"duplicate", winner.encode()))

    def _is_superseded(self, message: Message) -> bool:
        key, version, _ = message.meta.get("version", ("", 0, 0))
        return bool(version < self._versions.get((message.queue, key), 0))

    def _note_version(self, message: Message) -> None:
        if "version" in message.meta:
            key, version, _ = message.meta["version"]
            self._versions[message.queue, key] = max(version, self._versions.get((message.queue, key), 0))

    def follow(
        self, message: Message, placement: Placement, inputs: Mapping[int, bytes] = MappingProxyType({})
    ) -> Completed | Buried:
        """Run a call until a worker would be done with it.

        inputs  packed values that it takes from others of its flow
        """
        try:
            return self._followed(message, inputs)
        finally:
            if placement.dedupe_until == "done":
                self._markers.pop((message.queue, "key", placement.dedupe_key), None)

    def _followed(self, message: Message, inputs: Mapping[int, bytes]) -> Completed | Buried:
        with self._lock:
            runner = self._idle.pop() if self._idle else _Runner(self._app)
        verdict = runner.follow(message, inputs, self._is_superseded(message))
        # Not after an exception (Ctrl-C, a test's timeout): its thread may be at work still.
        self._idle.append(runner)
        if isinstance(verdict, Replaced):
            verdict = self._client.memory_flows.stand_in(verdict)
        if isinstance(verdict, Retried):
            raise ResultTimeout(
                f"{message.task}[{message.id}] has not ended after {MOST_RETRIES} retries: {verdict.why}"
            )
        assert isinstance(verdict, (Completed, Buried)), "nobody takes a lease from it"
        if verdict.result and verdict.ttl_ms:
            self.keep(message, verdict.result)
        way = verdict.counter if isinstance(verdict, Completed) else "dead"
        self._client.outputs.end(self._client.queue(message.queue).keys.output(message.id), way)
        if isinstance(verdict, Completed) and verdict.counter == "succeeded":
            self._note_version(message)
        if isinstance(verdict, Buried) and verdict.error["type"] == "builtins.KeyboardInterrupt":
            raise KeyboardInterrupt
        return verdict

    def keep(self, message: Message, result: bytes) -> None:
        """Have this be the result of a call."""
        self._client.results[self._client.queue(message.queue).keys.result(message.id)] = result

    @staticmethod
    def _error_of(verdict: Completed | Buried | None) -> Exception | None:
        return decode_error(verdict.error) if isinstance(verdict, Buried) else None


class _Runner:
    """Runs one call at a time, on a timeline of its own: where a worker would wait, its clock jumps."""

    def __init__(self, app: BaseApp) -> None:
        self._tasks = with_own_tasks(app)
        self._clock = ServerClock()
        self._attempts = Attempts(self._tasks, app.settings, lambda queue: self._clock)
        self._most_bytes = app.settings.max_message_bytes

    def follow(self, message: Message, inputs: Mapping[int, bytes], superseded: bool) -> Verdict:
        """The verdict after all retries; Retried if there are too many of them."""
        self._clock.set(_now_ms())
        if superseded:
            result = pack_failure(State.REVOKED, 1, 0.0, "superseded")
            return Completed(_delivery(message, message.meta, inputs), "superseded", result, REVOKED_TTL_MS)
        delivery = _delivery(message, message.meta, inputs)
        if sum(map(len, inputs.values())) > self._most_bytes:
            return self._attempts.unbound(delivery, too_large(delivery, inputs, self._most_bytes))
        verdict = self._run(delivery)
        for _ in range(MOST_RETRIES):
            if not isinstance(verdict, Retried):
                break
            self._clock.set(self._clock.now_ms() + verdict.delay_ms)
            verdict = self._run(_delivery(message, verdict.meta, inputs))
        return verdict

    def _run(self, delivery: Delivery) -> Verdict:
        task = self._tasks.get(delivery.task)
        if task is not None and task.is_async:
            return _in_thread(self._attempts.run, delivery)
        return self._attempts.run(delivery)

    def close(self) -> None:
        _in_thread(self._attempts.close)


def _delivery(message: Message, meta: Mapping[str, Any], inputs: Mapping[int, bytes]) -> Delivery:
    fields = [b"id", message.id.encode(), b"task", message.task.encode(), b"body", message.body]
    delivery = Delivery(message.queue, message.priority, b"", [*fields, b"meta", pack_meta(meta)])
    delivery.inputs = inputs
    return delivery


def _in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call it in a thread of its own, and wait: the caller's thread may be running an event loop, and runs one at most.

    The loop of `Attempts` goes with it from thread to thread, so that clients which tasks keep on it stay good.
    """
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name="rsq-eager", daemon=True).start()
    return future.result()


class MemoryClient(Client):
    """Stands in for the app's client in eager mode: results lie in memory, the clock is this host's.

    may_ask  whether what is not about calls, such as a pause or a schedule, may go to the server of these settings
    """

    def __init__(self, settings: Settings, may_ask: Callable[[Settings], bool]) -> None:
        super().__init__(settings)
        self.queues = Queues(settings.with_values(partitions=1), self.endpoint)  # nothing has to be asked
        self._may_ask = may_ask
        self.results: dict[str, bytes] = {}
        self.outputs = MemoryOutputs()
        self.flows = self.memory_flows = MemoryFlows(settings, self.follow, self.afollow, self.queue, self.queues)
        self.listener = _MemoryListener(self)
        self.alistener = _AsyncMemoryListener(self)

    @contextmanager
    def link(self) -> Iterator[Link]:
        if not self._may_ask(self.settings):
            raise SettingsError(
                "in eager mode no server is asked, and this needs one: test it inside app.testing.worker(), or put the "
                "eager block into one of app.testing.isolated()"
            )
        with super().link() as link:
            yield link

    def now_ms(self) -> int:
        return _now_ms()

    def queue_names(self) -> list[str]:
        return sorted({*self.queues.names(), self.settings.default_queue})

    def read_result(self, task_id: str, queue: str | None) -> bytes | None:
        return self.first_of(self.result_keys(task_id, queue))

    def read_results(self, wanted: Sequence[Sequence[str]]) -> list[bytes | None]:
        return [self.first_of(keys) for keys in wanted]

    def save_handle(self, group_id: str, packed: bytes, ttl_ms: int) -> None:
        self.results[self._saved(group_id)] = packed

    def saved_handle(self, group_id: str) -> bytes | None:
        return self.results.get(self._saved(group_id))

    def forget_handle(self, group_id: str) -> None:
        self.results.pop(self._saved(group_id), None)

    def output_of(self, delivery: Delivery, length: int, ttl_ms: int) -> MemoryOutput:  # type: ignore[override]
        if delivery.output is None:
            delivery.output = self.outputs.begin(self.queue(delivery.queue).keys.output(delivery.id), length)
        output: MemoryOutput = delivery.output
        return output

    def watch(self, watched: Watched, timeout_s: float | None) -> Generator[Seen, None, None]:
        self.outputs.bring(watched, self.results)
        yield from watched.arrived

    async def awatch(self, watched: Watched, timeout_s: float | None) -> AsyncGenerator[Seen, None]:
        self.outputs.bring(watched, self.results)
        for seen in watched.arrived:
            yield seen

    def report_progress(self, task_id: str, queue: str, packed: bytes) -> None:
        self.results[self.queue(queue).keys.progress_of(task_id)] = packed

    def read_progress(self, task_id: str, queue: str | None) -> bytes | None:
        return self.first_of(self.progress_keys(task_id, queue))

    def first_of(self, names: Sequence[str]) -> bytes | None:
        """The value at the first of these keys that has one."""
        return next((self.results[name] for name in names if name in self.results), None)

    def waited_for(self, names: Sequence[str]) -> bytes:
        """The same for one who would wait."""
        found = self.first_of(names)
        if any(map(is_flow, names)):
            raise ResultTimeout("it has not ended, and in eager mode nothing goes on while it is waited for")
        if found is None:
            raise ResultTimeout(
                "there is no result, and in eager mode none will come: the task raised Ignore, is running still, "
                "or the result was forgotten"
            )
        return found

    def forget_result(self, task_id: str, queue: str | None) -> None:
        for name in [*self.result_keys(task_id, queue), *self.progress_keys(task_id, queue)]:
            self.results.pop(name, None)
        for output, _ in self.output_places(task_id, queue):
            self.outputs.forget(output)

    def revoke_stamped(self, stamps: Mapping[str, Any], terminate: bool) -> None:
        check_stamps(stamps)

    def revoke(self, ids: Sequence[str], queue: str | None, terminate: bool) -> dict[str, str]:
        return dict.fromkeys(ids, "done")  # in eager mode every call has ended when it was sent

    def unfinished_state(self, task_id: str, queue: str | None) -> State:
        return State.PENDING


class _MemoryListener(ResultListener):
    def __init__(self, client: MemoryClient) -> None:
        super().__init__(client.endpoint, client.pool)
        self._client = client

    def arrivals(
        self, wanted: Sequence[Sequence[str]], timeout_s: float | None, places: Sequence[InFlow | None] = ()
    ) -> Generator[tuple[int, bytes], None, None]:
        for number, keys in enumerate(wanted):
            yield number, self._client.waited_for(keys)


class _AsyncMemoryListener(AsyncResultListener):
    def __init__(self, client: MemoryClient) -> None:
        super().__init__(client.endpoint, client.settings.broker_timeout_s)
        self._client = client

    async def arrivals(
        self, wanted: Sequence[Sequence[str]], timeout_s: float | None, places: Sequence[InFlow | None] = ()
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        for number, keys in enumerate(wanted):
            yield number, self._client.waited_for(keys)


def _now_ms() -> int:
    return int(time.time() * 1000)
