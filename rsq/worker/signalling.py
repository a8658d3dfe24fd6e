"""Tells the handlers of signals what became of a call. Reached only where somebody listens, or nothing was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsq.calls.message import Delivery
from rsq.calls.outcome import Buried, Completed, Released, Retried, Verdict
from rsq.calls.request import Request
from rsq.remote import decode_error
from rsq.signals import task_failure, task_postrun, task_retry, task_revoked, task_success
from rsq.states import State
from rsq.task import Task
from rsq.worker.time_limits import exceeded


def ended(
    task: Task[..., Any],
    delivery: Delivery,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    verdict: Verdict,
    outcome: object,
) -> None:
    """A body has run; nothing of it is committed yet.

    outcome  what it returned, or the error that it raised
    """
    state = "IGNORED"
    if isinstance(verdict, Retried):
        state = State.RETRY.value
        task_retry.send(task, request=Request(delivery), reason=outcome)
    elif isinstance(verdict, Released):
        state = State.RETRY.value  # by whoever has it now; this run was none
    elif isinstance(verdict, Buried):
        state = State.FAILURE.value
        # What was returned may be what could not be kept.
        outcome = outcome if isinstance(outcome, BaseException) else decode_error(dict(verdict.error))
        _failed(task, delivery, args, kwargs, outcome)
    elif isinstance(verdict, Completed) and verdict.counter == "succeeded":
        state = State.SUCCESS.value
        task_success.send(task, result=outcome)
    elif isinstance(verdict, Completed) and verdict.counter == "revoked":
        state = State.REVOKED.value
        task_revoked.send(task, request=Request(delivery), terminated=True, expired=False)
    told = {"args": args, "kwargs": kwargs, "flow": Request(delivery).flow}
    task_postrun.send(task, task_id=delivery.id, task=task, retval=outcome, state=state, **told)


def refused(task: Task[..., Any] | None, delivery: Delivery, verdict: Verdict) -> None:
    """A call was settled without a run."""
    if isinstance(verdict, Buried):
        _failed(task, delivery, [], {}, decode_error(dict(verdict.error)))
    elif isinstance(verdict, Retried) and delivery.overdue_s:
        task_retry.send(task, request=Request(delivery), reason=exceeded(delivery.overdue_s))
    elif isinstance(verdict, Completed):
        expired = verdict.counter == "expired"
        task_revoked.send(task, request=Request(delivery), terminated=False, expired=expired)


def _failed(
    task: Task[..., Any] | None,
    delivery: Delivery,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    error: BaseException,
) -> None:
    trace = error.__traceback__
    told = {"args": args, "kwargs": kwargs, "flow": Request(delivery).flow}
    task_failure.send(task, task_id=delivery.id, exception=error, traceback=trace, **told)
