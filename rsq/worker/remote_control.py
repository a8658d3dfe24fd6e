"""A worker's side of `rsq inspect` and `rsq control`: it tells what it is and does, and hears what is wished of it.

Both are done after each renewal of the leases, by a request of its own: what becomes of that does not touch them. In
between the bell asks for one more.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Iterable, Mapping

from rsq import keys
from rsq.broker.connection import Endpoint, Link
from rsq.broker.doorbell import Doorbell
from rsq.broker.wire import Argument
from rsq.broker.worker_wishes import Wish
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.settings import Settings
from rsq.worker.listing import Listing
from rsq.worker.portrait import Member, Portrait

log = logging.getLogger("rsq.worker")


class RemoteControl:
    """Of one worker.

    partitions  of its queues
    rung        is told when there is something to see; see `Doorbell`

    wish     what was seen last
    news     it was seen for the first time: another report is to tell at once that it was, and what came of it
    answers  the server did when it was last told something
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout_s: float,
        settings: Settings,
        worker_id: str,
        partitions: Mapping[str, int],
        portrait: Portrait,
        selector: selectors.BaseSelector,
        rung: Callable[[bool], None],
    ) -> None:
        endpoint = endpoint.at(settings.namespace)
        self._portrait = portrait
        self._bell = Doorbell(endpoint, keys.wish(settings.namespace, worker_id), timeout_s, selector, rung)
        link = Link(endpoint, timeout_s)
        self._listing = Listing(link, settings, worker_id, partitions, portrait.constant)
        self._unlisted: set[str] = set()
        self.wish = Wish()
        self.news = False
        self.answers = False

    def change(self, **constant: Argument) -> None:
        """See `Listing.change`."""
        self._listing.change(**constant)

    def tell(self, members: Iterable[Member], wanted: int, stopping: bool, done_before: int = 0) -> None:
        """Tell how the worker is, see `Portrait.report`, and see what is wished of it. Raises BrokerUnavailable.

        A full server takes no report, and the one that lists the workers may be away where others that hold the queues
        are not: that is said, and the worker goes on.
        """
        report = self._portrait.report(members, wanted, stopping, self.wish.serial, done_before)
        self.news = self.answers = False
        try:
            wish = self._listing.tell(report)
        except BrokerError as error:
            # Perhaps the server is another one by now.
            self._bell.take_down()
            if str(error) not in self._unlisted:
                log.warning("this worker cannot be listed: %s", error)
                self._unlisted.add(str(error))
            if isinstance(error, BrokerUnavailable):
                raise
            return
        if self._unlisted:
            log.info("this worker is listed again")
            self._unlisted.clear()
        self.answers = True
        self._bell.hang()
        self.news = wish.serial != self.wish.serial
        self.wish = wish

    def leave(self) -> None:
        """See `Listing.leave`."""
        self._listing.leave()

    def end(self) -> None:
        """Hear nothing any more."""
        self._bell.take_down()
        self._listing.close()
