"""What a child knows of its queues from its last looks at them, and until when it may rely on that. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rsq.broker.worker_queue import LONGEST_BLOCK_MS

SWEEP_S = LONGEST_BLOCK_MS / 1000
"""The longest time between two looks for due messages, orphans and whatever else concerns an idle worker."""

WHOLE_SWEEP_S = 30.0
"""The longest time without a whole fetch, whatever the lighter looks say."""

BUSY_SWEEP_S = 0.1
"""The same while there is a backlog, at whose end an entry that would wake the worker is not read for long."""

NEVER = float("inf")


class Outlook:
    """Three kinds of looks: a whole fetch tells all; a blocking read tells whether anything has changed since; a plain
    read brings more of a backlog, and nothing else. Times are of the monotonic clock.

    backlog  there is more than was read
    paused   every queue is paused
    in_use   priorities in use by queue, the most urgent first; none = paused
    delayed  names of the queues that hold delayed messages
    """

    def __init__(self) -> None:
        self.in_use: dict[str, Sequence[int]] = {}
        self.delayed: set[str] = set()
        self.backlog = True
        self.paused = False
        self._look_at = self._whole_at = self._plain_until = 0.0
        self._due_at = NEVER

    @property
    def sweep_at(self) -> float:
        """When to look next, if nothing happens."""
        return min(self._look_at, self._due_at)

    @property
    def waits_for_due(self) -> bool:
        """A delayed message is due before the next look would come."""
        return self._due_at < self._look_at

    def wants_fetch(self, now: float) -> bool:
        return self.backlog or now >= self.sweep_at

    def allows_plain_read(self, now: float) -> bool:
        """There is a backlog, and a short while ago there was nothing else to be seen to."""
        return self.backlog and now < min(self._plain_until, self.sweep_at)

    # -- what was seen

    def fetching(self, now: float) -> None:
        """A whole fetch of all queues begins."""
        self._look_at, self._whole_at, self._due_at = now + SWEEP_S, now + WHOLE_SWEEP_S, NEVER
        self._plain_until = 0.0

    def saw(self, queue: str, priorities: Sequence[int], delayed: bool) -> bool:
        """The fetch of one queue. True when that is not what was known of it."""
        if self.in_use.get(queue) == priorities and (queue in self.delayed) == delayed:
            return False
        self.in_use[queue] = priorities
        (self.delayed.add if delayed else self.delayed.discard)(queue)
        return True

    def fetched(self, now: float, backlog: bool, paused: bool, plain: bool) -> None:
        """That fetch has ended.

        plain  the backlog has no urgent messages, so it may be read without whole fetches for a while
        """
        self.backlog, self.paused = backlog, paused
        if backlog and plain:
            self._plain_until = now + BUSY_SWEEP_S

    def read_up(self) -> None:
        """A plain read found less than was asked for, or something besides: what it left shows only in a fetch."""
        self._plain_until = 0.0

    def calm(self, looked_at: float) -> None:
        """A blocking read saw nothing of which the last fetch does not know."""
        self._look_at, self._due_at = min(looked_at + SWEEP_S, self._whole_at), NEVER

    def due(self, due_at: float) -> None:
        """The next delayed message of some queue is due then."""
        self._due_at = min(self._due_at, due_at)

    def woken(self) -> None:
        """Somebody asked that the queues be looked at."""
        self._look_at = 0.0
