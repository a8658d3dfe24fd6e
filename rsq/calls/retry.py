"""What follows from a failed attempt: again, put off, or given up. Pure: no clock, no server.

The default is to retry whatever failed with exponential backoff and then to keep the call as a dead letter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsq import codec
from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Retried, Verdict, pack_failure
from rsq.clock import LONGEST_S
from rsq.errors import Ignore, InvalidTask, Reject, Retry, WorkerLost
from rsq.remote import encode_error
from rsq.states import State

REQUEUE_DELAY_MS = 1000
"""A message that its task put back comes again after this long, so that it cannot spin."""


FOREIGN_TTL_MS = 86_400_000
"""How long the failure of a message is readable whose task, and so whose options, cannot be asked."""


@dataclass(frozen=True)
class RetryPolicy:
    """How a task is retried.

    autoretry_for        errors that are retried
    dont_autoretry_for   errors that are not, though `autoretry_for` names their base
    max_retries          runs after the first one; None = without end
    retry_backoff        seconds: upper bound of the first wait, doubled with each attempt; 0 = use default_retry_delay
    retry_backoff_max    seconds: no wait is longer
    retry_jitter         draw each wait evenly from 0 to its bound, so that failures do not come back in step
    default_retry_delay  seconds to wait where there is no backoff
    max_crashes          deaths of a process while running it, after which a call is given up
    """

    autoretry_for: tuple[type[BaseException], ...] = (Exception,)
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    max_retries: int | None = 3
    retry_backoff: float = 1.0
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    default_retry_delay: float = 180.0
    max_crashes: int = 3

    def __post_init__(self) -> None:
        for name in ("autoretry_for", "dont_autoretry_for"):
            classes = getattr(self, name)
            if not isinstance(classes, tuple) or not all(
                isinstance(c, type) and issubclass(c, BaseException) for c in classes
            ):
                raise InvalidTask(f"{name} takes a tuple of exception classes, not {classes!r}")
        if self.max_retries is not None and self.max_retries < 0:
            raise InvalidTask(f"max_retries must be 0 or more (or None: without end), not {self.max_retries}")
        if self.max_crashes < 1:
            raise InvalidTask(f"max_crashes must be at least 1, not {self.max_crashes}")
        for name in ("retry_backoff", "retry_backoff_max", "default_retry_delay"):
            if not 0 <= getattr(self, name) <= LONGEST_S:
                raise InvalidTask(f"{name} must be 0 seconds to a hundred years, not {getattr(self, name)}")

    def delay_ms(self, attempt: int, rng: random.Random) -> int:
        """Wait before the attempt after this one: exponential, full jitter.

        attempt   the attempt that failed, from 1
        Returns   milliseconds, drawn evenly from 0 .. min(cap, base * 2 ** (attempt - 1))
        Source    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015
        """
        if not self.retry_backoff:
            return int(self.default_retry_delay * 1000)
        # 2 ** 40 seconds is beyond any cap; the bound keeps the float finite.
        bound = min(self.retry_backoff_max, self.retry_backoff * 2.0 ** min(attempt - 1, 40))
        return int(1000 * (rng.uniform(0, bound) if self.retry_jitter else bound))


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
    if isinstance(error, Reject):
        if error.requeue:
            return Retried(
                delivery, "deferred", delivery.meta, REQUEUE_DELAY_MS, error.reason or "put back by the task"
            )
        return bury(delivery, "rejected", error, runtime_s=runtime_s, result_ttl_ms=result_ttl_ms)

    attempt = delivery.attempt
    max_retries = delivery.meta.get("max_retries", policy.max_retries)
    countdown_s: float | None = None
    if isinstance(error, Retry):
        countdown_s = error.countdown
        if error.max_retries is not None:
            max_retries = error.max_retries
        wanted, cause = True, error.exc or error
    else:
        wanted = isinstance(error, policy.autoretry_for) and not isinstance(error, policy.dont_autoretry_for)
        cause = error
    delay_ms = policy.delay_ms(attempt, rng) if countdown_s is None else int(max(0.0, countdown_s) * 1000)
    in_time = now_ms + delay_ms < delivery.meta.get("expires", math.inf)
    if wanted and in_time and (max_retries is None or attempt <= max_retries):
        why = error_of({"type": type(cause).__name__, "message": codec.text_of(cause)})
        return Retried(delivery, "retried", {**delivery.meta, "attempt": attempt + 1}, delay_ms, why)
    reason = "time-limit" if delivery.overdue_s else "retries-exhausted" if wanted and attempt > 1 else "failed"
    return bury(delivery, reason, cause, runtime_s=runtime_s, result_ttl_ms=result_ttl_ms)


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
