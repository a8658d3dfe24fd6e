"""Handles as data: a table of rows, one for each handle that the first leads to. Packed, it is how handles travel.

A table is ``(number of the handle that it is of, rows)``, and a row the kind of the handle and what its class says. In
rows other handles are numbers of rows; those that a set holds stand before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rsq import codec
from rsq.calls.message import check_id
from rsq.errors import DecodeError, SettingsError
from rsq.home import Home, home
from rsq.keys import check_queue

if TYPE_CHECKING:
    from typing_extensions import Self

Numbers = Callable[["HandleData | None"], "int | None"]
Handles = Callable[[Any], Any]


class HandleData:
    """What makes a handle data. Its subclasses are all that a row can become.

    kind  names the class in rows
    """

    __slots__ = ()

    _kinds: ClassVar[dict[str, type[HandleData]]] = {}
    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            cls._kinds[cls.kind] = cls

    def as_tuple(self) -> tuple[int, list[list[Any]]]:
        """Plain data, which JSON can carry, too: `result_from_tuple` makes an equal handle of it."""
        return _table(self)

    # -- for subclasses

    def _holds(self) -> Iterable[HandleData]:
        """The handles of which it consists."""
        return ()

    def _leads_to(self) -> Iterable[HandleData | None]:
        """Other handles that it knows."""
        return ()

    def _row(self, number_of: Numbers) -> list[Any]:
        """What is to be known of it besides its kind, as plain data."""
        raise NotImplementedError

    @classmethod
    def _of_row(cls, app: Home, row: Sequence[Any], handle_of: Handles) -> Self:
        """The handle of a row, with those that it holds. Raises what unfit data raises."""
        raise NotImplementedError

    def _lead(self, row: Sequence[Any], handle_of: Handles) -> None:
        """Know what `_leads_to` gave, once all are there."""


class Linked(HandleData):
    """One that stands in a canvas, behind its `parent`, and before its `links`; both stand last in its row."""

    __slots__ = ()

    if TYPE_CHECKING:
        parent: Any
        links: Sequence[Any]

    def _leads_to(self) -> Iterable[HandleData | None]:
        return [self.parent, *self.links]

    def _leads(self, number_of: Numbers) -> list[Any]:
        return [number_of(self.parent), [number_of(link) for link in self.links]]

    def _lead(self, row: Sequence[Any], handle_of: Handles) -> None:
        *_, parent, links = row
        self.parent = handle_of(parent)
        self.links = [handle_of(link) for link in links]  # type: ignore[misc]  # the slots are its subclasses'


def result_from_tuple(table: Sequence[Any], app: Home | None = None) -> Any:
    """The handle of which this is the `as_tuple`, as a handle of this app.

    app     default: that of the running call, else the project's
    Raises  SettingsError for what is none
    """
    try:
        return _made(table, app or home())
    except (TypeError, ValueError, LookupError, SettingsError) as error:
        raise SettingsError(f"this is not what as_tuple() of a handle gives: {error}") from None


def checked_place(task_id: Any, queue: Any) -> tuple[str, str | None]:
    """Id and queue of a row. Raises SettingsError."""
    return check_id(task_id), None if queue is None else check_queue(queue)


def _table(handle: HandleData) -> tuple[int, list[list[Any]]]:
    numbers: dict[int, int] = {}
    every: list[HandleData] = []
    waiting: list[HandleData | None] = [handle]

    def note(found: HandleData) -> None:
        if id(found) not in numbers:
            for held in found._holds():  # as deep as canvases stand inside each other
                note(held)
            numbers[id(found)] = len(every)
            every.append(found)
            waiting.extend(found._leads_to())

    while waiting:
        if (found := waiting.pop()) is not None:
            note(found)

    def number_of(wanted: HandleData | None) -> int | None:
        return None if wanted is None else numbers[id(wanted)]

    return numbers[id(handle)], [[each.kind, *each._row(number_of)] for each in every]


def _made(table: Sequence[Any], app: Home) -> HandleData:
    wanted, rows = table
    made: list[HandleData] = []

    def handle_of(number: Any) -> HandleData | None:
        if number is not None and number < 0:
            raise IndexError(number)
        return None if number is None else made[number]

    for kind, *row in rows:
        made.append(HandleData._kinds[kind]._of_row(app, row, handle_of))
    for each, (_, *row) in zip(made, rows, strict=True):
        each._lead(row, handle_of)
    found: HandleData = made[int(wanted)]
    return found


def _unpacked(table: Any) -> HandleData:
    try:
        return _made(table, home())
    except (TypeError, ValueError, LookupError, SettingsError) as error:
        raise DecodeError(f"a handle that cannot be read: {error}") from None


codec.add_extension(14, HandleData, lambda handle: list(_table(handle)), _unpacked)
