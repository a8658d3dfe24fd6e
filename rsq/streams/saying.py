"""What a thread that works beside the calls has to say: once, and not again for a while."""

from __future__ import annotations

import logging
from time import monotonic

from rsq.errors import BrokerError

log = logging.getLogger("rsq.worker")

SAY_S = 60.0
"""The same is told so often."""


class Saying:
    """Warnings of one thread."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def warn(self, said: str, error: Exception | None = None) -> None:
        """Log it, and not again for a while.

        error  why: with its traceback, where it is a fault of rsq's own
        """
        now = monotonic()
        if now < self._said.get(said, 0.0):
            return
        self._said = {each: until for each, until in self._said.items() if now < until} | {said: now + SAY_S}
        log.warning("%s", said, exc_info=None if isinstance(error, BrokerError) else error)
