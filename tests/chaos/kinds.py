"""The kinds of calls of a chaos run, and what is expected of each; the bodies are in `tests.chaos.tasks`."""

from __future__ import annotations

TICKS = frozenset({"tick", "tock"})
"""Calls of schedules, one a second. What `tick` missed is gone; `tock` catches up with all."""

REVOCABLE = frozenset({"revocable"})
LIMITED = {"limited": 2}
"""Kinds of which only so many run at once."""

EARLY = frozenset({"once", "once_again", "once_quiet"})
"""Acknowledged before they run: no attempt of theirs may begin twice."""

OF_EVENTS = frozenset({"on_one", "on_two"})
FAILS = frozenset({"fails"})
POISON = frozenset({"poison"})
"""Each run of theirs kills its process."""

BREAKS = frozenset({"breaks"})
"""Parts of flows that die for good, until they are healed and sent again."""

OF_FLOWS = (
    frozenset({"step", "bulk_step", "hidden_step", "errback", "replaces", "adds", "named_step", "callback"}) | BREAKS
)

KEEPS_RESULT = (
    frozenset({"plain", "bulk", "emits", "big", "recovers", "once", "once_again", "limited"})
    | FAILS
    | POISON
    | REVOCABLE
    | TICKS
    | (OF_FLOWS - {"hidden_step"})
)


def queue_of_kind(kind: str) -> str:
    """Where a call went of which only the run is known: its producer gave up, though it had arrived."""
    return "bulk" if kind in ("bulk", "bulk_step", "on_two") else "default"
