"""How much work to hold ahead, from measured run times and sizes. Pure.

A child keeps up to `prefetch_ms` of work ahead: hundreds of tasks that take microseconds, and exactly none of those
that take longer than that, so that a message never waits behind a long task while another worker idles. Where now and
then one turns out long, it keeps so few that hardly any have to be handed back. Of large messages it keeps no more than
so many bytes, however short they are.
"""

from __future__ import annotations

MOST_AHEAD = 1000
"""Messages held ahead at most, however short they are."""

BYTES_AHEAD = 8 * 1024 * 1024
"""Bytes of arguments held ahead at most, by the sizes seen so far."""

PAGE = 500
"""Messages asked for at once at most: their sizes are known only when they are here."""

SIZES = 100
"""So many messages say how large they are on the whole."""

GROWTH = 8
"""The number held ahead grows by this factor at most from one look to the next: one odd measurement does no harm."""

WASTE = 0.015
"""The share of tasks for which a message may be handed back because one turned out long: less is held ahead then."""

WINDOW = 10_000
"""What was seen this many tasks ago counts half."""

SHORT_S = 0.001
"""Of tasks that take so long one may always be held ahead, and with the square more of shorter ones: fetching them one
by one costs more than handing some back."""

WEIGHT = 0.5
"""Weight of the newest measurements in the moving average."""


class Prefetch:
    """The moving average of one child's run times, and what follows from it.

    lanes  that share what the child holds: each has as much of it, so that a busy one leaves room to the others
    """

    def __init__(self, prefetch_ms: int, slots: int, lanes: int = 1) -> None:
        self._ahead_s = prefetch_ms / 1000
        self._slots = slots
        self._lanes = lanes
        self._mean_s: float | None = None
        self._seen = (0, 0.0)
        self._tasks = self._stuck = 0.0
        self._mean_bytes: float | None = None
        self._fitting = BYTES_AHEAD // lanes
        self.ahead = 0
        """How many messages the child is to hold beyond those that run."""

    def update(self, done: int, busy_s: float) -> int:
        """Take over the totals of all tasks so far (their number and summed run time); gives this lane's share of the
        new `ahead`.
        """
        number, time_s = done - self._seen[0], busy_s - self._seen[1]
        if number > 0:
            self._seen = (done, busy_s)
            mean_s = time_s / number
            self._mean_s = mean_s if self._mean_s is None else self._mean_s + WEIGHT * (mean_s - self._mean_s)
            wanted = int(self._slots * self._ahead_s / max(self._mean_s, 1e-7))
            self.ahead = min(wanted, MOST_AHEAD, max(1, self.ahead * GROWTH), self._affordable(number, self._mean_s))
        return min(-(-self.ahead // self._lanes), self._fitting)

    def low_water(self, ahead: int) -> int:
        """With how many left more is asked for; later where others have work meanwhile, and then more at once."""
        return ahead // (1 + self._lanes)

    def saw(self, number: int, size_bytes: int) -> None:
        """So many messages came, with so many bytes in all."""
        mean_bytes = size_bytes / number
        if self._mean_bytes is None:
            self._mean_bytes = mean_bytes
        self._mean_bytes += min(1.0, number / SIZES) * (mean_bytes - self._mean_bytes)
        self._fitting = int(BYTES_AHEAD / self._lanes / max(self._mean_bytes, 1.0))

    @property
    def page(self) -> int:
        """How many messages to ask for at once."""
        return max(1, min(PAGE, self._fitting))

    def stuck(self) -> None:
        """All slots run what turned out long: what was held ahead goes back."""
        self._stuck += 1

    def _affordable(self, number: int, mean_s: float) -> int:
        """How many may go back each time that happens."""
        fading = 0.5 ** (number / WINDOW)
        self._tasks, self._stuck = self._tasks * fading + number, self._stuck * fading
        return int(max((SHORT_S / max(mean_s, 1e-7)) ** 2, WASTE * self._tasks / max(1.0, self._stuck)))
