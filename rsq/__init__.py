"""rsq: a task queue for Python on Redis Streams. Nothing lost, nothing counted twice."""

from __future__ import annotations

from rsq.app import App, default_app, task
from rsq.asyncresult import AsyncResult
from rsq.codec import register_type
from rsq.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    EncodeError,
    Ignore,
    MessageTooLarge,
    QueueFull,
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

__version__ = "0.1.0"

__all__ = [
    "App",
    "AsyncResult",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "EncodeError",
    "Ignore",
    "MessageTooLarge",
    "QueueFull",
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
    "default_app",
    "register_type",
    "task",
]
