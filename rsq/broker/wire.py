"""Commands as they go over the wire."""

from __future__ import annotations

from typing import TypeAlias

from hiredis import pack_command

Argument: TypeAlias = str | bytes | int | float
Command: TypeAlias = "tuple[Argument, ...]"


_TEXTS = frozenset({str, bytes})


def packed(*command: Argument) -> bytes:
    """A command as it goes over the wire."""
    if _TEXTS.issuperset(map(type, command)):
        return packed_texts(*command)  # type: ignore[arg-type]
    # hiredis takes the process down when a signal handler raises while it writes out a number.
    return packed_texts(*[part if isinstance(part, (str, bytes)) else str(part) for part in command])


def packed_texts(*command: str | bytes) -> bytes:
    """`packed` for a command without numbers. Lone surrogates, as in names of files, travel as in `rsq.codec`."""
    try:
        return bytes(pack_command(command))  # type: ignore[arg-type]  # its stub takes one-tuples only
    except UnicodeEncodeError:
        return packed_texts(*[_encoded(part) for part in command])


def _encoded(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
