"""Links for any number of threads: each call borrows one."""

from __future__ import annotations

from time import monotonic

from rsq.broker.connection import Endpoint, Link
from rsq.broker.forks import renew_in_child

IDLE_S = 10.0
"""A link that nobody of a pool's threads needed for so long is closed."""


class LinkPool:
    """Links for any number of threads: each call borrows one. After a fork the child starts with none."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._free: list[Link] = []
        self._process = object()  # a link that was lent before the fork is not taken back

    def take(self) -> Link:
        try:
            return self._free.pop()
        except IndexError:
            link = Link(self.endpoint, self.timeout_s)
            link.lender = self._process
            return link

    def give_back(self, link: Link) -> None:
        if link.lender is not self._process:
            return
        link.idle_since = monotonic()
        self._free.append(link)
        if len(self._free) > 1 and link.idle_since - self._free[0].idle_since > IDLE_S:
            # The first of them has lain there for longest.
            try:
                self._free.pop(0).close()
            except IndexError:
                pass  # another thread was quicker

    def close(self) -> None:
        """Close the links that are not in use."""
        free, self._free = self._free, []
        for link in free:
            link.close()
