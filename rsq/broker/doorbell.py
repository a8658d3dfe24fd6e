"""A subscribed connection that only says "look": what there is to see stands in a key, so a lost ring loses nothing.

What comes is thrown away, the answer to SUBSCRIBE too: whatever came before it may have been missed.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable

from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange
from rsq.broker.stepped import SteppedLink
from rsq.broker.wire import packed
from rsq.errors import BrokerError

log = logging.getLogger("rsq.broker")


class Doorbell:
    """Rings by becoming readable: it stands in `selector` as long as it is connected; see `SteppedLink`.

    rung  is called when it has rung, with False when that was the end of the connection
    """

    def __init__(
        self,
        endpoint: Endpoint,
        channel: str,
        timeout_s: float,
        selector: selectors.BaseSelector,
        rung: Callable[[bool], None],
    ) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._rung = rung
        self._link = SteppedLink(endpoint, selector, rung)

    @property
    def due_at(self) -> float:
        """As of `SteppedLink`."""
        return self._link.due_at

    def hang(self) -> None:
        """Connect, unless it is. What fails is tried again with the next call: without a bell the key is read later."""
        if not (self._link.connected or self._link.busy):
            self._link.follow(self._subscribing(), Deadline(self._timeout_s), self._hung)

    def tend(self, now: float) -> None:
        """As of `SteppedLink`."""
        self._link.tend(now)

    def take_down(self) -> None:
        """Drop the connection."""
        self._link.close()

    def _subscribing(self) -> Exchange[None]:
        (reply,) = yield [packed("SUBSCRIBE", self._channel)], None
        if isinstance(reply, BrokerError):
            log.warning("%s cannot be subscribed to: %s", self._channel, reply)

    def _hung(self, result: BrokerError | None) -> None:
        if result is None:
            self._rung(True)
        else:
            log.debug("cannot subscribe to %s: %s", self._channel, result)
