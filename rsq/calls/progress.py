"""How far a running task has come, as it tells and as a caller reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsq import codec
from rsq.errors import DecodeError

MOST_BYTES = 16 * 1024
"""One report packs to no more."""

TTL_MS = 86_400_000
"""A report is readable for this long after the last one."""


@dataclass(frozen=True)
class Progress:
    """One report.

    current  how much is done, in the task's own unit
    total    of how much; None when that is not known
    info     what else it told
    """

    current: float
    total: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fraction(self) -> float | None:
        """``current / total``, or None where there is no total."""
        return self.current / self.total if self.total else None


def pack_progress(progress: Progress) -> bytes:
    """A packed array ``[current, total, info]``. Raises EncodeError and MessageTooLarge."""
    return codec.encode([progress.current, progress.total, dict(progress.info)], "progress", MOST_BYTES)


def unpack_progress(data: bytes) -> Progress:
    """The inverse. Raises DecodeError."""
    try:
        current, total, info = codec.decode(data)
        return Progress(current, total, dict(info))
    except (TypeError, ValueError) as error:
        raise DecodeError(f"these bytes are no progress: {error}") from None
