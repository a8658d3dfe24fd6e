"""How far a running task has come, as it tells and as a caller reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsq import codec
from rsq.errors import DecodeError
from rsq.states import FINAL

MOST_BYTES = 16 * 1024
"""One report packs to no more."""

TTL_MS = 86_400_000
"""A report is readable for this long after the last one."""


@dataclass(frozen=True)
class Progress:
    """One report.

    current  how much is done, in the task's own unit; None where `update_state` did not tell
    total    of how much; None when that is not known
    info     what else it told; of `update_state` the whole `meta`
    state    the word that `update_state` gave, or ''
    Raises   TypeError for what is no number, or no text
    """

    current: float | None
    total: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""

    def __post_init__(self) -> None:
        for name in ("current", "total"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float)):
                raise TypeError(f"{name} of a progress is a number, not {value!r}")
        if not isinstance(self.state, str):
            raise TypeError(f"state of a progress is a text, not {self.state!r}")

    @classmethod
    def of_meta(cls, state: str, meta: Mapping[str, Any]) -> Progress:
        """What Celery's `update_state` tells: `current` and `total` count where they are numbers.

        Raises ValueError for a word that ends a call; TypeError for a `meta` that is no map.
        """
        if state in FINAL:
            raise ValueError(
                f"update_state tells how far a call has come and cannot end it: {state} is what rsq says when the body "
                "returns, raises, or raises Reject"
            )
        if not isinstance(meta, Mapping):
            raise TypeError(f"meta of update_state is a map, not {meta!r}")
        numbers = [value if isinstance(value := meta.get(key), (int, float)) else None for key in ("current", "total")]
        return cls(numbers[0], numbers[1], meta, state)

    @property
    def fraction(self) -> float | None:
        """``current / total``, or None where there is no total."""
        return self.current / self.total if self.total and self.current is not None else None

    @property
    def meta(self) -> dict[str, Any]:
        """All that it told as one map, as `AsyncResult.info` gives it."""
        return dict(self.info) if self.state else {**self.info, "current": self.current, "total": self.total}


def pack_progress(progress: Progress) -> bytes:
    """A packed array ``[current, total, info]``, or ``[.., state]``. Raises EncodeError and MessageTooLarge."""
    word = [progress.state] if progress.state else []
    return codec.encode([progress.current, progress.total, dict(progress.info), *word], "progress", MOST_BYTES)


def unpack_progress(data: bytes) -> Progress:
    """The inverse. Raises DecodeError."""
    try:
        current, total, info, *word = codec.decode(data)
        return Progress(current, total, dict(info), *word)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"these bytes are no progress: {error}") from None
