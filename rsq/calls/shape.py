"""An event as an object of the class that the function's annotation names: a dataclass, or a model of pydantic."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def _bool(text: str) -> bool:
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise ValueError(f"{text!r} is neither true nor false")


FROM_TEXT: dict[type, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: _bool,
    bytes: str.encode,
    Decimal: Decimal,
    UUID: UUID,
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
}
"""What is made of a text; all that is not a text stays as it is."""


def shape_of(annotation: Any) -> Callable[[Any], Any] | None:
    """What makes an object of that class of a map; None where the annotation names no such class."""
    if not isinstance(annotation, type):
        return None
    if dataclasses.is_dataclass(annotation):
        return lambda event: _made(annotation, event)
    validate = getattr(annotation, "model_validate", None)
    return validate if callable(validate) else None


def _made(cls: type, event: Any) -> Any:
    """The dataclass from a map; names that it does not have are left out. Raises TypeError, ValueError."""
    if not isinstance(event, Mapping):
        raise TypeError(f"{cls.__name__} is made of a map, not of {type(event).__name__}")
    hints = typing.get_type_hints(cls)
    given = {}
    for field in dataclasses.fields(cls):
        if field.init and field.name in event:
            try:
                given[field.name] = _value(hints[field.name], event[field.name])
            except (TypeError, ValueError, ArithmeticError) as error:
                raise ValueError(f"field {field.name}: {error}") from error
    return cls(**given)


def _value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(hint) if each is not type(None)]
        return value if len(kinds) != 1 or value is None else _value(kinds[0], value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _made(hint, value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _member(hint, value)
    return FROM_TEXT[hint](value) if isinstance(value, str) and hint in FROM_TEXT else value


def _member(kind: type[enum.Enum], value: Any) -> enum.Enum:
    for member in kind:
        if member.value == value or str(member.value) == value:
            return member
    raise ValueError(f"{value!r} is none of {kind.__name__}")
