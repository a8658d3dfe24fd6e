"""A source: a stream of events that others write, as calls of one task.

An event is a map of its fields. How it stands in the body of a call is said in `rsq.calls.event`; what the task gets of
it, `decode` says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

from rsq import codec, keys
from rsq.calls.checks import check_stream, require
from rsq.calls.event import bodies_of, event_of, is_of_event
from rsq.calls.message import Delivery, Message, pack_meta
from rsq.calls.options import MOST_VERSION
from rsq.calls.placement import Placement
from rsq.errors import DecodeError, InvalidTask, SettingsError

Event: TypeAlias = Mapping[Any, Any]

BEGINNING = "0-0"
"""Before the first entry of a stream."""

NEW = "$"
"""What is in the stream when it is first looked at is passed over."""

LONGEST_VALUE = 500
"""Characters of a field that is an id, the key of a version, or an order."""

_TEXT = frozenset({str})
_NUMBER = re.compile(r"\d{1,16}", re.ASCII)
_DECODE = re.compile(r"text|bytes|(json|msgpack):(.+)", re.DOTALL)
_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")


def entry_id(text: str) -> str:
    """The id of an entry, written in full. Raises SettingsError."""
    found = _ID.fullmatch(text) if isinstance(text, str) else None
    if found is None or any(int(part or 0) >= 2**64 for part in found.groups()):
        raise SettingsError(f"{text!r} is no id of a stream's entry: they look like 1526919030474-55")
    return f"{int(found[1])}-{int(found[2] or 0)}"


def order_of(position: str) -> tuple[int, int]:
    """By which ids are compared."""
    ms, _, number = position.partition("-")
    return int(ms), int(number or 0)


def before(number: str) -> str:
    """The position from which the entry with this id is the next one. Raises SettingsError."""
    ms, seq = order_of(entry_id(number))
    if seq > 0:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{2**64 - 1}" if ms > 0 else BEGINNING


@dataclass(frozen=True)
class Source:
    """What `app.on` says beside the options of a task.

    stream  key of the stream
    group   who reads it: each group gets every event, once
    start   where a group begins that was never there: "0" the first event, "$" the next one that comes, or the id of an
            entry, behind which it begins
    decode  "text": a map of texts; "bytes": a map of bytes; "json:<field>", "msgpack:<field>": what is packed in that
            field; or a function that makes the argument of the map of texts
    shape   makes an object of that, see `rsq.calls.shape`; None: it stays what it is
    id_field  name of a field: of events with the same value in it one runs. None: each event is another one
    version_field, key_field  names of the fields with a number and with what it is the version of: once a newer version
            of a key is done, older ones do not run
    order_by  name of a field: events with the same value in it run one after the other, in their order
    kept_ms  how long ids and versions are remembered
    """

    stream: str
    group: str
    start: str = "0"
    decode: str | Callable[[Event], Any] = "text"
    id_field: str | None = None
    version_field: str | None = None
    key_field: str | None = None
    order_by: str | None = None
    kept_ms: int = 86_400_000
    shape: Callable[[Any], Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            check_stream(self.stream)
            require("group", self.group, str)
            if not keys.is_queue(self.group):
                raise SettingsError(
                    f"group {self.group!r} cannot be used: take 1 to 100 letters, digits, '_', '.' or '-', the first "
                    "no . or -"
                )
            if self.start != NEW:
                try:
                    object.__setattr__(self, "start", entry_id(self.start))
                except SettingsError:
                    raise SettingsError(
                        f"start takes '0' (all events), '$' (those to come) or the id of an entry, not {self.start!r}"
                    ) from None
            if not callable(self.decode) and not _DECODE.fullmatch(str(self.decode)):
                raise SettingsError(
                    "decode takes 'text', 'bytes', 'json:<field>', 'msgpack:<field>' or a function of the event, not "
                    f"{self.decode!r}"
                )
            for name in ("id_field", "version_field", "key_field", "order_by"):
                require(name, getattr(self, name), str, None)
            if (self.version_field is None) != (self.key_field is None):
                raise SettingsError("version_field and key_field go together: a number, and what it is the version of")
        except SettingsError as error:
            raise InvalidTask(str(error)) from None

    def __str__(self) -> str:
        return f"stream {self.stream} for group {self.group}"

    @property
    def key(self) -> str:
        """How it is named in the keys of its queue."""
        return keys.source(self.group, self.stream)

    @property
    def queue(self) -> str:
        """The queue that it feeds where no other one is named. Raises InvalidTask where that can be none."""
        name = re.sub(r"[^A-Za-z0-9_.\-]", "-", self.stream).lstrip(".-") + f".{self.group}"
        if not keys.is_queue(name):
            raise InvalidTask(f"no queue can be named after stream {self.stream!r}: name one with queue=...")
        return name

    def call_of(self, event_id: bytes, fields: Sequence[bytes]) -> tuple[bytes, bytes]:
        """Id and body of the call of an event. Raises nothing, whatever is in it."""
        return self._id_head + event_id, self._body(event_id, fields)

    def rules_of(self, fields: Sequence[bytes]) -> tuple[bytes, str, bytes, str]:
        """Meta, key, twin's meta and order of the call of an event, see `rsq.broker.rows.Fed`.

        Raises nothing: an event of which its own rules cannot be read has none, and does not run.
        """
        key, version, order = "", None, ""
        with suppress(DecodeError):
            key, version, order = self._rules_of(event_of(fields))
        meta = {} if version is None else {"version": version}
        return pack_meta(meta), key, pack_meta({**meta, "begin": True}) if key else b"", order

    @cached_property
    def has_rules(self) -> bool:
        """Whether something in an event decides if or when it runs."""
        return any((self.id_field, self.version_field, self.order_by))

    def _rules_of(self, event: Event) -> tuple[str, list[Any] | None, str]:
        """Key, version and order of an event. Raises DecodeError."""
        return self._key_of(event), self._version_of(event), self._order_of(event)

    @cached_property
    def _body(self) -> Callable[[bytes, Sequence[bytes]], bytes]:
        return bodies_of(self.stream)

    @cached_property
    def _is_text(self) -> bool:
        """Whether the task gets the map of texts as it is."""
        return self.decode == "text" and self.shape is None and not self.has_rules

    def _key_of(self, event: Event) -> str:
        """The dedupe key of an event, '' = none. Raises DecodeError."""
        return "" if self.id_field is None else f"{self.key}:{_field(event, self.id_field)}"

    def _order_of(self, event: Event) -> str:
        """The line of an event, '' = none. Raises DecodeError."""
        return "" if self.order_by is None else f"{self.key}:{_field(event, self.order_by)}"

    def _version_of(self, event: Event) -> list[Any] | None:
        """The `version` in the meta of its call, or None. Raises DecodeError."""
        if self.version_field is None or self.key_field is None:
            return None
        text = _field(event, self.version_field)
        if not _NUMBER.fullmatch(text) or int(text) > MOST_VERSION:
            raise DecodeError(f"{self.version_field} of the event is no version, a number from 0 to 2 ** 53: {text!r}")
        return [f"{self.key}:{_field(event, self.key_field)}", int(text), self.kept_ms]

    def task_id(self, event_id: str) -> str:
        """The id of the call of an event: always the same one, and of no other event."""
        return f"{self._id_head.decode()}{event_id}"

    def published_id(self, name: str) -> str:
        """The id of the call of an event that is published under this name, where no stream gives it one."""
        return _id_of(f"{self.key} {name}".encode("utf-8", "surrogatepass"))

    @cached_property
    def _id_head(self) -> bytes:
        """What all its ids begin with, and those of no other source."""
        hashed = hashlib.sha256(f"{self.group} {self.stream}".encode("utf-8", "surrogatepass"))
        return f"{hashed.hexdigest()[:16]}-".encode()

    def argument(self, event: Any) -> Any:
        """What the task gets of an event as it stands in the body of a call. Raises DecodeError."""
        if self._is_text and type(event) is dict and _TEXT.issuperset(map(type, chain(event, event.values()))):
            return event
        if not isinstance(event, Mapping):
            raise DecodeError(f"an event is a map of fields, not {type(event).__name__}")
        if self.has_rules:
            self._rules_of(event)
        if self.decode == "bytes":
            return {_bytes(name): _bytes(value) for name, value in event.items()}
        try:
            found = self._decoded(event)
            return found if self.shape is None else self.shape(found)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(f"the event cannot be decoded: {type(error).__name__}: {error}") from error

    def _decoded(self, event: Event) -> Any:
        packed = None if callable(self.decode) else _DECODE.fullmatch(self.decode)
        if packed is not None and packed[1] is not None:
            if packed[2] not in event:
                raise DecodeError(f"{packed[2]} of the event is missing")
            raw = _bytes(event[packed[2]])
            return json.loads(raw) if packed[1] == "json" else codec.decode(raw)
        for part in (*event, *event.values()):
            if not isinstance(part, str):
                raise DecodeError(f"a field of the event is no UTF-8: {part!r:.100}; decode='bytes' takes it as it is")
        return self.decode(event) if callable(self.decode) else event


def follow_up(delivery: Delivery, message: Message, placement: Placement) -> tuple[Message, Placement]:
    """What the body of an event sends, with an id that is the same in each run: so the next run does not double it.

    That is made of the event and of what is sent: a body that sends the same things in another order doubles nothing,
    either, and leaves nothing out.
    """
    if not hasattr(delivery, "sent"):
        delivery.sent = {}
    like = hashlib.sha256(b" ".join((delivery.id.encode(), message.task.encode(), message.body))).digest()
    number = delivery.sent[like] = delivery.sent.get(like, 0) + 1
    own = copy(message)
    own.id = _id_of(like + str(number).encode())
    return own, replace(placement, unique=True)


def _id_of(data: bytes) -> str:
    """The same id for the same data."""
    return hashlib.sha256(data).hexdigest()[:32]


def decoded(source: Source | None, delivery: Delivery, args: list[Any]) -> list[Any]:
    """The arguments of a call: of that of an event what its source makes of it. Raises DecodeError."""
    if source is None or not is_of_event(delivery.body):
        return args
    if len(args) != 1:
        raise DecodeError(f"the call of an event has one argument, not {len(args)}")
    return [source.argument(args[0])]


def _field(event: Event, name: str) -> str:
    value = event.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_VALUE:
        told = "is missing" if name not in event else f"is no text of 1 to {LONGEST_VALUE} characters"
        raise DecodeError(f"{name} of the event {told}")
    return value


def _bytes(part: Any) -> bytes:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, bytes):
        return part
    raise DecodeError(f"a field of the event is {type(part).__name__}, not text or bytes")
