"""Many calls of one function in one: `map`, `starmap`, `chunks`. What a worker makes of it is in `rsq.calls.each`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeVar

from rsq.canvas.signature import Canvas, Group, Signature
from rsq.errors import SettingsError
from rsq.result_group import GroupResult

R = TypeVar("R")


class Chunks(Group[list[R]]):
    """What `chunks` gives: a group of calls, each of which is many; its value is a list of lists."""

    __slots__ = ()

    def group(self) -> Group[list[R]]:
        """The same as a plain group, as in Celery."""
        return Group(self.tasks)

    def __call__(self, **options: Any) -> GroupResult[list[R]]:
        """Start it, as in Celery: ``add.chunks(pairs, 10)()``."""
        return self.apply_async(**options)


def each(how: str, called: Signature[R], items: Iterable[Any]) -> Signature[list[R]]:
    """One call for all these items: ``f(item)`` for each with "map", ``f(*item)`` with "starmap".

    called  a signature without arguments, whose task and options count
    Raises  SettingsError
    """
    if called.args or called.kwargs or isinstance(called, Canvas):
        raise SettingsError(f"{how} takes a task without arguments, since the items are those, not {called!r}")
    made: Signature[Any] = called.clone(each=how)
    made.args, made.immutable = (list(items),), True
    return made


def in_chunks(called: Signature[R], items: Iterable[Iterable[Any]], n: int) -> Chunks[R]:
    """A group of starmaps of `n` items each. Raises SettingsError."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise SettingsError(f"a chunk has 1 item or more, not {n!r}")
    rest = iter(items)
    return Chunks([each("starmap", called, chunk) for chunk in iter(lambda: list(islice(rest, n)), [])])
