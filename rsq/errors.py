"""Every error that rsq raises, in one tree, and the signals by which a task steers its own outcome.

RsqError
├── SettingsError           a setting, URL, queue name or `-A` that cannot be used
├── BrokerError
│   ├── BrokerUnavailable   no answer within the deadline (also a ConnectionError)
│   ├── BrokerRefused       the server answered no: credentials, rights, memory, read-only
│   ├── NotReplicated       accepted by the master, but too few replicas have it yet
│   ├── BrokerUnsuitable    too old, or an eviction policy that would lose queues
│   ├── QueueFull           the queue holds `max_length` messages already
│   └── QueuePaused         the queue is paused and refuses calls
├── MessageError
│   ├── EncodeError         a value that msgpack and rsq's extension types cannot carry (also a TypeError)
│   ├── DecodeError         bytes that are no message of ours (also a ValueError)
│   └── MessageTooLarge     more bytes than the setting allows (also a ValueError)
├── TaskError
│   ├── InvalidTask         a function that cannot be a task, or an option that cannot be used
│   ├── DuplicateTask       two functions under one name
│   ├── UnknownTask         nobody registered that name
│   └── DuplicateCall       a call with this id or dedupe key is there already, and `on_duplicate` is "raise"
├── OutputFull              a coroutine emits faster than the server takes it
├── LeaseLost               the worker that ran this no longer owns it
└── ResultError
    ├── ResultTimeout       no result within the timeout (also a TimeoutError)
    ├── ResultIgnored       the task keeps no results
    ├── TaskRevoked         the call was revoked or expired before it started
    ├── WorkerLost          the process died while it ran the task, `max_crashes` times
    ├── TimeLimitExceeded   the task ran longer than its `time_limit`
    ├── MaxRetriesExceededError  `self.retry()` had no retry left, or the call expired between two attempts
    ├── Rejected            the task raised `Reject`
    └── RemoteError         the task raised a class that this process does not have

SoftTimeLimitExceeded       raised inside a task that has run for its `soft_time_limit`

Signal                      raised inside a task; never an error of rsq
├── Retry                   run again later
├── Reject                  give up at once: to the dead letters
└── Ignore                  settle without a result
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta

LONGEST_S = 100 * 365 * 86_400
"""No time that a setting, an option or a message carries is longer: Redis refuses what its own numbers cannot hold."""


class RsqError(Exception):
    """Base of all errors of rsq."""


class SettingsError(RsqError, ValueError):
    """A setting, URL, queue name or application name that cannot be used; the text says what to do."""


class BrokerError(RsqError):
    """Base of all errors that concern the Redis or Valkey server."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The server gave no answer within the deadline. The call may or may not have reached it.

    task_ids  the calls of which it is not known whether they were enqueued, in the order of a bulk; sending one again
              with the same id, from this process, is safe
    """

    def __init__(self, message: str, task_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.task_ids = tuple(task_ids)

    @property
    def task_id(self) -> str | None:
        """The first of them, the only one where a single call was sent, or None."""
        return self.task_ids[0] if self.task_ids else None


class BrokerRefused(BrokerError):
    """The server answered with an error that trying again at once will not cure."""


class NotReplicated(BrokerError):
    """The master holds the call and it will run, but fewer replicas than `wait_replicas` have it yet.

    task_ids  the calls of which this is so, or the flow; sending one again with the same id, from this process, is safe
    """

    def __init__(self, message: str, task_ids: Sequence[str]) -> None:
        super().__init__(message)
        self.task_ids = tuple(task_ids)

    @property
    def task_id(self) -> str:
        """The first of them, the only one where a single call was sent."""
        return self.task_ids[0]


class BrokerUnsuitable(BrokerError):
    """The server is too old or set up in a way that would lose messages."""


class QueueFull(BrokerError):
    """The queue holds as many waiting messages as `max_length` allows; nothing was enqueued."""


class QueuePaused(BrokerError):
    """The queue was paused with `refuse`, so it takes no calls until it is resumed; nothing was enqueued."""


class MessageError(RsqError):
    """Base of all errors that concern what a message or a result holds."""


class EncodeError(MessageError, TypeError):
    """A value cannot be carried; the text names its path, such as ``args[1]['when']``."""


class DecodeError(MessageError, ValueError):
    """Bytes that are not a message of this protocol."""


class MessageTooLarge(MessageError, ValueError):
    """A message or a result is larger than the setting allows; pass a reference instead of the data."""


class TaskError(RsqError):
    """Base of all errors that concern a task's definition or name."""


class InvalidTask(TaskError, TypeError):
    """A function that cannot be a task, or an option that cannot be used."""


class DuplicateTask(TaskError):
    """Two different functions were registered under one name."""


class UnknownTask(TaskError, LookupError):
    """No function is registered under this name."""


class DuplicateCall(TaskError):
    """A call with this task id or dedupe key stands already; nothing was enqueued.

    task_id  the call that stands
    """

    def __init__(self, message: str, task_id: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class FlowGone(TaskError, LookupError):
    """A flow is not on the server any more: it has ended, or nothing was heard of it for too long."""


class BatchClosed(TaskError):
    """A batch takes no more calls: it is sealed, has ended, or is gone. Nothing was added."""


class LeaseLost(RsqError):
    """The lease ran out while the task ran: another worker owns the message, nothing was committed here."""


class OutputFull(RsqError):
    """A coroutine emits faster than the server takes it: `await self.aemit(value)` waits there, and `emit` cannot."""


class ResultError(RsqError):
    """Base of all errors that come out of `AsyncResult.get`, beside those that the task itself raised."""


class ResultTimeout(ResultError, TimeoutError):
    """No result came within the timeout; the task may still finish."""


class ResultIgnored(ResultError):
    """The task keeps no results, so there is nothing to wait for."""


class TaskRevoked(ResultError):
    """The call was revoked, superseded or expired before it started."""


class FlowExpired(ResultError):
    """The call waited in a flow that made no progress for `flow_expires_s`, and was ended with it."""


class WorkerLost(ResultError):
    """The process that ran the task died, as often as `max_crashes` allows."""


class TimeLimitExceeded(ResultError):
    """The task ran longer than its `time_limit`. Where it cannot be killed alone it is also raised inside it."""


class MaxRetriesExceededError(ResultError):
    """The task asked for another attempt, and gave no error of its own: it has no retry left, or has expired.

    Raised in the body by `self.retry()`, as in Celery.
    """


class Rejected(ResultError):
    """The task raised `Reject`. As an error of its own, for in a caller `Reject` would steer the caller's outcome."""


class RemoteError(ResultError):
    """The task raised an exception whose class this process does not have.

    type_name   the class as the worker knew it, such as ``shop.errors.OutOfStock``
    """

    def __init__(self, message: str, type_name: str) -> None:
        super().__init__(message)
        self.type_name = type_name

    def __str__(self) -> str:
        return f"{self.type_name}: {self.args[0]}" if self.args[0] else self.type_name


class SoftTimeLimitExceeded(Exception):
    """Raised inside a task that has run for its `soft_time_limit`: the time to clean up. Uncaught it is a failure."""


class Signal(Exception):
    """Base of what a task raises to steer its own outcome. Not an error."""


class Retry(Signal):
    """Run this task again later. Raised by `self.retry()`.

    exc          the error that made it necessary, or None
    countdown    seconds to wait, a number or a timedelta; None lets the task's options decide
    max_retries  how many retries in all; None lets the task's option decide
    Raises       ValueError, in the body, for what none of these can be
    """

    def __init__(
        self,
        message: str = "",
        exc: BaseException | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
    ) -> None:
        super().__init__(message)
        # Said in the body, whose failure it then is: nobody could tell its user later.
        seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
        if seconds is not None and not _is_number(seconds, -LONGEST_S, LONGEST_S, (int, float)):
            raise ValueError(f"countdown takes seconds to wait, a hundred years of them at most, not {countdown!r}")
        if max_retries is not None and not _is_number(max_retries, 0, sys.maxsize, int):
            raise ValueError(f"max_retries takes a whole number from 0, not {max_retries!r}")
        if exc is not None and not isinstance(exc, BaseException):
            raise ValueError(f"exc takes the error that made the retry necessary, not {exc!r}")
        self.exc = exc
        self.countdown = None if seconds is None else max(0.0, seconds)
        self.max_retries = max_retries


def _is_number(value: object, least: float, most: float, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most  # type: ignore[operator]


class Reject(Signal):
    """Give this message up at once, without a retry: it goes to the dead letters.

    reason    kept with the dead letter
    requeue   put the message back instead, with no attempt counted
    """

    def __init__(self, reason: str = "", requeue: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.requeue = requeue


class Replace(Signal):
    """Have another call, or a whole flow, take the place of this one. Raised by `self.replace()`.

    plan  the flow, of which one call has this one's id
    """

    def __init__(self, plan: object) -> None:
        super().__init__("it replaces itself")
        self.plan = plan


class Ignore(Signal):
    """Settle this message without a result, whatever the task did."""
