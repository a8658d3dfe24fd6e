"""One delivery from start to verdict: what speaks against running it, the run itself, and what follows from it."""

from __future__ import annotations

import asyncio
import inspect
import random
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rsq import codec
from rsq.app import unknown_task_text
from rsq.broker import forks
from rsq.broker.replies import Begin
from rsq.broker.worker_queue import Rules
from rsq.calls.each import body_of
from rsq.calls.errbacks import errback_arguments
from rsq.calls.inputs import arguments_of, takes_of
from rsq.calls.message import Delivery
from rsq.calls.outcome import RESULT_ERRORS, Completed, Released, Retried, Verdict, pack_failure, pack_success, revoked
from rsq.calls.request import Request, current
from rsq.calls.retry import FOREIGN_TTL_MS, RetryPolicy, after_crashes, bury, decide
from rsq.calls.source import decoded
from rsq.clock import ServerClock
from rsq.errors import DecodeError, MaxRetriesExceededError, UnknownTask
from rsq.settings import Settings
from rsq.signals import task_failure, task_postrun, task_prerun, task_success
from rsq.states import State
from rsq.task import Task
from rsq.worker import signalling
from rsq.worker.interrupt import InCoroutine, InMainThread, Interrupt
from rsq.worker.loops import close_loop, run_to_end
from rsq.worker.permits import put_off, rules_of
from rsq.worker.process import end_copy
from rsq.worker.time_limits import Limits, Timed, exceeded

UNKNOWN_TASK_TRIES = 10
"""How often a message with an unknown task comes back within its grace time."""

_QUIET = frozenset(("flow", "parent", "root", "headers"))
"""What may be said of a call that starts unasked all the same."""

_NO_POLICY = RetryPolicy()
"""Of a task that nobody here knows."""


class Attempts:
    """Runs deliveries of one app. One for each runner, for it runs one body at a time.

    clock_of   gives the clock of the server of a queue
    interrupt  the way to a plain function where it runs; None = it is not to be interrupted
    limits     time limits of the bodies; None = there are none
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        settings: Settings,
        clock_of: Callable[[str], ServerClock],
        interrupt: Interrupt | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._tasks = tasks
        self._settings = settings
        self._clock_of = clock_of
        self._rng = random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._function = interrupt or InMainThread()
        self._coroutine = InCoroutine()
        self._limits = limits

    def is_plain(self, delivery: Delivery) -> bool:
        """Whether its body starts without a word to the server, as nearly all do."""
        task = self._tasks.get(delivery.task)
        return task is None or (
            task.is_plain and (not delivery.meta or (delivery.meta.keys() <= _QUIET and takes_of(delivery) is None))
        )

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
            signalling.refused(task, delivery, refused)
            return refused

    def permission(self, delivery: Delivery, rules: Rules, answer: Begin) -> Verdict | None:
        """What follows from the server's answer: a verdict without a run, or None: it starts."""
        task = self._tasks[delivery.task]
        if answer.word == "wait":
            return put_off(delivery, rules, answer)
        if answer.word == "superseded":
            superseded = self._skipped(delivery, task, "superseded")
            signalling.refused(task, delivery, superseded)
            return superseded
        return None

    def unbound(self, delivery: Delivery, error: Exception) -> Verdict:
        """What becomes of a call that takes values which cannot be brought."""
        task = self._tasks.get(delivery.task)
        refused = self._bury(delivery, "arguments", error.with_traceback(None), task)  # the way to it is rsq's own
        signalling.refused(task, delivery, refused)
        return refused

    def is_early(self, delivery: Delivery) -> bool:
        """Whether the delivery must be acknowledged before its body starts."""
        task = self._tasks.get(delivery.task)
        return task is not None and not task.options.acks_late

    def is_async(self, delivery: Delivery) -> bool:
        """Whether its body is a coroutine."""
        task = self._tasks.get(delivery.task)
        return task is not None and task.is_async

    def throw(self, delivery: Delivery, error: BaseException) -> bool:
        """Raise `error` in its body. From any other thread; False as `Interrupt.throw` says."""
        return self._way(self.is_async(delivery)).throw(delivery, error)

    def run(self, delivery: Delivery) -> Verdict:
        """Run the body in this thread, unless something speaks against it, and say what becomes of the message.

        Whatever the body raises is the body's; what this itself raises is a fault of rsq.
        """
        token = current.set(delivery)
        try:
            run = self._begin(delivery)
            if not isinstance(run, _Run):
                return run
            if run.task.is_async:
                return run_to_end(self._own_loop(), self._arun(run))
            return self._run(run)
        finally:
            current.reset(token)

    def _run(self, run: _Run) -> Verdict:
        way, delivery, generation = self._function, run.delivery, forks.generation
        run.announce()
        try:
            try:
                way.enter(delivery)
                value = run.body(*run.args, **run.kwargs)
            finally:
                if forks.generation != generation:
                    end_copy(sys.exc_info()[1])
                way.leave()
            run.end()
        except BaseException as error:  # SystemExit of a body is its failure, not the worker's end
            way.leave()  # once more: what was thrown may have come before it
            return self._failed(run, run.meant(way.meant(delivery, error)))
        return self._succeeded(run, value)

    async def arun(self, delivery: Delivery) -> Verdict:
        """`run` for a body that is a coroutine, on the running loop, in a `RunnerTask`."""
        current.set(delivery)  # in this asyncio task alone
        run = self._begin(delivery)
        return await self._arun(run) if isinstance(run, _Run) else run

    async def _arun(self, run: _Run) -> Verdict:
        way, delivery, generation = self._coroutine, run.delivery, forks.generation
        run.announce()
        try:
            try:
                way.enter(delivery)
                body = run.body(*run.args, **run.kwargs)
                value = await (body if run.timed is None else way.listen(body))
            finally:
                if forks.generation != generation:
                    end_copy(sys.exc_info()[1])
            way.leave()
            run.end()
        except BaseException as error:  # see above
            stray = way.is_stray(error)
            way.leave()
            return self._failed(run, run.meant(way.meant(delivery, error)), stray)
        return self._succeeded(run, value)

    def _way(self, is_async: bool) -> Interrupt:
        return self._coroutine if is_async else self._function

    def _begin(self, delivery: Delivery) -> _Run | Verdict:
        """What to run; or the verdict, where something speaks against it."""
        task, meta = self._tasks.get(delivery.task), delivery.meta
        # What is said of nearly all calls of flows neither speaks against them nor bounds them.
        quiet = not meta or meta.keys() <= _QUIET
        if task is None or not quiet or delivery.deliveries > 1 or delivery.problem or delivery.revoked:
            refused = self._refusal(delivery, task)
            if refused is not None:
                signalling.refused(task, delivery, refused)
                return refused
            assert task is not None, "an unknown task is refused"
        delivery.app = task.app
        timed = None
        if (task.is_timed or not quiet) and self._limits is not None:
            # Arguments may be made to take for ever, too.
            timed = self._limits.start(task, delivery, self._way(task.is_async).throw)
        try:
            if meta and (takes := takes_of(delivery)) is not None:
                args, kwargs = (
                    errback_arguments(delivery, task.fits) if isinstance(takes, str) else arguments_of(delivery)
                )
            else:
                args, kwargs = codec.decode_call(delivery.body)
                if task.source is not None:
                    args = decoded(task.source, delivery, args)
        except DecodeError as error:
            refused = self._bury(delivery, "undecodable", error if timed is None else timed.meant(error), task)
            signalling.refused(task, delivery, refused)
            return refused
        body = task.body
        if not quiet and (each := meta.get("each")) is not None:
            body = body_of(body, each, task.is_async)
        return _Run(delivery, task, body, args, kwargs, timed)

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of this thread, which lives as long as its work, so that clients may be kept on it."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def close(self) -> None:
        """End the loop of `async def` tasks, if there is one."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            self.close_loop(loop)

    def close_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """End a loop on which bodies ran, and what they have left on it."""
        close_loop(loop, *(client.leave_loop() for client in {task.app.client for task in self._tasks.values()}))

    def _succeeded(self, run: _Run, value: object) -> Verdict:
        delivery, task = run.delivery, run.task
        verdict: Verdict
        ttl_ms = self._result_ttl_ms(delivery, task)
        if delivery.revoked:
            verdict = revoked(delivery)  # whatever the body made of it
        elif ttl_ms is None and "flow" not in delivery.meta:
            verdict = Completed(delivery, "succeeded", b"", 0)
        else:
            attempt = delivery.attempt if delivery.meta else 1
            try:
                result = pack_success(attempt, delivery.runtime_s, value, self._settings.max_message_bytes)
                verdict = Completed(delivery, "succeeded", result, ttl_ms or 0)
            except RESULT_ERRORS as error:
                # Running it again would not help: the same value would come out.
                verdict = self._bury(delivery, "result", error.with_traceback(None), task)
        if delivery.revoked or task_postrun.handlers or task_success.handlers or task_failure.handlers:
            signalling.ended(task, delivery, run.args, run.kwargs, verdict, value)
        return verdict

    def _failed(self, run: _Run, error: BaseException, stray: bool = False) -> Verdict:
        delivery, task = run.delivery, run.task
        verdict: Verdict
        error.__traceback__ = _from_body(error.__traceback__)
        if delivery.revoked:
            verdict = revoked(delivery)
        elif delivery.lease_lost or stray:
            # It was told to stop, or cancelled by a neighbour, so it has not failed. The lease may be lost on another
            # queue alone, and this outcome be accepted: so it counts no attempt, and what was acknowledged early does
            # not begin again.
            verdict = Released(delivery)
        elif isinstance(error, TypeError) and not _fits(run):
            verdict = self._bury(delivery, "arguments", TypeError(f"{task.name}: {error}"), task)
        else:
            verdict = self._decide(delivery, task, error, delivery.runtime_s)
        signalling.ended(task, delivery, run.args, run.kwargs, verdict, error)
        return verdict

    def _decide(self, delivery: Delivery, task: Task[..., Any], error: BaseException, runtime_s: float) -> Verdict:
        ttl_ms = self._result_ttl_ms(delivery, task)
        now_ms = self._clock_of(delivery.queue).now_ms()
        return decide(
            delivery, error, task.policy, runtime_s=runtime_s, result_ttl_ms=ttl_ms, rng=self._rng, now_ms=now_ms
        )

    def _refusal(self, delivery: Delivery, task: Task[..., Any] | None, may_expire: bool = True) -> Verdict | None:
        """A verdict without a run, or None."""
        if delivery.problem:
            return self._bury(delivery, "undecodable", DecodeError(delivery.problem), None)
        if delivery.revoked:
            return revoked(delivery)
        if delivery.overdue_s and task is not None:
            # Its process was killed for it; the attempt counts as one that raised this.
            return self._decide(delivery, task, exceeded(delivery.overdue_s), delivery.overdue_s)
        policy = _NO_POLICY if task is None else task.policy
        lost = after_crashes(delivery, policy, self._settings.max_deliveries)
        if lost is not None:
            reason, error = lost
            return self._bury(delivery, reason, error, task)
        if task is None:
            return self._unknown(delivery)
        expires = delivery.meta.get("expires")
        if may_expire and expires is not None and expires <= self._clock_of(delivery.queue).now_ms():
            return self._expired(delivery, task)
        return None

    def _expired(self, delivery: Delivery, task: Task[..., Any]) -> Verdict:
        if delivery.attempt == 1:
            return self._skipped(delivery, task, "expired")
        # It was run, and it failed: not what "revoked" tells.
        text = f"it expired before attempt {delivery.attempt} could start, and those before had failed"
        return self._bury(delivery, "retries-exhausted", MaxRetriesExceededError(text), task)

    def _skipped(self, delivery: Delivery, task: Task[..., Any], why: str) -> Verdict:
        """It is not run any more; `why` is its counter, too."""
        ttl_ms = self._result_ttl_ms(delivery, task)
        result = b"" if ttl_ms is None else pack_failure(State.REVOKED, delivery.attempt, 0.0, why)
        return Completed(delivery, why, result, ttl_ms or 0)

    def _unknown(self, delivery: Delivery) -> Verdict:
        """A rolling deploy may have sent what only newer workers know: put it off, and give it up after the grace."""
        now_ms = self._clock_of(delivery.queue).now_ms()
        since_ms = min(now_ms, delivery.meta.get("deferred_since", now_ms))  # others may have written it
        grace_ms = self._settings.unknown_task_grace_s * 1000
        text = unknown_task_text(delivery.task, self._tasks)
        if now_ms - since_ms >= grace_ms:
            return self._bury(delivery, "unknown-task", UnknownTask(text), None)
        delay_ms = max(100, int(grace_ms / UNKNOWN_TASK_TRIES))
        return Retried(delivery, "deferred", {**delivery.meta, "deferred_since": since_ms}, delay_ms, text)

    def _bury(self, delivery: Delivery, reason: str, error: BaseException, task: Task[..., Any] | None) -> Verdict:
        ttl_ms = FOREIGN_TTL_MS if task is None else self._result_ttl_ms(delivery, task)
        return bury(delivery, reason, error, runtime_s=delivery.runtime_s, result_ttl_ms=ttl_ms)

    def _result_ttl_ms(self, delivery: Delivery, task: Task[..., Any]) -> int | None:
        """How long the result is kept, or None when nobody wants it."""
        meta = delivery.meta
        if not meta:
            return task.result_ttl_ms
        if meta.get("ignore_result", task.options.ignore_result):
            return None
        expires_s = meta.get("result_expires")
        return task.options.result_ttl_ms if expires_s is None else max(1, int(expires_s * 1000))


class _Run:
    """One body that runs, or is about to."""

    __slots__ = ("args", "body", "delivery", "kwargs", "started", "task", "timed")

    def __init__(
        self,
        delivery: Delivery,
        task: Task[..., Any],
        body: Callable[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        timed: Timed | None,
    ) -> None:
        self.delivery = delivery
        self.task = task
        self.body = body
        self.args = args
        self.kwargs = kwargs
        self.timed = timed

    def announce(self) -> None:
        """It begins."""
        task = self.task
        if task_prerun.handlers:
            flow = Request(self.delivery).flow
            task_prerun.send(task, task_id=self.delivery.id, task=task, args=self.args, kwargs=self.kwargs, flow=flow)
        self.started = time.perf_counter() if self.timed is None else self.timed.began

    def end(self) -> None:
        """It has ended by itself. Raises TimeLimitExceeded if it was told to end before."""
        self.delivery.runtime_s = time.perf_counter() - self.started
        if self.timed is not None:
            self.timed.end()

    def meant(self, error: BaseException) -> BaseException:
        """It has ended with this error: why it has failed."""
        self.delivery.runtime_s = time.perf_counter() - self.started
        return error if self.timed is None else self.timed.meant(error)


def _from_body(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the body on: the way to it, which is always the same, hides what matters."""
    inner, on_the_way = trace, ("rsq.worker.", "rsq.calls.each", "rsq.calls.yields", "asyncio.")
    while inner is not None and inner.tb_frame.f_globals.get("__name__", "").startswith(on_the_way):
        inner = inner.tb_next
    return inner or trace


def _fits(run: _Run) -> bool:
    """Whether the arguments fit the signature: a TypeError of the call itself is no failure of the body."""
    try:
        inspect.signature(run.body).bind(*run.args, **run.kwargs)
    except TypeError:
        return False
    return True
