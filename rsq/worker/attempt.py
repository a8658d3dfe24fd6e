"""One delivery from start to verdict: what speaks against running it, the run itself, and what follows from it."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rsq import codec
from rsq.app import unknown_task_text
from rsq.broker.replies import Begin
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery
from rsq.calls.outcome import RESULT_ERRORS, Completed, Released, Retried, Verdict, pack_failure, pack_success, revoked
from rsq.calls.request import current
from rsq.calls.retry import after_crashes, bury, decide
from rsq.clock import ServerClock
from rsq.errors import DecodeError, TaskRevoked, UnknownTask
from rsq.settings import Settings
from rsq.signals import task_failure, task_postrun, task_prerun, task_success
from rsq.states import State
from rsq.task import Task
from rsq.worker import signalling as tell
from rsq.worker.interrupt import Interrupt
from rsq.worker.permits import put_off, rules_of
from rsq.worker.process import end_copy
from rsq.worker.time_limits import Clock, Timed, exceeded

UNKNOWN_TASK_TRIES = 10
"""How often a message with an unknown task comes back within its grace time."""

_FOREIGN_TTL_MS = 86_400_000
"""How long the failure of a message is readable whose task, and so whose options, nobody here knows."""


class Attempts:
    """Runs deliveries of one app. One for each lane, for it runs one body at a time."""

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        settings: Settings,
        clock: ServerClock,
        interrupt: Interrupt | None = None,
        limits: Clock | None = None,
    ) -> None:
        self._tasks = tasks
        self._settings = settings
        self._clock = clock
        self._rng = random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.interrupt = interrupt or Interrupt()
        self._limits = limits

    def is_plain(self, delivery: Delivery) -> bool:
        """Whether its body starts without a word to the server, as nearly all do."""
        task = self._tasks.get(delivery.task)
        return task is None or (task.is_plain and not delivery.meta)

    def rules(self, delivery: Delivery) -> Rules | Verdict | None:
        """What must be asked before its body starts; or the verdict, where that cannot be told; or None."""
        task = self._tasks.get(delivery.task)
        # A duplicate may have brought a later expiry: asked first, it does not expire.
        if task is None or self._refusal(delivery, task, may_expire="begin" not in delivery.meta) is not None:
            return None
        try:
            return rules_of(task, delivery)
        except Exception as error:
            refused = self._bury(delivery, "arguments", error, task)
            tell.refused(task, delivery, refused)
            return refused

    def permission(self, delivery: Delivery, rules: Rules, answer: Begin) -> Verdict | None:
        """What follows from the server's answer: a verdict without a run, or None: it starts."""
        task = self._tasks[delivery.task]
        if answer.word == "wait":
            return put_off(delivery, rules, answer)
        if answer.word == "superseded":
            superseded = self._skipped(delivery, task, "superseded")
            tell.refused(task, delivery, superseded)
            return superseded
        return None

    def is_early(self, delivery: Delivery) -> bool:
        """Whether the delivery must be acknowledged before its body starts."""
        task = self._tasks.get(delivery.task)
        return task is not None and not task.options.acks_late

    def is_async(self, delivery: Delivery) -> bool:
        """Whether its body is a coroutine."""
        task = self._tasks.get(delivery.task)
        return task is not None and task.is_async

    def run(self, delivery: Delivery) -> Verdict:
        """Run the body, unless something speaks against it, and say what becomes of the message. Raises nothing."""
        call = self._call_of(delivery)
        if not isinstance(call, tuple):
            return call
        task, args, kwargs = call
        token = current.set(delivery)
        if task_prerun.handlers:
            task_prerun.send(task, task_id=delivery.id, task=task, args=args, kwargs=kwargs)
        timed = self._limits.start(task, delivery) if self._limits and (task.is_timed or delivery.meta) else None
        pid, started = os.getpid(), time.perf_counter()
        try:
            try:
                self.interrupt.enter(delivery)
                if delivery.revoked:  # just now: who revoked it could not reach the body yet
                    raise TaskRevoked
                if timed is not None:
                    timed.begin()
                value = task.run(*args, **kwargs)
                if task.is_async:
                    value = self._finish(value if timed is None else self.interrupt.tell(value))
            finally:
                if os.getpid() != pid:
                    end_copy(sys.exc_info()[1])
                self.interrupt.leave()
            if timed is not None:
                timed.end()
        except BaseException as error:  # SystemExit of a body is its failure, not the worker's end
            self.interrupt.leave()  # once more: what was thrown may have come before it
            delivery.runtime_s = time.perf_counter() - started
            return self._failed(delivery, task, self._meant(delivery, error, timed), args, kwargs)
        else:
            delivery.runtime_s = time.perf_counter() - started
            return self._succeeded(delivery, task, value, args, kwargs)
        finally:
            current.reset(token)

    async def arun(self, delivery: Delivery) -> Verdict:
        """`run` for a body that is a coroutine, on the running loop, as an asyncio task that runs nothing else."""
        call = self._call_of(delivery)
        if not isinstance(call, tuple):
            return call
        task, args, kwargs = call
        current.set(delivery)  # in this asyncio task alone
        if task_prerun.handlers:
            task_prerun.send(task, task_id=delivery.id, task=task, args=args, kwargs=kwargs)
        timed = self._limits.start(task, delivery) if self._limits and (task.is_timed or delivery.meta) else None
        pid, started = os.getpid(), time.perf_counter()
        try:
            self.interrupt.enter_coroutine(delivery)
            if delivery.revoked:  # see above
                raise TaskRevoked
            if timed is not None:
                timed.begin()
            try:
                value = await (
                    task.run(*args, **kwargs) if timed is None else self.interrupt.tell(task.run(*args, **kwargs))
                )
            finally:
                if os.getpid() != pid:
                    end_copy(sys.exc_info()[1])
            self.interrupt.leave_coroutine()
            delivery.runtime_s = time.perf_counter() - started
            if timed is not None:
                timed.end()
        except BaseException as error:  # see above
            self.interrupt.leave_coroutine()
            delivery.runtime_s = time.perf_counter() - started
            return self._failed(delivery, task, self._meant(delivery, error, timed), args, kwargs)
        return self._succeeded(delivery, task, value, args, kwargs)

    def _meant(self, delivery: Delivery, error: BaseException, timed: Timed | None) -> BaseException:
        """Why the body failed, where `error` is only what it made of an interruption."""
        error = self.interrupt.meant(delivery, error)
        return error if timed is None else timed.meant(error)

    def _call_of(self, delivery: Delivery) -> tuple[Task[..., Any], list[Any], dict[str, Any]] | Verdict:
        """What to call; or the verdict, where something speaks against it."""
        task = self._tasks.get(delivery.task)
        if task is None or delivery.meta or delivery.deliveries > 1 or delivery.problem or delivery.revoked:
            refused = self._refusal(delivery, task)
            if refused is not None:
                tell.refused(task, delivery, refused)
                return refused
            assert task is not None, "an unknown task is refused"
        try:
            return task, *codec.decode_call(delivery.body)
        except DecodeError as error:
            refused = self._bury(delivery, "undecodable", error, task)
            tell.refused(task, delivery, refused)
            return refused

    def _finish(self, coroutine: Any) -> Any:
        """Run a coroutine on a loop that lives as long as this thread's work, so that clients may be kept on it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self.interrupt.run(self._loop, coroutine)

    def close(self) -> None:
        """End the loop of `async def` tasks, if there is one."""
        if self._loop is not None:
            self.close_loop(self._loop)
            self._loop = None

    def close_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """End a loop on which bodies ran, and what they have left on it."""
        for client in {task.app.client for task in self._tasks.values()}:
            loop.run_until_complete(client.leave_loop())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def _succeeded(
        self, delivery: Delivery, task: Task[..., Any], value: object, args: list[Any], kwargs: dict[str, Any]
    ) -> Verdict:
        verdict: Verdict
        ttl_ms = self._result_ttl_ms(delivery, task)
        if delivery.revoked:
            verdict = revoked(delivery)  # whatever the body made of it
        elif ttl_ms is None:
            verdict = Completed(delivery, "succeeded", b"", 0)
        else:
            attempt = delivery.attempt if delivery.meta else 1
            try:
                result = pack_success(attempt, delivery.runtime_s, value, self._settings.max_message_bytes)
                verdict = Completed(delivery, "succeeded", result, ttl_ms)
            except RESULT_ERRORS as error:
                # Running it again would not help: the same value would come out.
                verdict = self._bury(delivery, "result", error.with_traceback(None), task)
        if delivery.revoked or task_postrun.handlers or task_success.handlers or task_failure.handlers:
            tell.ended(task, delivery, args, kwargs, verdict, value)
        return verdict

    def _failed(
        self, delivery: Delivery, task: Task[..., Any], error: BaseException, args: list[Any], kwargs: dict[str, Any]
    ) -> Verdict:
        verdict: Verdict
        error.__traceback__ = _from_body(error.__traceback__)
        if delivery.revoked:
            verdict = revoked(delivery)
        elif delivery.lease_lost:
            # It was told to stop, so it has not failed. The lease may be lost on another queue alone, and this outcome
            # be accepted: so it counts no attempt, and what was acknowledged early does not begin again.
            verdict = Released(delivery)
        elif isinstance(error, TypeError) and not _fits(task, args, kwargs):
            verdict = self._bury(delivery, "arguments", TypeError(f"{task.name}: {error}"), task)
        else:
            verdict = self._decide(delivery, task, error, delivery.runtime_s)
        tell.ended(task, delivery, args, kwargs, verdict, error)
        return verdict

    def _decide(self, delivery: Delivery, task: Task[..., Any], error: BaseException, runtime_s: float) -> Verdict:
        ttl_ms = self._result_ttl_ms(delivery, task)
        return decide(delivery, error, task.policy, runtime_s=runtime_s, result_ttl_ms=ttl_ms, rng=self._rng)

    def _refusal(self, delivery: Delivery, task: Task[..., Any] | None, may_expire: bool = True) -> Verdict | None:
        """A verdict without a run, or None."""
        if delivery.problem:
            return self._bury(delivery, "undecodable", DecodeError(delivery.problem), None)
        if delivery.revoked:
            return revoked(delivery)
        if task is None:
            return self._unknown(delivery)
        if delivery.overdue_s:
            # Its process was killed for it; the attempt counts as one that raised this.
            return self._decide(delivery, task, exceeded(delivery.overdue_s), delivery.overdue_s)
        lost = after_crashes(delivery, task.policy, self._settings.max_deliveries)
        if lost is not None:
            reason, error = lost
            return self._bury(delivery, reason, error, task)
        expires = delivery.meta.get("expires")
        if may_expire and expires is not None and expires <= self._clock.now_ms():
            return self._skipped(delivery, task, "expired")
        return None

    def _skipped(self, delivery: Delivery, task: Task[..., Any], why: str) -> Verdict:
        """It is not run any more; `why` is its counter, too."""
        ttl_ms = self._result_ttl_ms(delivery, task)
        result = b"" if ttl_ms is None else pack_failure(State.REVOKED, delivery.attempt, 0.0, why)
        return Completed(delivery, why, result, ttl_ms or 0)

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


def _from_body(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the body on: the way to it, which is always the same, hides what matters."""
    inner = trace
    while inner is not None and inner.tb_frame.f_globals.get("__name__", "").startswith(("rsq.worker.", "asyncio.")):
        inner = inner.tb_next
    return inner or trace


def _fits(task: Task[..., Any], args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the arguments fit the signature: a TypeError of the call itself is no failure of the body."""
    try:
        inspect.signature(task.run).bind(*args, **kwargs)
    except TypeError:
        return False
    return True
