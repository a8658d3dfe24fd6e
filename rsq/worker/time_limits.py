"""Time limits inside a child: one thread watches the clock of the bodies that have a limit, and raises in them.

The soft limit is always raised here. The hard one is the supervisor's where a child runs one body alone: it reads the
deadline on the board and kills the child. Where other bodies would die with it (threads, asyncio), or nobody could kill
it (solo), it is raised in the body first, again and again, and only after a grace the supervisor kills the process.
A body that holds the GIL holds up this thread, too, but never the supervisor.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from rsq.calls.message import Delivery
from rsq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from rsq.task import Task
from rsq.worker.board import Slot
from rsq.worker.interrupt import Interrupt

GRACE_S = 5.0
"""So long after its hard limit a body that shares its process may still run before that process is killed."""

REPEAT_S = 1.0
"""Wait before the hard limit is raised again in a body that has caught it."""

LONGEST_WAIT_S = 3600.0
"""What a wait may be given."""


def exceeded(limit_s: float) -> TimeLimitExceeded:
    """The error of an attempt that passed its hard limit."""
    return TimeLimitExceeded(f"ran longer than its time_limit of {limit_s:g} s")


class Watch:
    """The clock of one child. Its thread begins with the first body that has a limit.

    kills  a body is alone in its process, and the supervisor kills it at its hard limit
    """

    def __init__(self, kills: bool) -> None:
        self.kills = kills
        self._running: set[Timed] = set()
        self._wake_at = math.inf
        self._bell = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, timed: Timed) -> None:
        """A body begins."""
        self._running.add(timed)
        if self._thread is None:
            self._start()
        if timed.next_at < self._wake_at:
            self._bell.set()

    def discard(self, timed: Timed) -> None:
        """It has ended. The thread finds out by itself: to wake it would cost more than it saves."""
        self._running.discard(timed)

    def close(self) -> None:
        """Nothing is watched any more."""
        self._closed = True
        self._bell.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rsq-time-limits", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._bell.clear()
            self._wake_at = math.inf  # whoever begins meanwhile rings
            now = time.monotonic()
            for timed in tuple(self._running):
                if timed.next_at <= now:
                    timed.raise_in_body(now)
            self._wake_at = min((timed.next_at for timed in tuple(self._running)), default=math.inf)
            self._bell.wait(max(0.0, min(self._wake_at - time.monotonic(), LONGEST_WAIT_S)))


class Timed:
    """One body with a limit, while it runs.

    next_at  when something is to be raised in it (monotonic)
    error    what was raised last, or None
    """

    def __init__(
        self, watch: Watch, interrupt: Interrupt, slot: Slot, delivery: Delivery, hard_s: float, soft_s: float
    ) -> None:
        self._watch = watch
        self._interrupt = interrupt
        self._slot = slot
        self._delivery = delivery
        self._hard_s = hard_s
        self._soft_s = soft_s
        now = time.monotonic()
        self._hard_at = math.inf if watch.kills else now + hard_s
        self.next_at = min(now + soft_s, self._hard_at)
        self.error: BaseException | None = None
        if hard_s < math.inf:
            slot.limit(now + hard_s + (0.0 if watch.kills else GRACE_S), hard_s)
        if self.next_at < math.inf:
            watch.add(self)

    def raise_in_body(self, now: float) -> None:
        """A limit is reached. In the thread of the watch."""
        if now >= self._hard_at:
            self.next_at = now + REPEAT_S
            self._delivery.overdue_s = self._hard_s
            self.error = exceeded(self._hard_s)
        else:
            self.next_at = self._hard_at
            self.error = SoftTimeLimitExceeded(f"has run for its soft_time_limit of {self._soft_s:g} s")
        self._interrupt.throw(self._delivery, self.error, again=True)

    def begin(self) -> None:
        """In the body's place: raise what came too early to reach it."""
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """The body has ended by itself. Raises TimeLimitExceeded if it was told to end before."""
        self._leave()
        if self._delivery.overdue_s:
            raise exceeded(self._hard_s)

    def meant(self, error: BaseException) -> BaseException:
        """The body has ended with this error: its hard limit counts more, whatever it has made of that."""
        self._leave()
        if not self._delivery.overdue_s or isinstance(error, TimeLimitExceeded):
            return error
        meant = exceeded(self._hard_s)
        meant.__context__ = error
        return meant.with_traceback(error.__traceback__)

    def _leave(self) -> None:
        self._slot.unlimit()
        self._watch.discard(self)


class Clock:
    """The limits of the bodies of one lane."""

    def __init__(self, watch: Watch, interrupt: Interrupt, slot: Slot) -> None:
        self._watch = watch
        self._interrupt = interrupt
        self._slot = slot

    def start(self, task: Task[..., Any], delivery: Delivery) -> Timed | None:
        """A body begins; None if it has no limit."""
        meta = delivery.meta
        hard_s, soft_s = task.timelimit
        hard_s, soft_s = meta.get("time_limit", hard_s), meta.get("soft_time_limit", soft_s)
        if hard_s is None and soft_s is None:
            return None
        delivery.timelimit = (hard_s, soft_s)
        return Timed(
            self._watch,
            self._interrupt,
            self._slot,
            delivery,
            math.inf if hard_s is None else hard_s,
            math.inf if soft_s is None else soft_s,
        )
