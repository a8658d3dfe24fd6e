"""Tasks of rsq's own, which workers know beside those of the app: calls that a flow needs and that no task makes."""

from __future__ import annotations

from typing import Any, TypeVar

from rsq.app import BaseApp
from rsq.calls.options import TaskOptions
from rsq.task import Task

V = TypeVar("V")

GATHER = "rsq.gather"


def gather(value: V) -> V:
    """What it is given: the value of many calls as that of one."""
    return value


def with_own_tasks(app: BaseApp) -> dict[str, Task[..., Any]]:
    """The tasks of an app that can run here, those of rsq's own among them."""
    if GATHER not in app.tasks:
        app.take(Task(app, gather, GATHER, TaskOptions()))
    return app.tasks
