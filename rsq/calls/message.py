"""A call as it travels: `Message` as sent, `Delivery` as a worker holds it.

On the wire a message is a stream entry of four fields, always in this order: ``id``, ``task``, ``body``, ``meta``.
`docs/protocol.md` describes them for clients in other languages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from msgpack import Packer, Unpacker  # type: ignore[import-untyped, unused-ignore]

from rsq import codec
from rsq.calls.checks import MOST_ENTRIES
from rsq.errors import LONGEST_S, DecodeError, SettingsError
from rsq.keys import PRIORITIES

_FIELDS = [b"id", b"task", b"body", b"meta"]
WAKE = b"wake"
"""First field name of an entry that carries no call and only wakes a worker."""

LONGEST_ID = 100
"""Characters of a task id: so many has the place where a worker tells what it runs."""

MOST_ATTEMPTS = 2**31
"""No message is tried more often, so that the next attempt can be told, too."""

MOST_NODES = 1_000_000
"""Nodes of one flow."""

NO_META: Mapping[str, Any] = {}

NO_LIMIT: tuple[float | None, float | None] = (None, None)


def new_id() -> str:
    """A random task id: 128 bits, in hex."""
    return os.urandom(16).hex()


def check_id(task_id: str | UUID) -> str:
    """Give `task_id` back, a UUID as its text, if it may name a call; else raise SettingsError."""
    if isinstance(task_id, UUID):
        return str(task_id)
    if (
        not isinstance(task_id, str)
        or not 0 < len(task_id) <= LONGEST_ID
        or not task_id.isascii()
        or not task_id.isprintable()
    ):
        raise SettingsError(f"task id {task_id!r} cannot be used: take 1 to 100 printable ASCII characters")
    if " " in task_id:
        raise SettingsError(f"task id {task_id!r} cannot be used: it holds a space")
    return task_id


def check_priority(priority: int) -> int:
    """Give `priority` back if it is 0 to 9, else raise SettingsError."""
    if not isinstance(priority, int) or isinstance(priority, bool) or priority not in PRIORITIES:
        raise SettingsError(f"priority {priority!r} cannot be used: take 0 (the default) to 9 (the most urgent)")
    return priority


@dataclass(slots=True)
class Message:
    """One call as sent.

    id        task id, which the result and the log lines carry
    task      registered name
    body      packed ``[args, kwargs]``
    queue     name of the queue
    priority  0 to 9
    meta      what differs from the default, by these keys:
              attempt (int, from 1), max_retries (int or None), expires (ms since the epoch), ignore_result (bool),
              result_expires, output_expires, time_limit and soft_time_limit (seconds), output_length (int),
              deferred_since (ms since the epoch),
              parent and root (task ids), headers (map of the user's own), version (key, version, ms for which it is
              remembered), begin (True: ask the server before each start), flow (id of its flow, its number there; and,
              where it takes values by reference, which ones, the number that theirs count from, and what was added to
              these), replaced (how often a call has taken the place of another, in a row)
    """

    id: str
    task: str
    body: bytes
    queue: str
    priority: int = 0
    meta: Mapping[str, Any] = field(default_factory=lambda: NO_META)


def pack_meta(meta: Mapping[str, Any]) -> bytes:
    """Empty when all is default, so that a plain call costs nothing for it."""
    return codec.encode(dict(meta), where="meta") if meta else b""


def _is_limit(value: float) -> bool:
    return 0 < value <= LONGEST_S  # not NaN, either


def _is_version(parts: list[Any]) -> bool:
    """A key, a version and milliseconds."""
    return [type(part) for part in parts] == [str, int, int] and 0 < parts[2] <= LONGEST_S * 1000


def _is_place(parts: list[Any]) -> bool:
    """A flow's id, the number there, what it takes, from where that counts, and [node, number] of what was added."""
    if len(parts) < 2 or type(parts[0]) is not str or type(parts[1]) is not int or not 0 <= parts[1] < MOST_NODES:
        return False
    if len(parts) < 5:
        return True
    added = parts[4]
    kinds = [type(count) for count in added] if type(added) is list else []
    return len(parts) == 5 and kinds == [int, int] and 0 <= min(added) <= max(added) <= MOST_NODES


# What a client in another language puts there must not be able to hurt a worker. Unknown names travel on untouched.
_META: dict[str, tuple[tuple[type, ...], Callable[[Any], bool] | None]] = {
    "attempt": ((int,), lambda value: 1 <= value <= MOST_ATTEMPTS),
    "max_retries": ((int, type(None)), None),
    "expires": ((int,), None),
    "ignore_result": ((bool,), None),
    "result_expires": ((int, float), _is_limit),
    "output_length": ((int,), lambda value: 1 <= value <= MOST_ENTRIES),
    "output_expires": ((int, float), _is_limit),
    "deferred_since": ((int,), None),
    "headers": ((dict,), None),
    "parent": ((str,), None),
    "root": ((str,), None),
    "version": ((list,), _is_version),
    "begin": ((bool,), None),
    "flow": ((list,), _is_place),
    "replaced": ((int,), None),
    "time_limit": ((int, float), _is_limit),
    "soft_time_limit": ((int, float), _is_limit),
}


def unpack_meta(data: bytes) -> Mapping[str, Any]:
    """The inverse of `pack_meta`. Raises DecodeError."""
    if not data:
        return NO_META
    meta = codec.decode(data)
    if not isinstance(meta, dict):
        raise DecodeError(f"meta is {type(meta).__name__}, not a map")
    for name, value in meta.items():
        known = _META.get(name)
        if known is not None:
            kinds, allowed = known
            if not isinstance(value, kinds) or (allowed is not None and not allowed(value)):
                raise DecodeError(f"meta carries {name} {value!r}, which that cannot be")
    return meta


def changed_meta(raw: bytes, old: Mapping[str, Any], new: Mapping[str, Any]) -> bytes:
    """`pack_meta(new)`, where `new` is `old` with some changes, and `raw` is what `old` was unpacked from.

    What others wrote travels on byte by byte: not all that can be unpacked can be packed again, or to the same bytes.
    """
    if new is old:
        return raw
    changes = {name: value for name, value in new.items() if name not in old or old[name] is not value}
    kept = _entries(raw, {name.encode("utf-8", "surrogatepass") for name in {*changes, *(old.keys() - new.keys())}})
    if not kept:
        return pack_meta(changes)
    added = [codec.encode(part, "meta") for pair in changes.items() for part in pair]
    return bytes(Packer().pack_map_header(len(kept) + len(changes))) + b"".join((*kept, *added))


def _entries(raw: bytes, without: Collection[bytes]) -> list[bytes]:
    """The entries of a packed map, as they are, but for those with these names."""
    if not raw:
        return []
    unpacker = Unpacker(raw=True, strict_map_key=False)
    unpacker.feed(raw)
    entries = []
    for _ in range(unpacker.read_map_header()):
        start = unpacker.tell()
        name = unpacker.unpack()
        unpacker.skip()
        if not isinstance(name, bytes) or name not in without:
            entries.append(raw[start : unpacker.tell()])
    return entries


def _read_id(raw: bytes) -> str:
    """What `check_id` refuses would stand for another call, in lists of ids and on a worker's board."""
    text = raw.decode("ascii")
    # All ids of rsq's own making are letters and digits.
    if not 0 < len(raw) <= LONGEST_ID or not (raw.isalnum() or (text.isprintable() and " " not in text)):
        raise DecodeError(f"the id {text[:LONGEST_ID]!r} is not 1 to {LONGEST_ID} printable characters")
    return text


class Delivery:
    """A message in a worker's hands.

    entry_id    of the stream entry
    consumer    the name under which it was fetched, and under which alone its outcome can be committed
    inputs      packed values that it takes by reference, by the number of the node; set once they were read, see
                `rsq.calls.inputs`
    app         whose task it runs, once it runs
    output      what its body has emitted, once that is anything
    added       what its body adds to flows, by their ids, once that is anything: it goes with its outcome
    taken       it was acknowledged early (`acks_late=False`): no lost lease gives it to anybody else
    deliveries  how often anybody was given it, this time included
    crashes     how many processes died while they ran it
    crash_how   how the last of them died, such as ``signal SIGKILL``
    problem     why it cannot be read, or '' when it can
    runtime_s   how long its body ran, once it has
    timelimit   (hard, soft) time limit of its body in seconds, once it runs; None = none
    overdue_s   the hard time limit that this attempt has passed; 0.0 = it has not
    sent        how often its body has sent a call like that, by what that is, where it is of an event
    revoked     set when it must not start; while it runs: when it is to be interrupted, and its outcome is REVOKED
    exhausted   set when its body asked for a retry and was told that none is left
    lease_lost  set when the worker lost its lease while this ran: nothing of it can be committed
    """

    __slots__ = (
        "added",
        "app",
        "body",
        "consumer",
        "crash_how",
        "crashes",
        "deliveries",
        "entry_id",
        "exhausted",
        "id",
        "inputs",
        "lease_lost",
        "meta",
        "meta_raw",
        "output",
        "overdue_s",
        "priority",
        "problem",
        "queue",
        "revoked",
        "runtime_s",
        "sent",
        "taken",
        "task",
        "timelimit",
    )

    inputs: Mapping[int, bytes]
    added: dict[str, Any]
    app: Any
    sent: dict[bytes, int]

    def __init__(self, queue: str, priority: int, entry_id: bytes, fields: list[bytes]) -> None:
        self.queue = queue
        self.priority = priority
        self.entry_id = entry_id
        self.consumer = ""
        self.deliveries = 1
        self.crashes = 0
        self.crash_how = ""
        self.exhausted = self.lease_lost = self.revoked = self.taken = False
        self.runtime_s = self.overdue_s = 0.0
        self.timelimit = NO_LIMIT
        self.output: Any = None
        self.problem = self.id = ""
        self.meta = NO_META
        try:
            if fields[::2] != _FIELDS:
                raise DecodeError("the entry does not have the fields id, task, body and meta")
            self.id = _read_id(fields[1])
            self.task = fields[3].decode()
            self.body: bytes = fields[5]
            self.meta_raw: bytes = fields[7]
        except (UnicodeDecodeError, DecodeError) as error:
            self.problem = str(error)
            self.id = self.id or entry_id.decode()
            # Kept whole, so that a person can see what it was.
            self.task, self.body, self.meta_raw = "", codec.encode(fields), b""
        else:
            if self.meta_raw:
                try:
                    self.meta = unpack_meta(self.meta_raw)
                except DecodeError as error:
                    self.problem = str(error)  # raw, it goes on as it came

    @property
    def attempt(self) -> int:
        """Number of this run, from 1."""
        return int(self.meta.get("attempt", 1))

    def __repr__(self) -> str:
        return f"<Delivery {self.task}[{self.id}] queue={self.queue} entry={self.entry_id!r} attempt={self.attempt}>"
