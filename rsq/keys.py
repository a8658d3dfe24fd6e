"""Every key name that rsq uses in Redis. Nothing else in rsq spells a key.

All keys of one queue share the hash tag ``{<namespace>:<queue>}``, so a script that works on one queue stays within one
cluster slot. Scripts receive that tag as their only KEYS entry and append the suffixes named here; the hash tag makes
the derived names safe in a cluster.
"""

from __future__ import annotations

import re

from rsq.errors import SettingsError

GROUP = "rsq"
"""Name of the consumer group on every stream."""

RELEASED = "released"
"""The consumer that holds entries which were handed back: always an orphan, so anybody may claim from it."""

PRIORITIES = range(10)
"""0 is the default, 9 the most urgent."""

_QUEUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{1,50}")


def check_queue(queue: str) -> str:
    """Give `queue` back if it may name a queue, else raise SettingsError."""
    if not isinstance(queue, str) or not _QUEUE.fullmatch(queue):
        raise SettingsError(
            f"queue name {queue!r} cannot be used: take 1 to 100 letters, digits, '_', '.' or '-', the first no . or -"
        )
    return queue


def check_namespace(namespace: str) -> str:
    """Give `namespace` back if it may prefix all keys, else raise SettingsError."""
    if not _NAMESPACE.fullmatch(namespace):
        raise SettingsError(f"namespace {namespace!r} cannot be used: take 1 to 50 letters, digits, '_', '.' or '-'")
    return namespace


class QueueKeys:
    """The keys of one queue. `tag` is what scripts get; the rest is for reads and plain commands."""

    __slots__ = (
        "barrier",
        "consumers",
        "crashes",
        "dead",
        "delayed",
        "messages",
        "orphans",
        "overdue",
        "paused",
        "progress",
        "queue",
        "revoked",
        "stats",
        "tag",
        "terminate",
    )

    def __init__(self, namespace: str, queue: str) -> None:
        self.queue = queue
        self.tag = f"{{{namespace}:{queue}}}"
        self.delayed = f"{self.tag}:delayed"
        self.messages = f"{self.tag}:messages"
        self.consumers = f"{self.tag}:consumers"
        self.orphans = f"{self.tag}:orphans"
        self.crashes = f"{self.tag}:crashes"
        self.overdue = f"{self.tag}:overdue"
        self.dead = f"{self.tag}:dead"
        self.stats = f"{self.tag}:stats"
        self.paused = f"{self.tag}:paused"
        self.revoked = f"{self.tag}:revoked"
        self.terminate = f"{self.tag}:terminate"
        self.barrier = f"{self.tag}:barrier"
        self.progress = f"{self.tag}:progress"

    def stream(self, priority: int = 0) -> str:
        """The stream of one priority; priority 0 has no suffix."""
        return f"{self.tag}:stream:{priority}" if priority else f"{self.tag}:stream"

    def streams(self) -> list[str]:
        """All ten streams, the most urgent first. Most of them never exist."""
        return [self.stream(priority) for priority in reversed(PRIORITIES)]

    def result(self, task_id: str) -> str:
        """Holds the outcome; the same name is the channel on which it is published."""
        return f"{self.tag}:result:{task_id}"

    def progress_of(self, task_id: str) -> str:
        """What the call has told of its progress."""
        return f"{self.progress}:{task_id}"

    def dedupe(self, key: str) -> str:
        """Marker of a user's dedupe key; its value is the task id that won."""
        return f"{self.tag}:dedupe:key:{key}"

    def fired(self, schedule: str) -> str:
        """Last slot of a schedule that was fired into this queue."""
        return f"{self.tag}:fired:{schedule}"


class BeatKeys:
    """The keys of the schedules. No suffix is one of a queue's, so even a queue named "beat" does not meet them."""

    __slots__ = ("beats", "due", "last", "schedules", "tag", "version")

    def __init__(self, namespace: str) -> None:
        self.tag = f"{{{namespace}:beat}}"
        self.schedules = f"{self.tag}:schedules"
        self.due = f"{self.tag}:due"
        self.last = f"{self.tag}:last"
        self.version = f"{self.tag}:version"
        self.beats = f"{self.tag}:beats"


def queues(namespace: str) -> str:
    """Set of the queues known so far."""
    return f"{namespace}:queues"


def workers(namespace: str) -> str:
    """Zset: worker id -> time of its last report, ms."""
    return f"{namespace}:workers"


def worker(namespace: str, worker_id: str) -> str:
    """Hash with a TTL: what a worker says of itself."""
    return f"{namespace}:worker:{worker_id}"


def wish(namespace: str, worker_id: str) -> str:
    """Hash with a TTL: what people wish of a worker; the same name is the channel that tells of it."""
    return f"{namespace}:wish:{worker_id}"
