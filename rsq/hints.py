"""Answers to the names that people try who come from Celery: an error that says what to write here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

from rsq.celery_names import NAMES

Class = TypeVar("Class", bound=type)


def unknown_text(kind: str, name: str, what: str, known: Iterable[str]) -> str:
    """One line about a name that is not known where only `known` ones are.

    kind  the part of `rsq.celery_names` in which it may stand
    what  says what it is no name of
    """
    import difflib

    if said := NAMES[kind].get(name):
        return f"{name}: {said}"
    names = sorted(known)
    alike = difflib.get_close_matches(name, names, 3, 0.7)
    hint = f"did you mean {' or '.join(alike)}?" if alike else f"there are: {', '.join(names)}"
    return f"no {what} is called {name!r}; {hint}"


def hinted(kind: str) -> Callable[[Class], Class]:
    """Have a class answer the names of this part of `rsq.celery_names` with an AttributeError in these words.

    A descriptor for each name, and no `__getattr__`: with one Python looks up every attribute of a class more slowly.
    """

    def mark(cls: Class) -> Class:
        for name, said in NAMES[kind].items():
            setattr(cls, name, _Absent(name, said))
        return cls

    return mark


class _Absent:
    """Stands for an attribute that is not there."""

    __slots__ = ("_name", "_said")

    def __init__(self, name: str, said: str) -> None:
        self._name = name
        self._said = said

    def __get__(self, found: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}: {self._said}")

    def __set__(self, found: object, value: object) -> NoReturn:
        self.__get__(found, type(found))  # to set it would do nothing, in silence
