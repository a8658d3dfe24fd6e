"""One delivery from start to verdict: what speaks against running it, the run itself, and what follows from it."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Mapping
from typing import Any

from rsq import codec
from rsq.app import unknown_task_text
from rsq.clock import ServerClock
from rsq.errors import DecodeError, UnknownTask
from rsq.message import Delivery
from rsq.outcome import RESULT_ERRORS, Completed, Retried, Verdict, pack_failure, pack_success
from rsq.request import current
from rsq.retry import after_crashes, bury, decide
from rsq.settings import Settings
from rsq.states import State
from rsq.task import Task
from rsq.worker.interrupt import Interrupt

UNKNOWN_TASK_TRIES = 10
"""How often a message with an unknown task comes back within its grace time."""

_FOREIGN_TTL_MS = 86_400_000
"""How long the failure of a message is readable whose task, and so whose options, nobody here knows."""


class Attempts:
    """Runs deliveries of one app. One for each thread that runs bodies."""

    def __init__(self, tasks: Mapping[str, Task[..., Any]], settings: Settings, clock: ServerClock) -> None:
        self._tasks = tasks
        self._settings = settings
        self._clock = clock
        self._rng = random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.interrupt = Interrupt()

    def is_early(self, delivery: Delivery) -> bool:
        """Whether the delivery must be acknowledged before its body starts."""
        task = self._tasks.get(delivery.task)
        return task is not None and not task.options.acks_late

    def run(self, delivery: Delivery) -> Verdict:
        """Run the body, unless something speaks against it, and say what becomes of the message. Raises nothing."""
        task = self._tasks.get(delivery.task)
        if task is None or delivery.meta or delivery.deliveries > 1 or delivery.problem:
            refused = self._refusal(delivery, task)
            if refused is not None:
                return refused
            assert task is not None, "an unknown task is refused"
        try:
            args, kwargs = codec.decode_call(delivery.body)
        except DecodeError as error:
            return self._bury(delivery, "undecodable", error, task)
        token = current.set(delivery)
        started = time.perf_counter()
        try:
            self.interrupt.enter(delivery)
            value = task.run(*args, **kwargs)
            if task.is_async:
                value = self._finish(value)
            self.interrupt.leave()
            delivery.runtime_s = time.perf_counter() - started
        except BaseException as error:  # SystemExit of a body is its failure, not the worker's end
            self.interrupt.leave()
            delivery.runtime_s = time.perf_counter() - started
            return self._failed(delivery, task, error, args, kwargs)
        finally:
            current.reset(token)
        return self._succeeded(delivery, task, value)

    def _finish(self, coroutine: Any) -> Any:
        """Run a coroutine on a loop that lives as long as this thread's work, so that clients may be kept on it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self.interrupt.run(self._loop, self._loop.create_task(coroutine))

    def close(self) -> None:
        """End the loop of `async def` tasks, if there is one."""
        if self._loop is not None:
            for client in {task.app.client for task in self._tasks.values()}:
                self._loop.run_until_complete(client.leave_loop())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._loop = None

    def _succeeded(self, delivery: Delivery, task: Task[..., Any], value: object) -> Verdict:
        ttl_ms = self._result_ttl_ms(delivery, task)
        if ttl_ms is None:
            return Completed(delivery, "succeeded", b"", 0)
        attempt = delivery.attempt if delivery.meta else 1
        try:
            result = pack_success(attempt, delivery.runtime_s, value, self._settings.max_message_bytes)
        except RESULT_ERRORS as error:
            # Running it again would not help: the same value would come out.
            return self._bury(delivery, "result", error, task)
        return Completed(delivery, "succeeded", result, ttl_ms)

    def _failed(
        self, delivery: Delivery, task: Task[..., Any], error: BaseException, args: list[Any], kwargs: dict[str, Any]
    ) -> Verdict:
        if isinstance(error, TypeError) and not _fits(task, args, kwargs):
            return self._bury(delivery, "arguments", TypeError(f"{task.name}: {error}"), task)
        return decide(
            delivery,
            error,
            task.policy,
            runtime_s=delivery.runtime_s,
            result_ttl_ms=self._result_ttl_ms(delivery, task),
            rng=self._rng,
        )

    def _refusal(self, delivery: Delivery, task: Task[..., Any] | None) -> Verdict | None:
        """A verdict without a run, or None."""
        if delivery.problem:
            return self._bury(delivery, "undecodable", DecodeError(delivery.problem), None)
        if task is None:
            return self._unknown(delivery)
        lost = after_crashes(delivery, task.policy, self._settings.max_deliveries)
        if lost is not None:
            reason, error = lost
            return self._bury(delivery, reason, error, task)
        expires = delivery.meta.get("expires")
        if expires is not None and expires <= self._clock.now_ms():
            ttl_ms = self._result_ttl_ms(delivery, task)
            result = b"" if ttl_ms is None else pack_failure(State.REVOKED, delivery.attempt, 0.0, "expired")
            return Completed(delivery, "expired", result, ttl_ms or 0)
        return None

    def _unknown(self, delivery: Delivery) -> Verdict:
        """A rolling deploy may have sent what only newer workers know: put it off, and give it up after the grace."""
        now_ms = self._clock.now_ms()
        since_ms = delivery.meta.get("deferred_since", now_ms)
        grace_ms = self._settings.unknown_task_grace_s * 1000
        text = unknown_task_text(delivery.task, self._tasks)
        if now_ms - since_ms >= grace_ms:
            return self._bury(delivery, "unknown-task", UnknownTask(text), None)
        delay_ms = max(100, int(grace_ms / UNKNOWN_TASK_TRIES))
        return Retried(delivery, "deferred", {**delivery.meta, "deferred_since": since_ms}, delay_ms, text)

    def _bury(self, delivery: Delivery, reason: str, error: Exception, task: Task[..., Any] | None) -> Verdict:
        ttl_ms = _FOREIGN_TTL_MS if task is None else self._result_ttl_ms(delivery, task)
        return bury(delivery, reason, error, runtime_s=delivery.runtime_s, result_ttl_ms=ttl_ms)

    def _result_ttl_ms(self, delivery: Delivery, task: Task[..., Any]) -> int | None:
        """How long the result is kept, or None when nobody wants it."""
        options = task.options
        if not delivery.meta:
            return None if options.ignore_result else options.result_ttl_ms
        if delivery.meta.get("ignore_result", options.ignore_result):
            return None
        expires_s = delivery.meta.get("result_expires")
        return options.result_ttl_ms if expires_s is None else max(1, int(expires_s * 1000))


def _fits(task: Task[..., Any], args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the arguments fit the signature: a TypeError of the call itself is no failure of the body."""
    try:
        inspect.signature(task.run).bind(*args, **kwargs)
    except TypeError:
        return False
    return True
