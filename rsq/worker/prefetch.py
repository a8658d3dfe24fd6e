"""How much work to hold ahead, from measured run times. Pure.

A child keeps about `prefetch_ms` of work ahead: hundreds of tasks that take microseconds, and exactly none of those
that take longer than that, so that a message never waits behind a long task while another worker idles.
"""

from __future__ import annotations

MOST_AHEAD = 1000
"""Messages held ahead at most, however short they are."""

GROWTH = 8
"""The number held ahead grows by this factor at most from one look to the next: one odd measurement does no harm."""

WEIGHT = 0.5
"""Weight of the newest measurements in the moving average."""


class Prefetch:
    """The moving average of one child's run times, and what follows from it."""

    def __init__(self, prefetch_ms: int, slots: int) -> None:
        self._ahead_s = prefetch_ms / 1000
        self._slots = slots
        self._mean_s: float | None = None
        self._seen = (0, 0.0)
        self.ahead = 0
        """How many messages to hold beyond those that run."""

    def update(self, done: int, busy_s: float) -> int:
        """Take over the totals of all tasks so far (their number and summed run time); gives the new `ahead`."""
        number, time_s = done - self._seen[0], busy_s - self._seen[1]
        if number > 0:
            self._seen = (done, busy_s)
            mean_s = time_s / number
            self._mean_s = mean_s if self._mean_s is None else self._mean_s + WEIGHT * (mean_s - self._mean_s)
            wanted = int(self._slots * self._ahead_s / max(self._mean_s, 1e-7))
            self.ahead = min(wanted, MOST_AHEAD, max(1, self.ahead * GROWTH))
        return self.ahead
