"""What a mark is called, and what it remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

from rsq import codec
from rsq.calls.request import current
from rsq.errors import RsqError, SettingsError

MAX_LENGTH = 255
"""Characters in each part of a name: an index over both fits into every database."""


class MarkName(NamedTuple):
    """What is to happen once; the primary key of the table."""

    scope: str
    key: str


def mark_name(key: str | None, scope: str | None, empty_is_null: bool = False) -> MarkName:
    """The name of a mark, checked.

    Without a key it is made of the running task's name and its task id, which is the same through retries, crashes and
    redrives. A key stands for itself wherever it is used, so it has no scope unless one is given.

    empty_is_null  of the database: it holds an empty text for NULL (Oracle), which cannot stand in a primary key
    Raises  SettingsError: no key, and no task runs in this context; a part that is no text, or too long
    """
    default_scope = ""
    if key is None:
        delivery = current.get()
        if delivery is None:
            raise SettingsError(
                "no task runs in this context (a thread of your own is another one), "
                "so there is no task id to go by: give key='...'"
            )
        key, default_scope = delivery.id, delivery.task
    name = MarkName(default_scope if scope is None else scope, key)
    for part, text in zip(name._fields, name, strict=True):
        least = 1 if part == "key" else 0
        if not isinstance(text, str) or not least <= len(text) <= MAX_LENGTH:
            raise SettingsError(f"{part} {text!r} cannot be used: take a text of {least} to {MAX_LENGTH} characters")
    if empty_is_null and not name.scope:
        raise SettingsError("this database holds an empty text for NULL: give a key of your own a scope, scope='...'")
    return name


def pack_result(value: object) -> bytes:
    """What `once` keeps. Raises EncodeError for a value that a task could not return either."""
    return codec.encode(value, "result")


def unpack_result(packed: bytes | None, name: MarkName) -> Any:
    """The inverse of `pack_result`. Raises RsqError where there is nothing, DecodeError."""
    if packed is None:
        raise RsqError(
            f"the mark {name.scope!r}, {name.key!r} holds no result: either first_time() made it, "
            "or its effect failed and the transaction was committed all the same"
        )
    return codec.decode(packed)
