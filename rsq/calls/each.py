"""One call for a list of calls: its one argument is a list, and the function is called with each item, in order.

    map      f(item) for each
    starmap  f(*item) for each

Its value is the list of what they gave. It is one call in all else: one attempt, one result, one time limit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from rsq.errors import SettingsError

EACH = ("map", "starmap")


def check_each(value: Any) -> str:
    """Raises SettingsError."""
    if value not in EACH:
        raise SettingsError(f"each takes {' or '.join(map(repr, EACH))}, not {value!r}")
    return str(value)


def check_items(
    each: str, args: Sequence[Any], kwargs: Mapping[str, Any], fits: Callable[[int], bool], signature: inspect.Signature
) -> None:
    """Raises TypeError for what is not one list, and for an item that does not fit the function.

    fits, signature  of the function; a list that is not known yet is not looked into
    """
    if len(args) != 1 or kwargs:
        raise TypeError(f"with each={each!r} it takes one list, and nothing else")
    for item in args[0] if isinstance(args[0], list) else ():
        if each == "starmap" and (isinstance(item, (str, bytes)) or not isinstance(item, Iterable)):
            raise TypeError(f"starmap takes a list of lists of arguments; {item!r} in it is none")
        given = tuple(item) if each == "starmap" else (item,)
        if not fits(len(given)):
            signature.bind(*given)


def body_of(function: Callable[..., Any], each: str, is_async: bool) -> Callable[[Iterable[Any]], Any]:
    """The function that is called with the list."""

    def plain(items: Iterable[Any]) -> list[Any]:
        return [function(*item) for item in items] if each == "starmap" else [function(item) for item in items]

    def coroutine(items: Iterable[Any]) -> Coroutine[Any, Any, list[Any]]:
        async def one_by_one() -> list[Any]:
            if each == "starmap":
                return [await function(*item) for item in items]
            return [await function(item) for item in items]

        return one_by_one()

    return coroutine if is_async else plain
