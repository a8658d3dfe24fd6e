"""Every key name that rsq uses in Redis. Nothing else in rsq spells a key.

The hash tag is a partition, ``{<namespace>:<number>}``; all queues of a partition share a hash slot, so whatever has to
be atomic across them can be. A script gets a queue's prefix as its only KEYS entry, which is never the name of a key,
and appends the suffixes named here. What belongs to the whole fleet has the tag ``{<namespace>}``. What a user chose
stands last in a name: ids may hold colons.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rsq.errors import SettingsError

GROUP = "rsq"
"""Name of the consumer group on every stream."""

RELEASED = "released"
"""The consumer that holds entries which were handed back: always an orphan, so anybody may claim from it."""

PARTITION = 0
"""Where a queue lies of which nothing else is known: the first partition, and mostly the only one."""

PRIORITIES = range(10)
"""0 is the default, 9 the most urgent."""

_QUEUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_TAGGED = re.compile(r"[^{]*\{([^}]+)\}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{1,50}")


def is_queue(name: object) -> bool:
    """Whether this may name a queue."""
    return isinstance(name, str) and _QUEUE.fullmatch(name) is not None


def check_queue(queue: str) -> str:
    """Give `queue` back if it may name a queue, else raise SettingsError."""
    if not is_queue(queue):
        raise SettingsError(
            f"queue name {queue!r} cannot be used: take 1 to 100 letters, digits, '_', '.' or '-', the first no . or -"
        )
    return queue


def check_namespace(namespace: str) -> str:
    """Give `namespace` back if it may prefix all keys, else raise SettingsError."""
    if not _NAMESPACE.fullmatch(namespace):
        raise SettingsError(f"namespace {namespace!r} cannot be used: take 1 to 50 letters, digits, '_', '.' or '-'")
    return namespace


def tag(namespace: str, partition: int = PARTITION) -> str:
    """The hash tag of a partition, without its braces. That of the fleet is the bare namespace."""
    return f"{namespace}:{partition}"


class QueueKeys:
    """The keys of one queue. `prefix` is what scripts get; the rest is for reads and plain commands."""

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
        "prefix",
        "progress",
        "queue",
        "revoked",
        "sources",
        "stats",
    )

    def __init__(self, namespace: str, queue: str, partition: int = PARTITION) -> None:
        self.queue = queue
        self.prefix = f"{{{tag(namespace, partition)}}}:{queue}"
        self.delayed = f"{self.prefix}:delayed"
        self.messages = f"{self.prefix}:messages"
        self.consumers = f"{self.prefix}:consumers"
        self.orphans = f"{self.prefix}:orphans"
        self.crashes = f"{self.prefix}:crashes"
        self.overdue = f"{self.prefix}:overdue"
        self.dead = f"{self.prefix}:dead"
        self.stats = f"{self.prefix}:stats"
        self.paused = f"{self.prefix}:paused"
        self.revoked = f"{self.prefix}:revoked"
        self.barrier = f"{self.prefix}:barrier"
        self.progress = f"{self.prefix}:progress"
        self.sources = f"{self.prefix}:sources"

    def stream(self, priority: int = 0) -> str:
        """The stream of one priority; priority 0 has no suffix."""
        return f"{self.prefix}:stream:{priority}" if priority else f"{self.prefix}:stream"

    def streams(self) -> list[str]:
        """All ten streams, the most urgent first. Most of them never exist."""
        return [self.stream(priority) for priority in reversed(PRIORITIES)]

    def result(self, task_id: str) -> str:
        """Holds the outcome; the same name is the channel on which it is published."""
        return f"{self.prefix}:result:{task_id}"

    def progress_of(self, task_id: str) -> str:
        """What the call has told of its progress."""
        return f"{self.progress}:{task_id}"

    def output(self, task_id: str) -> str:
        """What the call has emitted; the same name is the channel that tells of it."""
        return f"{self.prefix}:output:{task_id}"

    def taken(self, consumer: str) -> str:
        """The calls for which a consumer answers that it has acknowledged early."""
        return f"{self.prefix}:taken:{consumer}"

    def dedupe(self, key: str) -> str:
        """Marker of a user's dedupe key; its value is the task id that won."""
        return f"{self.prefix}:dedupe:key:{key}"

    def fired(self, schedule: str) -> str:
        """Last slot of a schedule that was fired into this queue."""
        return f"{self.prefix}:fired:{schedule}"


def source(group: str, stream: str) -> str:
    """How a stream of events and the group that reads it are named in the keys of the queue that they feed."""
    return f"{group}:{stream}"


def stream_tag(stream: str) -> str:
    """The hash tag of a stream that others named, by Redis's own rule: what is in its first braces, else its name."""
    found = _TAGGED.match(stream)
    return stream if found is None else found[1]


def beside(stream: str) -> str:
    """What a script gets that works on a stream of others: its tag, as of all that rsq keeps beside it."""
    return f"{{{stream_tag(stream)}}}"


def about(stream: str) -> str:
    """Hash with a TTL: how far it was read, and what was trimmed of it."""
    return f"{beside(stream)}:rsq:stream:{stream}"


class FlowKeys:
    """The key of one flow, and those that all flows of a partition share. The queue's name in them is empty.

    prefix  of any queue of the partition
    added   what a run adds to flows, by the name that this has; it is kept until the run succeeds
    """

    __slots__ = ("added", "flow", "handle", "listed", "unfinished")

    def __init__(self, prefix: str, flow_id: str) -> None:
        partition = prefix[: prefix.index("}") + 1]
        self.listed = f"{partition}::flows"
        self.unfinished = f"{partition}::todo"
        self.flow = f"{partition}::flow:{flow_id}"
        self.handle = f"{partition}::group:{flow_id}"
        self.added = f"{partition}::added:{flow_id}"


def is_flow(key: str) -> bool:
    """Whether this is the key of a flow, on whose channel its end is published."""
    return key.partition("}")[2].startswith("::flow:")


class BeatKeys:
    """The keys of the schedules, which belong to the fleet."""

    __slots__ = ("beats", "due", "last", "prefix", "schedules", "version")

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{{{namespace}}}:beat"
        self.schedules = f"{self.prefix}:schedules"
        self.due = f"{self.prefix}:due"
        self.last = f"{self.prefix}:last"
        self.version = f"{self.prefix}:version"
        self.beats = f"{self.prefix}:beats"


def fleet(namespace: str) -> str:
    """What a script gets that works on the keys of the fleet: their tag, never the name of a key."""
    return f"{{{namespace}}}"


def partitions(namespace: str) -> str:
    """Hash: queue -> number of its partition, and under no name the numbers taken. Missing where there is only one."""
    return f"{{{namespace}}}:partitions"


def queues(namespace: str) -> str:
    """Set of the queues known so far."""
    return f"{{{namespace}}}:queues"


def workers(namespace: str) -> str:
    """Zset: worker id -> time of its last report, ms."""
    return f"{{{namespace}}}:workers"


def worker(namespace: str, worker_id: str) -> str:
    """Hash with a TTL: what a worker says of itself."""
    return f"{{{namespace}}}:worker:{worker_id}"


def wish(namespace: str, worker_id: str) -> str:
    """Hash with a TTL: what people wish of a worker; the same name is the channel that tells of it."""
    return f"{{{namespace}}}:wish:{worker_id}"


def patterns(namespace: str, numbers: Iterable[int] = (PARTITION,)) -> list[str]:
    """Which keys belong to a namespace, as shell patterns: those of its partitions, and those of its fleet.

    Each has its tag in it, by which a cluster finds the one node that has these keys.
    """
    return [*(f"{{{tag(namespace, number)}}}:*" for number in numbers), f"{{{namespace}}}:*"]
