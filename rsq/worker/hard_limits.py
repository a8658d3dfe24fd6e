"""Hard time limits, as the supervisor sees them: a child in which a body has passed its deadline is killed.

The deadline is on the board, so it holds whatever the body does to its process. What becomes of the call is decided by
the child that gets it next, by the task's own rules.
"""

from __future__ import annotations

import logging

from rsq.worker.board import Running
from rsq.worker.children import Child, Children
from rsq.worker.part import Part

log = logging.getLogger("rsq.worker")

LOOK_S = 0.5
"""The longest time between two looks. A shorter limit is enforced late by so much at most, a longer one in time."""


class HardLimits(Part):
    """Looks at the board as often as needed."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.due_at = 0.0

    def tend(self, now: float) -> None:
        """Kill whom it concerns."""
        self.due_at = now + LOOK_S
        for child in self._children:
            if child.registered and not child.cut_off:
                self._look(child, now)

    def _look(self, child: Child, now: float) -> None:
        for slot in child.board.slots:
            running = slot.read()
            if running is None or running.deadline is None:
                continue
            if running.deadline > now:
                self.due_at = min(self.due_at, running.deadline)
            elif slot.read() == running:  # else it was just being written
                log.error(
                    "%s ran longer than its time_limit of %g s: killing child %d (pid %d)",
                    running.task_id,
                    running.limit_s,
                    child.index,
                    child.pid,
                )
                child.cut()
                child.cut_for_limit_at = now
                return


def overdue(child: Child) -> list[Running]:
    """The calls of a dead child for which it was killed."""
    moment = child.cut_for_limit_at
    if moment is None:
        return []
    return [each for each in child.board.running() if each.deadline is not None and each.deadline <= moment]
