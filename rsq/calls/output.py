"""What a call emits while it runs, as those see it who watch it, and how it travels.

An entry of an output has the id ``<run>-<n>``: the run is told apart from those before it, which ended in an error or
with their worker; n counts the values of all runs and has no holes, so it says how far somebody has read, and what he
missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from msgpack import Unpacker  # type: ignore[import-untyped, unused-ignore]

from rsq.errors import SettingsError

V = TypeVar("V")

WELL = ("succeeded", "ignored")
"""The ways of `rsq.states.ENDINGS` that are no failure."""

_CURSOR = re.compile(r"([0-9]{1,16})-([0-9]{1,16})")
_PUSHED = re.compile(rb"(\d+)-(\d+)(?: (\w+))?\n")


@dataclass(frozen=True)
class Item(Generic[V]):
    """A value that was emitted.

    cursor  where it stands, for `after`
    run     number of the run that emitted it, from 1
    """

    value: V
    cursor: str
    run: int


@dataclass(frozen=True)
class NewRun:
    """From here on the values are those of another run, which began anew: the one before it did not come to its end."""

    run: int


@dataclass(frozen=True)
class Gap:
    """So many values are missing here: the output keeps `output_length` of them, and those are older; or a server that
    failed had not passed them on.
    """

    count: int


Seen: TypeAlias = "Item[Any] | NewRun | Gap"


class Place(NamedTuple):
    """How far somebody has read."""

    run: int
    n: int

    def __str__(self) -> str:
        return f"{self.run}-{self.n}"


def place_of(cursor: str) -> Place:
    """Raises SettingsError for what is no cursor."""
    found = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if found is None:
        raise SettingsError(f"after takes the cursor of an item, such as '1-42', or None, not {cursor!r}")
    return Place(int(found[1]), int(found[2]))


class Push(NamedTuple):
    """What a message of an output says.

    place   of the first value, or of the end
    values  packed ones; none where there are too many for a message
    way     how the call has ended; '' = it has not
    """

    place: Place
    values: list[bytes]
    way: str


def read_push(data: bytes) -> Push | None:
    """None for what is no message of ours."""
    head = _PUSHED.match(data)
    if head is None:
        return None
    return Push(Place(int(head[1]), int(head[2])), list(_packed_values(data[head.end() :])), (head[3] or b"").decode())


def _packed_values(data: bytes) -> Iterator[bytes]:
    """Values that stand behind each other, each as it is packed."""
    unpacker = Unpacker(raw=True, strict_map_key=False, max_buffer_size=len(data) or 1)
    unpacker.feed(data)
    start = 0
    while start < len(data):
        unpacker.skip()
        yield data[start : unpacker.tell()]
        start = unpacker.tell()


def place_in(entry_id: bytes) -> Place:
    """That of an entry."""
    run, _, n = entry_id.partition(b"-")
    return Place(int(run), int(n))
