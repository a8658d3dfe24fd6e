"""The same app with handlers of signals, which write down what they hear."""

from __future__ import annotations

from typing import Any

from rsq import Request, Task, signals
from tests.integration import tasks
from tests.integration.tasks import app, journal

add = tasks.add


@signals.task_prerun.connect
def prerun(sender: Task[..., Any], task_id: str, args: list[Any], **rest: Any) -> None:
    journal("prerun", sender.name.rpartition(".")[2], args, sender.request.id == task_id)


@signals.task_postrun.connect
def postrun(sender: Task[..., Any], task_id: str, state: str, retval: object, **rest: Any) -> None:
    journal("postrun", sender.name.rpartition(".")[2], state, repr(retval), sender.request.id == task_id)


@signals.task_success.connect(sender=tasks.add)
def success(sender: Task[..., Any], result: object, **rest: Any) -> None:
    journal("success", result)


@signals.task_failure.connect
def failure(sender: Task[..., Any] | None, exception: BaseException, traceback: Any, **rest: Any) -> None:
    journal("failure", sender and sender.name.rpartition(".")[2], type(exception).__name__, traceback is not None)


@signals.task_retry.connect
def retry(request: Request, reason: BaseException, **rest: Any) -> None:
    journal("retry", request.attempt, repr(reason))


@signals.task_revoked.connect
def revoked(request: Request, expired: bool, terminated: bool, **rest: Any) -> None:
    journal("revoked", request.task.rpartition(".")[2], expired, terminated)


@signals.task_success.connect
def broken(**rest: Any) -> None:
    raise RuntimeError("a handler of mine")


@signals.child_init.connect
def init(sender: object, pid: int, **rest: Any) -> None:
    journal("init", sender is app)


@signals.child_exit.connect
def exited(exitcode: int, **rest: Any) -> None:
    journal("exit", exitcode)


@signals.worker_ready.connect
def ready(queues: list[str], **rest: Any) -> None:
    journal("ready", queues)


@signals.worker_shutdown.connect
def shutdown(worker_id: str, **rest: Any) -> None:
    journal("shutdown")
