"""Commands as they go over the wire."""

from __future__ import annotations

from typing import TypeAlias

from hiredis import pack_command

Argument: TypeAlias = str | bytes | int | float
Command: TypeAlias = "tuple[Argument, ...]"


def packed(*command: Argument) -> bytes:
    """A command as it goes over the wire."""
    return bytes(pack_command(command))  # type: ignore[arg-type]  # its stub takes one-tuples only
