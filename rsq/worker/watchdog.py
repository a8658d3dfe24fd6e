"""Replaces children that stand still: one that fetches nothing holds what it has fetched for ever, as its lease is
renewed for it.
"""

from __future__ import annotations

import logging

from rsq.worker.children import Child, Children
from rsq.worker.part import Part

log = logging.getLogger("rsq.worker")

LOOKS = 6
"""Looks within the time after which a child is replaced."""

LATE = 3.0
"""A look that comes after so many times its pause tells of us, not of the children: we stood still ourselves."""


class Watchdog(Part):
    """Judges by what it has seen itself, from look to look, all in time. A child stands still when

    - its fetcher takes no step, and no body runs, which may hold the interpreter; it counts from the first step on;
    - its committer has outcomes to write and takes no step, and no body runs, or the fetcher steps on beside it.

    Does nothing until `begin`.
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self._limit_s = 0.0
        self._pause_s = 0.0
        self._looked_at = 0.0
        self._seen: dict[tuple[Child, str], tuple[float, float]] = {}

    def begin(self, watchdog_s: float) -> None:
        """The setting is known."""
        self._limit_s, self._pause_s, self.due_at = watchdog_s, watchdog_s / LOOKS, 0.0

    def tend(self, now: float) -> None:
        """Look at each child, and kill those that stand still."""
        in_time = now - self._looked_at <= LATE * self._pause_s
        self._looked_at, self.due_at = now, now + self._pause_s
        before, self._seen = self._seen if in_time else {}, {}
        for child in self._children:
            if not child.registered or child.cut_off:
                continue
            fetches_not_s = self._standstill_s((child, "fetcher"), child.board.beat, before, now)
            commits_not_s = self._standstill_s((child, "committer"), child.board.commit_beat, before, now)
            idle = not child.board.running()
            if idle and fetches_not_s > self._limit_s:
                self._replace(child, "took no step", fetches_not_s)
            elif commits_not_s > self._limit_s and (idle or fetches_not_s < self._limit_s / 2):
                self._replace(child, "committed nothing", commits_not_s)

    def _standstill_s(
        self, who: tuple[Child, str], step: float, before: dict[tuple[Child, str], tuple[float, float]], now: float
    ) -> float:
        """For how long this has been its last step, as far as it was seen; 0 for none."""
        if not step:
            return 0.0
        last, since = before.get(who, (step, now))
        since = since if step == last else now
        self._seen[who] = (step, since)
        return now - since

    def _replace(self, child: Child, what: str, for_s: float) -> None:
        log.error("child %d (pid %d) %s for %.0f s: replaced", child.index, child.pid, what, for_s)
        child.cut()
