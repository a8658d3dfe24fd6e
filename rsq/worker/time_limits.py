"""Time limits inside a child: how long one body may run, and what is thrown into it when.

The soft limit is always raised here. The hard one is the supervisor's where a child runs one body alone: it reads the
deadline on the board and kills the child. Where other bodies would die with it (threads, asyncio), or nobody could kill
it (solo), it is raised in the body first, again and again, and only after a grace the supervisor kills the process.
A body that holds the GIL holds up the thread of the watch, too, but never the supervisor.
"""

from __future__ import annotations

import math
import time
from typing import Any

from rsq.calls.message import Delivery
from rsq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from rsq.task import Task
from rsq.worker.board import Slot
from rsq.worker.watch import AGAIN_S, Throw, Watch

GRACE_S = 5.0
"""So long after its hard limit a body that shares its process may still run before that process is killed."""

REPEAT_S = 1.0
"""Wait before the hard limit is raised again in a body that has caught it."""


def exceeded(limit_s: float) -> TimeLimitExceeded:
    """The error of an attempt that passed its hard limit."""
    return TimeLimitExceeded(f"ran longer than its time_limit of {limit_s:g} s")


class Limits:
    """The time limits of the bodies of one runner."""

    def __init__(self, watch: Watch, slot: Slot) -> None:
        self._watch = watch
        self._slot = slot

    def start(self, task: Task[..., Any], delivery: Delivery, throw: Throw) -> Timed | None:
        """An attempt begins, and with it the reading of its arguments; None if it has no limit.

        throw  the way into its body
        """
        meta = delivery.meta
        hard_s, soft_s = task.timelimit
        hard_s, soft_s = meta.get("time_limit", hard_s), meta.get("soft_time_limit", soft_s)
        if hard_s is None and soft_s is None:
            return None
        delivery.timelimit = (hard_s, soft_s)
        return Timed(
            self._watch,
            throw,
            self._slot,
            delivery,
            math.inf if hard_s is None else hard_s,
            math.inf if soft_s is None else soft_s,
        )


class Timed:
    """One attempt with a limit. On the board its deadline stands until the outcome is made, too.

    began    since when the limit counts, and so the runtime (as `time.perf_counter`)
    next_at  when something is to be raised in its body (monotonic)
    error    what is raised in it, or was last; None = no limit has been reached
    """

    def __init__(
        self, watch: Watch, throw: Throw, slot: Slot, delivery: Delivery, hard_s: float, soft_s: float
    ) -> None:
        self._watch = watch
        self._throw = throw
        self._delivery = delivery
        self._hard_s = hard_s
        self._soft_s = soft_s
        self.began, now = time.perf_counter(), time.monotonic()
        self._hard_at = math.inf if watch.kills else now + hard_s
        self.next_at = min(now + soft_s, self._hard_at)
        self.error: BaseException | None = None
        if hard_s < math.inf:
            slot.limit(now + hard_s + (0.0 if watch.kills else GRACE_S), hard_s)
        if self.next_at < math.inf:
            watch.add(self)

    def act(self, now: float) -> None:
        """A limit is reached, or has not reached the body yet. In the thread of the watch."""
        if now >= self._hard_at:
            self._hard_at = now + REPEAT_S
            self._delivery.overdue_s = self._hard_s
            self.error = exceeded(self._hard_s)
        elif self.error is None:
            self.error = SoftTimeLimitExceeded(f"has run for its soft_time_limit of {self._soft_s:g} s")
        raised = self._throw(self._delivery, self.error)
        self.next_at = self._hard_at if raised else min(self._hard_at, now + AGAIN_S)

    def end(self) -> None:
        """The body has ended by itself. Raises TimeLimitExceeded if it was told to end before."""
        self._watch.discard(self)
        if self._delivery.overdue_s:
            raise exceeded(self._hard_s)

    def meant(self, error: BaseException) -> BaseException:
        """The body has ended with this error: its hard limit counts more, whatever it has made of that."""
        self._watch.discard(self)
        if not self._delivery.overdue_s or isinstance(error, TimeLimitExceeded):
            return error
        meant = exceeded(self._hard_s)
        meant.__context__ = error
        return meant.with_traceback(error.__traceback__)
