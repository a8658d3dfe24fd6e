"""rsq: a task queue for Python on Redis Streams. Nothing lost, nothing counted twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rsq.app import App, default_app, task
from rsq.asyncresult import AsyncResult
from rsq.codec import register_type
from rsq.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    DuplicateCall,
    EncodeError,
    Ignore,
    MessageTooLarge,
    NotReplicated,
    QueueFull,
    QueuePaused,
    Reject,
    RemoteError,
    ResultIgnored,
    ResultTimeout,
    Retry,
    RsqError,
    SettingsError,
    TaskRevoked,
    UnknownTask,
    WorkerLost,
)
from rsq.request import Request
from rsq.states import State
from rsq.task import Task

if TYPE_CHECKING:
    from rsq.beat.schedules import crontab, every

__version__ = "0.1.0"

__all__ = [
    "App",
    "AsyncResult",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "DuplicateCall",
    "EncodeError",
    "Ignore",
    "MessageTooLarge",
    "NotReplicated",
    "QueueFull",
    "QueuePaused",
    "Reject",
    "RemoteError",
    "Request",
    "ResultIgnored",
    "ResultTimeout",
    "Retry",
    "RsqError",
    "SettingsError",
    "State",
    "Task",
    "TaskRevoked",
    "UnknownTask",
    "WorkerLost",
    "crontab",
    "default_app",
    "every",
    "register_type",
    "task",
]


def __getattr__(name: str) -> Any:
    """Schedules need croniter and time zones, which a program that only sends calls does not pay for."""
    if name in ("crontab", "every"):
        from rsq.beat import schedules

        return getattr(schedules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
