"""A worker's side of `rsq inspect` and `rsq control`: it tells what it is and does, and hears what is wished of it.

Both ride on the renewals of the leases. In between the bell asks for one more.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterable, Sequence

from rsq import keys
from rsq.broker.connection import Link
from rsq.broker.doorbell import Doorbell
from rsq.broker.worker_queue import WorkerQueue
from rsq.broker.worker_wishes import Wish
from rsq.errors import BrokerError
from rsq.worker.leases import Leases
from rsq.worker.portrait import Member, Portrait


class RemoteControl:
    """Of one worker.

    rung    is told when there is something to see; see `Doorbell`
    leases  of its consumers
    wish    what was seen last
    news    it was seen for the first time: another report is to tell at once that it was, and what came of it
    """

    def __init__(
        self,
        link: Link,
        queues: Sequence[WorkerQueue],
        worker_id: str,
        portrait: Portrait,
        selector: selectors.BaseSelector,
        rung: Callable[[bool], None],
    ) -> None:
        settings = queues[0].settings
        self._portrait = portrait
        self._bell = Doorbell(link.endpoint, keys.wish(settings.namespace, worker_id), link.timeout_s, selector, rung)
        self.leases = Leases(link, queues, worker_id, portrait.constant)
        self.wish = Wish()
        self.news = False

    def renew(
        self, consumers: Sequence[str], members: Iterable[Member], wanted: int, stopping: bool, done_before: int = 0
    ) -> tuple[float, set[str]]:
        """Renew the leases of `consumers`, with a report; see `Leases.renew` and `Portrait.report`."""
        try:
            renewal = self.leases.renew(
                consumers, self._portrait.report(members, wanted, stopping, self.wish.serial, done_before)
            )
        except BrokerError:
            # Perhaps the server is another one by now.
            self._bell.take_down()
            raise
        self._bell.hang()
        self.news = renewal.wish is not None and renewal.wish.serial != self.wish.serial
        self.wish = renewal.wish or self.wish
        return renewal.until, renewal.lost

    def end(self) -> None:
        """Hear nothing any more."""
        self._bell.take_down()
