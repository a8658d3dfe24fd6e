"""To which app a signature or a handle belongs that names none: one made by a name alone, or read from bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from rsq.calls.request import current

if TYPE_CHECKING:
    from rsq.broker.client import Client


class Home(Protocol):
    """What a signature and a handle need of their app."""

    @property
    def client(self) -> Client: ...

    @property
    def flows(self) -> Any: ...


class Project:
    """Finds the app of the project."""

    find: Callable[[], Home]


project = Project()
"""`rsq.app` tells it how."""

_reading: ContextVar[Home | None] = ContextVar("rsq.home", default=None)


def home() -> Home:
    """The app of the handle whose result is read; inside a call, that of the call; else the project's."""
    reading = _reading.get()
    if reading is not None:
        return reading
    delivery = current.get()
    app: Home | None = None if delivery is None else getattr(delivery, "app", None)
    return project.find() if app is None else app


@contextmanager
def reading_for(app: Home | None) -> Iterator[None]:
    """What is read in the block belongs to this app, if there is one."""
    token = _reading.set(app)
    try:
        yield
    finally:
        _reading.reset(token)
