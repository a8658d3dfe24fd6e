"""One schedule: `Entry` as it is written in code or given at run time, `Record` as Redis keeps it.

A record is what every beat fires from: it holds the packed arguments, so a beat need not know the task.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from rsq import codec
from rsq.app import BaseApp
from rsq.beat.canvases import OF_ONE_CALL, called, queue_of
from rsq.broker import scripts
from rsq.broker.connection import ScriptCall
from rsq.broker.queue import Queue, ends_of
from rsq.calls import schedules
from rsq.calls.due import CATCHUPS, due_slots
from rsq.calls.message import Message, pack_meta
from rsq.calls.options import CallOptions, TaskOptions
from rsq.calls.placement import Placement
from rsq.calls.schedules import Crontab, Every
from rsq.errors import LONGEST_S, DecodeError, SettingsError
from rsq.flow.stand_in import START
from rsq.keys import check_queue

RUN_TIME = ""
"""Origin of a schedule that was added at run time; one from code has its app's name."""

LONGEST_NAME = 200
_SHAPE = ("task", "schedule", "args", "kwargs", "options", "catchup", "catchup_limit")
_GENERATION = re.compile(rb"(\d{1,20}):")
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("origin", "task", "queue", "dedupe_key", "dedupe_until", "catchup"), (str,)),
    **dict.fromkeys(("priority", "delay_ms", "max_length", "dedupe_ttl_ms", "catchup_limit", "since_ms"), (int,)),
    **dict.fromkeys(("replaces", "paused", "removed"), (bool,)),
    **dict.fromkeys(("expires_ms", "due_ms"), (int, type(None))),
    "body": (bytes,),
    "meta": (dict,),
}
_UNDECLARED = ("generation", "paused", "removed", "since_ms", "before", "due_ms")


@dataclass(frozen=True)
class Entry:
    """A schedule as its author writes it. Checked when it is made: raises SettingsError.

    name           of the schedule, by which it is paused, triggered and removed
    task           registered name of the task
    options        as `Task.apply_async` takes them, but for eta and task_id
    catchup        what becomes of slots that were missed, while no beat ran: "latest", "none" or "all"
    catchup_limit  how many of them "all" fires at most, the last ones
    """

    name: str
    task: str
    schedule: Every | Crontab
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    catchup: str = "latest"
    catchup_limit: int = 100

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise SettingsError(f"a schedule's name is a text of 1 to {LONGEST_NAME} characters, not {name!r}")
        said = f"schedule {name!r}"
        if not isinstance(self.task, str) or not self.task:
            raise SettingsError(f"{said}: task takes a task or its name, not {self.task!r}")
        if isinstance(self.args, str) or not isinstance(self.args, Sequence):
            raise SettingsError(f"{said}: args takes a list or a tuple, not {self.args!r}")
        for what in ("kwargs", "options"):
            if not isinstance(getattr(self, what), Mapping):
                raise SettingsError(f"{said}: {what} takes a map, not {getattr(self, what)!r}")
        if self.catchup not in CATCHUPS:
            raise SettingsError(f"{said}: catchup takes {', '.join(CATCHUPS)}, not {self.catchup!r}")
        limit = self.catchup_limit
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise SettingsError(f"{said}: catchup_limit takes a number from 1, not {limit!r}")
        for option in OF_ONE_CALL:
            if option in self.options:
                raise SettingsError(f"{said}: {option} is for one call, a schedule makes many")
        _ms(name, self.options.get("expires"))
        try:
            CallOptions.of(TaskOptions()).changed(self.options)
        except SettingsError as error:
            raise SettingsError(f"{said}: {error}") from None


def entry_of(name: str, written: object) -> Entry:
    """The entry that stands under `name` in Celery's shape: a map with task, schedule, args, kwargs, options.

    Raises SettingsError.
    """
    if isinstance(written, Entry):
        return replace(written, name=name)
    if not isinstance(written, Mapping):
        raise SettingsError(f"schedule {name!r} takes a map with {', '.join(_SHAPE)}, not {written!r}")
    for key in written:
        if key not in _SHAPE:
            raise SettingsError(f"schedule {name!r} has no {key!r}; there are: {', '.join(_SHAPE)}")
    for key in ("task", "schedule"):
        if key not in written:
            raise SettingsError(f"schedule {name!r} needs a {key}")
    given = {key: value for key, value in written.items() if value is not None}
    try:
        given["schedule"] = schedules.schedule_of(given["schedule"])
    except SettingsError as error:
        raise SettingsError(f"schedule {name!r}: {error}") from None
    return entry_calling(name, **given)


def entry_calling(
    name: str,
    task: Any,
    schedule: Every | Crontab,
    args: Any = (),
    kwargs: Any = MappingProxyType({}),
    options: Any = MappingProxyType({}),
    **given: Any,
) -> Entry:
    """The entry of a task, its name, a signature or a canvas. Raises SettingsError."""
    task, args, kwargs, options = called(name, task, args, kwargs, options)
    return Entry(name, task, schedule, args, kwargs, options, **given)


@dataclass(frozen=True)
class Record:
    """A schedule as Redis keeps it.

    origin         name of the app whose code has it, or RUN_TIME
    body           packed arguments
    meta           as in a message
    expires_ms     a call that has not started so long after its slot was fired is dropped; None = never
    delay_ms       each call waits so long after its slot
    dedupe_key     '' = none; this and what follows of duplicates as in a Placement
    since_ms       slots up to this moment are not fired
    paused         no slots are fired
    removed        it is on its way out: only `before` is to be done
    before         queues that have to be told of this generation before it may fire
    due_ms         its next slot once that is done; None = none, since it is paused or removed
    generation     grows with each change; 0 = not written yet
    """

    name: str
    origin: str
    task: str
    schedule: Every | Crontab
    body: bytes
    queue: str
    priority: int
    meta: Mapping[str, Any]
    expires_ms: int | None
    delay_ms: int
    max_length: int
    dedupe_key: str
    dedupe_ttl_ms: int
    dedupe_until: str
    replaces: bool
    catchup: str
    catchup_limit: int
    since_ms: int
    paused: bool = False
    removed: bool = False
    before: tuple[str, ...] = ()
    due_ms: int | None = None
    generation: int = 0

    @property
    def pending(self) -> bool:
        """Whether something is to be done before it may fire, or may go."""
        return bool(self.before) or self.removed

    def declares_the_same(self, other: Record) -> bool:
        """Whether both say the same, whatever has become of them since."""
        mine, others = vars(self), vars(other)
        return all(mine[name] == others[name] for name in mine if name not in _UNDECLARED)

    def slots(self, due_ms: int, now_ms: int) -> list[int]:
        """The slots to fire now, where `due_ms` is the next one."""
        return due_slots(self.schedule, due_ms - 1, now_ms, self.catchup, self.catchup_limit)

    def message(self, task_id: str, now_ms: int) -> Message:
        """One call of it."""
        meta = self.meta if self.expires_ms is None else {**self.meta, "expires": now_ms + self.expires_ms}
        return Message(task_id, self.task, self.body, self.queue, self.priority, meta)

    def placement(self) -> Placement:
        """Of a call that is sent by hand."""
        return Placement(
            delay_ms=self.delay_ms or None,
            max_length=self.max_length,
            dedupe_key=self.dedupe_key,
            dedupe_ttl_ms=self.dedupe_ttl_ms,
            dedupe_until=self.dedupe_until,
            replaces=self.replaces,
        )

    def fire_call(self, queue: Queue, slot_ms: int, now_ms: int) -> ScriptCall:
        """The script call that fires one slot, unless that has been done. `queue`: that of the record."""
        message = self.message(slot_id(self.name, slot_ms), now_ms)
        arguments = (
            *(self.name, self.generation, self.since_ms, slot_ms),
            *(message.id, message.task, message.body, pack_meta(message.meta), message.priority),
            *(self.delay_ms, self.max_length, self.dedupe_key, self.dedupe_ttl_ms),
            *(ends_of(self.dedupe_until), int(self.replaces)),
        )
        return scripts.FIRE, queue.keys.prefix, arguments

    def pack(self) -> bytes:
        """All but the name and the generation, which stand beside it."""
        kept = {key: value for key, value in vars(self).items() if key not in ("name", "generation")}
        return codec.encode({**kept, "schedule": self.schedule.pack(), "before": list(self.before)}, "schedule")


def generation_of(kept: bytes) -> int:
    """The generation in ``<generation>:<packed>``, which can be read even where the rest cannot; 0 = there is none."""
    found = _GENERATION.match(kept)
    return int(found[1]) if found else 0


def unpack_record(name: str, kept: bytes) -> Record:
    """The record in ``<generation>:<packed>``. Raises DecodeError."""
    try:
        name.encode()  # one that came from the server in other bytes is no name
        values = codec.decode(kept.partition(b":")[2])
        values["schedule"] = schedules.unpack(values["schedule"])
        values["before"] = tuple(values["before"])
        record = Record(name=name, generation=generation_of(kept), **values)
        for field_name, kinds in _KINDS.items():
            if type(getattr(record, field_name)) not in kinds:
                raise TypeError(f"its {field_name} is {getattr(record, field_name)!r}")
        for queue in (record.queue, *record.before):
            check_queue(queue)
    except (TypeError, KeyError, ValueError) as error:
        raise DecodeError(
            f"schedule {name!r} cannot be read, a newer rsq may have written it: {error}; "
            "`rsq schedule remove` deletes it"
        ) from None
    return record


def record_of(app: BaseApp, entry: Entry, origin: str, now_ms: int) -> Record:
    """The record of a new entry, whose slots begin now.

    Raises what `Task.delay` raises for arguments that do not fit, as SettingsError with the schedule's name.
    """
    task = app.task_by_name(entry.task)
    expires = entry.options.get("expires", task.options.expires)
    options = {**entry.options, "expires": None}
    try:
        if entry.task == START and "queue" not in options:
            options["queue"] = queue_of(app, entry.args[0])
        message, placement = task.message(entry.args, entry.kwargs, **options)
    except (TypeError, SettingsError) as error:
        raise SettingsError(f"schedule {entry.name!r}: {error}") from None
    return Record(
        name=entry.name,
        origin=origin,
        task=message.task,
        schedule=schedules.in_zone(entry.schedule, app.settings.timezone),
        body=message.body,
        queue=message.queue,
        priority=message.priority,
        meta={key: value for key, value in message.meta.items() if key not in ("expires", "parent", "root")},
        expires_ms=_ms(entry.name, expires),
        delay_ms=placement.delay_ms or 0,
        max_length=placement.max_length,
        dedupe_key=placement.dedupe_key,
        dedupe_ttl_ms=placement.dedupe_ttl_ms,
        dedupe_until=placement.dedupe_until,
        replaces=placement.replaces,
        catchup=entry.catchup,
        catchup_limit=entry.catchup_limit,
        since_ms=now_ms,
    )


def slot_id(name: str, slot_ms: int) -> str:
    """Task id of the call that a slot becomes: ``<schedule>:<slot>``; what an id cannot hold is quoted."""
    plain = quote(name, safe="!#$&'()*+,/:;=?@[]-_.~")
    if len(plain) > 80:
        plain = f"{plain[:60]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{plain}:{slot_ms}"


def _ms(name: str, expires: object) -> int | None:
    if expires is None:
        return None
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    if isinstance(seconds, (int, float)) and -LONGEST_S <= seconds <= LONGEST_S:
        return int(seconds * 1000)
    raise SettingsError(
        f"schedule {name!r}: expires takes seconds here, counted from each slot, a hundred years of them at most, "
        f"not {expires!r}"
    )
