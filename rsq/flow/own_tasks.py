"""Tasks of rsq's own, which workers know beside those of the app: calls that a flow needs and that no task makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsq.app import BaseApp
from rsq.calls.options import TaskOptions
from rsq.flow.batch_step import BATCH, SUMMARY, run_batch, summary
from rsq.flow.late import LATE, late
from rsq.flow.stand_in import GATHER, START, gather, start
from rsq.task import Task

_OWN: dict[str, tuple[Callable[..., Any], TaskOptions]] = {
    GATHER: (gather, TaskOptions()),
    START: (start, TaskOptions(bind=True)),
    BATCH: (run_batch, TaskOptions(bind=True)),
    SUMMARY: (summary, TaskOptions(bind=True)),
    LATE: (late, TaskOptions(bind=True)),
}


def with_own_tasks(app: BaseApp) -> dict[str, Task[..., Any]]:
    """The tasks of an app that can run here, those of rsq's own among them."""
    for name, (function, options) in _OWN.items():
        if name not in app.tasks:
            app.take(Task(app, function, name, options))
    return app.tasks
