"""rsq: a task queue for Python on Redis Streams. Nothing lost, nothing counted twice.

Where things are, in the order in which a call meets them; each module says at its head what it does:

    demo/tasks.py                    an example of an app
    face, app, task, generator_task, running, shared  decorate a function, call `delay`
    canvas/                          signatures, chains, groups and chords: calls as what users combine
    flow/                            how they become numbered calls, and are started
    streams/                         events that others write, as calls
    calls/                           the call as data: options, message, retries, schedules, outcomes
    codec, remote                    how values and errors travel
    broker/                          all that speaks to the server, with each transition in lua/
    keys, states, clock, bell        its words: names of keys, states of a call, times; a bell between threads
    on_demand                        a thread that begins when there is something to do
    loader, worker/                  supervisor, children, and in each: fetcher -> attempt -> committer
    result, output, result_member, result_set, result_group  what the caller gets back
    handles, home                    handles as data, and the app to which what is read belongs
    beat/                            schedules
    cli/                             the commands
    settings, url, errors, signals, logs  what all of them share
    hints, celery_names              what to write instead of a name of Celery's
    naming, functions, pickling, texts  what can be a task, its name, how tasks and handles are pickled, texts of errors
    testing/, contrib/, bench/       for tests of yours, for databases of yours, and measuring

A module imports only from the floors below its own, which tests/test_layers.py lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rsq.calls.output import Gap, Item, NewRun
from rsq.calls.plan import Failed
from rsq.calls.request import Request, current_request
from rsq.canvas.make import chain, chord, chunks, group, signature, xmap, xstarmap
from rsq.canvas.signature import Signature
from rsq.canvas.stamping import StampingVisitor
from rsq.codec import register_type
from rsq.errors import (
    BatchClosed,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    DuplicateCall,
    EncodeError,
    FlowGone,
    Ignore,
    LeaseLost,
    MaxRetriesExceededError,
    MessageTooLarge,
    NotReplicated,
    OutputFull,
    QueueFull,
    QueuePaused,
    Reject,
    Rejected,
    RemoteError,
    ResultIgnored,
    ResultTimeout,
    Retry,
    RsqError,
    SettingsError,
    SoftTimeLimitExceeded,
    TaskRevoked,
    TimeLimitExceeded,
    UnknownTask,
    WorkerLost,
)
from rsq.face import App, default_app, task
from rsq.handles import result_from_tuple
from rsq.result import AsyncResult
from rsq.result_group import GroupResult
from rsq.result_set import ResultSet
from rsq.states import State
from rsq.task import Task

if TYPE_CHECKING:
    from rsq.calls.schedules import crontab, every

__version__ = "0.1.0"

__all__ = [
    "App",
    "AsyncResult",
    "BatchClosed",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "DuplicateCall",
    "EncodeError",
    "Failed",
    "FlowGone",
    "Gap",
    "GroupResult",
    "Ignore",
    "Item",
    "LeaseLost",
    "MaxRetriesExceededError",
    "MessageTooLarge",
    "NewRun",
    "NotReplicated",
    "OutputFull",
    "QueueFull",
    "QueuePaused",
    "Reject",
    "Rejected",
    "RemoteError",
    "Request",
    "ResultIgnored",
    "ResultSet",
    "ResultTimeout",
    "Retry",
    "RsqError",
    "SettingsError",
    "Signature",
    "SoftTimeLimitExceeded",
    "StampingVisitor",
    "State",
    "Task",
    "TaskRevoked",
    "TimeLimitExceeded",
    "UnknownTask",
    "WorkerLost",
    "chain",
    "chord",
    "chunks",
    "crontab",
    "current_request",
    "default_app",
    "every",
    "group",
    "register_type",
    "result_from_tuple",
    "signature",
    "task",
    "xmap",
    "xstarmap",
]


def __getattr__(name: str) -> Any:
    """Schedules need croniter and time zones, which a program that only sends calls does not pay for."""
    if name in ("crontab", "every"):
        from rsq.calls import schedules

        return getattr(schedules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
