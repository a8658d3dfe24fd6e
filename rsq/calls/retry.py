"""What follows from a failed attempt: again, put off, or given up. Pure: no clock, no server.

The default is to retry whatever failed with exponential backoff and then to keep the call as a dead letter.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Replaced, Retried, Verdict, pack_failure
from rsq.calls.plan import Plan
from rsq.errors import LONGEST_S, Ignore, InvalidTask, MaxRetriesExceededError, Reject, Replace, Retry, WorkerLost
from rsq.remote import encode_error
from rsq.states import State
from rsq.texts import text_of

REQUEUE_DELAY_MS = 1000
"""A message that its task put back comes again after this long, so that it cannot spin."""

FIRST_BACKOFF_S = 1.0
"""`retry_backoff` where neither that nor `default_retry_delay` is given."""

RETRY_DELAY_S = 180.0
"""`default_retry_delay` where there is no backoff and none is given, as in Celery."""


MOST_REPLACED = 100
"""So often in a row a call may be replaced."""

FOREIGN_TTL_MS = 86_400_000
"""How long the failure of a message is readable whose task, and so whose options, cannot be asked."""


@dataclass(frozen=True)
class RetryPolicy:
    """How a task is retried.

    autoretry_for        errors that are retried
    dont_autoretry_for   errors that are not, though `autoretry_for` names their base
    max_retries          runs after the first one; None = without end
    retry_backoff        seconds: upper bound of the first wait after an error, doubled with each attempt; 0 = no
                         backoff; None = 1 second, and no backoff where there is a default_retry_delay
    retry_backoff_max    seconds: no such wait is longer
    retry_jitter         draw each such wait evenly from 0 to its bound, so that failures do not come back in step
    default_retry_delay  seconds to wait after `self.retry()` without a countdown, and after an error where there is no
                         backoff; None = as after an error, or 180 where there is no backoff either
    max_crashes          deaths of a process while running it, after which a call is given up
    """

    autoretry_for: tuple[type[BaseException], ...] = (Exception,)
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    max_retries: int | None = 3
    retry_backoff: float | None = None
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    default_retry_delay: float | None = None
    max_crashes: int = 3

    def __post_init__(self) -> None:
        for name in ("autoretry_for", "dont_autoretry_for"):
            classes = getattr(self, name)
            if not isinstance(classes, tuple) or not all(
                isinstance(c, type) and issubclass(c, BaseException) for c in classes
            ):
                raise InvalidTask(f"{name} takes classes of exceptions, not {classes!r}")
        if self.max_retries is not None and self.max_retries < 0:
            raise InvalidTask(f"max_retries must be 0 or more (or None: without end), not {self.max_retries}")
        if self.max_crashes < 1:
            raise InvalidTask(f"max_crashes must be at least 1, not {self.max_crashes}")
        for name in ("retry_backoff", "retry_backoff_max", "default_retry_delay"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds <= LONGEST_S:
                raise InvalidTask(f"{name} must be 0 seconds to a hundred years, not {seconds}")

    def most_retries(self, delivery: Delivery, asked: int | None = None) -> int | None:
        """Retries that a call has in all: as `self.retry()` asked, else as the call says, else as the task; or None."""
        most: int | None = delivery.meta.get("max_retries", self.max_retries) if asked is None else asked
        return most

    def delay_ms(self, attempt: int, rng: random.Random, asked: bool = False) -> int:
        """Wait before the attempt after this one: exponential, full jitter.

        attempt   the attempt that failed, from 1
        asked     it asked for the retry, and did not raise an error
        Returns   milliseconds, drawn evenly from 0 .. min(cap, base * 2 ** (attempt - 1))
        Source    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015
        """
        delay_s, backoff_s = self.default_retry_delay, self.retry_backoff
        if backoff_s is None:
            backoff_s = FIRST_BACKOFF_S if delay_s is None else 0.0
        if not backoff_s or (asked and delay_s is not None):
            return int(1000 * (RETRY_DELAY_S if delay_s is None else delay_s))
        # 2 ** 40 seconds is beyond any cap; the bound keeps the float finite.
        bound = min(self.retry_backoff_max, backoff_s * 2.0 ** min(attempt - 1, 40))
        return int(1000 * (rng.uniform(0, bound) if self.retry_jitter else bound))


def asked_for(
    name: str,
    delivery: Delivery | None,
    policy: RetryPolicy,
    handled: BaseException | None,
    exc: BaseException | type[BaseException] | None,
    countdown: float | timedelta | None,
    max_retries: int | None,
) -> BaseException:
    """What `self.retry()` raises: Retry, or what ends the call as its last failure, unless the body catches it.

    delivery  whose body asks; None: its function was called directly
    policy    of its task
    handled   the error that the body is handling, or None
    Raises    ValueError for what none of the others can be
    """
    if isinstance(exc, type) and issubclass(exc, BaseException):
        exc = exc()
    cause = handled if exc is None else exc
    again = Retry(f"{name} asked for a retry", cause, countdown, max_retries)
    again.__cause__ = cause
    if delivery is None:
        return again if cause is None else cause
    most = policy.most_retries(delivery, max_retries)
    if most is None or delivery.attempt <= most:
        return again
    delivery.exhausted = True
    if exc is not None:
        return exc
    last = "" if handled is None else f"; last: {type(handled).__name__}: {text_of(handled)}"
    return MaxRetriesExceededError(f"{name} has no retry left (max_retries={most}){last}")


def decide(
    delivery: Delivery,
    error: BaseException,
    policy: RetryPolicy,
    *,
    runtime_s: float,
    result_ttl_ms: int | None,
    rng: random.Random,
    now_ms: int,
) -> Verdict:
    """The verdict on an attempt that raised.

    error          what the body raised; Retry, Reject and Ignore steer
    result_ttl_ms  how long a caller may read the failure; None = nobody will
    now_ms         by the server's clock: a retry that would come after the call has expired is none
    """
    if isinstance(error, Ignore):
        return Completed(delivery, "ignored", b"", 0)
    if isinstance(error, Replace):
        try:
            return replaced(delivery, error)
        except ValueError as fault:
            return bury(delivery, "failed", fault, runtime_s=runtime_s, result_ttl_ms=result_ttl_ms)
    if isinstance(error, Reject):
        if error.requeue:
            return Retried(
                delivery, "deferred", delivery.meta, REQUEUE_DELAY_MS, error.reason or "put back by the task"
            )
        return bury(delivery, "rejected", error, runtime_s=runtime_s, result_ttl_ms=result_ttl_ms)

    attempt = delivery.attempt
    countdown_s: float | None = None
    if isinstance(error, Retry):
        asked, wanted, cause = True, True, error if error.exc is None else error.exc
        countdown_s, max_retries = error.countdown, policy.most_retries(delivery, error.max_retries)
    else:
        asked, cause, max_retries = False, error, policy.most_retries(delivery)
        wanted = isinstance(error, policy.autoretry_for) and not isinstance(error, policy.dont_autoretry_for)
    if delivery.exhausted:  # the body was told so; whatever it raises then is the end
        wanted, max_retries = True, 0
    delay_ms = policy.delay_ms(attempt, rng, asked) if countdown_s is None else int(max(0.0, countdown_s) * 1000)
    in_time = now_ms + delay_ms < delivery.meta.get("expires", math.inf)
    if wanted and in_time and (max_retries is None or attempt <= max_retries):
        why = error_of({"type": type(cause).__name__, "message": text_of(cause)})
        return Retried(delivery, "retried", {**delivery.meta, "attempt": attempt + 1}, delay_ms, why)
    reason = "time-limit" if delivery.overdue_s else "retries-exhausted" if wanted and attempt > 1 else "failed"
    return bury(delivery, reason, cause, runtime_s=runtime_s, result_ttl_ms=result_ttl_ms)


def replaced(delivery: Delivery, error: Replace) -> Replaced:
    """The verdict on a call that hands its place on. Raises ValueError where it must not."""
    plan, times = error.plan, delivery.meta.get("replaced", 0) + 1
    if not isinstance(plan, Plan):
        raise ValueError(f"{delivery.task} replaces itself by {type(plan).__name__}, which is no flow")
    if times > MOST_REPLACED:
        raise ValueError(f"{delivery.task} was replaced {MOST_REPLACED} times in a row, and is to be once more")
    nodes, tail = list(plan.nodes), None
    for number, node in enumerate(nodes):
        if node.call is not None and node.call.message.id == delivery.id:
            message = copy.copy(node.call.message)
            message.meta = {**message.meta, "replaced": times}
            nodes[number], tail = replace(node, call=replace(node.call, message=message)), number
    if tail is None:
        raise ValueError(f"{delivery.task} replaces itself by a flow of which no call has its id")
    return Replaced(delivery, replace(plan, nodes=nodes), tail)


def bury(
    delivery: Delivery, reason: str, error: BaseException, *, runtime_s: float, result_ttl_ms: int | None
) -> Buried:
    """Give a call up: its error goes with the dead letter and, unless results are ignored, to the caller."""
    record = encode_error(error)
    result = b"" if result_ttl_ms is None else pack_failure(State.FAILURE, delivery.attempt, runtime_s, record)
    return Buried(delivery, reason, record, result, result_ttl_ms or 0)


def bury_unusable(delivery: Delivery, error: BaseException) -> Buried:
    """Give up a call at which rsq itself fails, not its body, so that it stops nobody: as it came, byte by byte."""
    return bury(delivery, "internal", error, runtime_s=delivery.runtime_s, result_ttl_ms=FOREIGN_TTL_MS)


def after_crashes(delivery: Delivery, policy: RetryPolicy, max_deliveries: int) -> tuple[str, WorkerLost] | None:
    """Why a delivery must not be run again, as (reason, error), or None when it may.

    A confirmed crash counts against the task's `max_crashes`. The server's own delivery count also rises for entries
    that nobody ever ran, so it only backs a far higher bound.
    """
    if delivery.crashes >= policy.max_crashes:
        text = f"the process died while it ran this call, {delivery.crashes} times; last: {delivery.crash_how}"
        return "worker-lost", WorkerLost(text)
    if delivery.deliveries > max_deliveries:
        text = f"delivered {delivery.deliveries} times to workers that vanished without a word"
        return "worker-lost", WorkerLost(text)
    return None


def error_of(record: Mapping[str, Any]) -> str:
    """One line of an error record, for tables and logs."""
    name, message = str(record.get("type", "")), str(record.get("message", ""))
    return f"{name.rpartition('.')[2]}: {message}" if message else name
