"""A worker's side of `rsq inspect` and `rsq control`: it tells what it is and does, and hears what is wished of it.

Both are done after each renewal of the leases, by a talk that is not waited for: a server that is away, which may be
another one than those of the leases, delays nothing. In between the bell asks for one more.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Iterable, Mapping

from rsq import keys
from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.doorbell import Doorbell
from rsq.broker.stepped import SteppedLink
from rsq.broker.wire import Argument
from rsq.broker.worker_wishes import Wish
from rsq.errors import BrokerError
from rsq.settings import Settings
from rsq.worker.listing import Listing
from rsq.worker.portrait import Member, Portrait
from rsq.worker.rounds import LINK_TIMEOUT_S

log = logging.getLogger("rsq.worker")


class RemoteControl:
    """Of one worker.

    partitions  of its queues
    selector    calls what stands in it when that is ready
    rung        is told when there is something to see; see `Doorbell`
    heard       is called when something was told, and `wish` is what is wished now

    wish     what was seen last
    news     it was seen for the first time: another report is to tell at once that it was, and what came of it
    answers  the server did when it was last told something
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        worker_id: str,
        partitions: Mapping[str, int],
        portrait: Portrait,
        selector: selectors.BaseSelector,
        rung: Callable[[bool], None],
        heard: Callable[[], None],
    ) -> None:
        endpoint = endpoint.at(settings.namespace)
        self._portrait = portrait
        self._heard = heard
        self._bell = Doorbell(endpoint, keys.wish(settings.namespace, worker_id), LINK_TIMEOUT_S, selector, rung)
        self._link = SteppedLink(endpoint, selector)
        self._listing = Listing(settings, worker_id, partitions, portrait.constant)
        self._unlisted: set[str] = set()
        self._next: Callable[[], None] | None = None
        self.wish = Wish()
        self.news = False
        self.answers = True

    @property
    def due_at(self) -> float:
        """When `tend` is to be called (monotonic)."""
        return min(self._link.due_at, self._bell.due_at)

    def tend(self, now: float) -> None:
        """End what takes too long."""
        self._link.tend(now)
        self._bell.tend(now)

    def change(self, **constant: Argument) -> None:
        """See `Listing.change`."""
        self._listing.change(**constant)

    def tell(self, members: Iterable[Member], wanted: int, stopping: bool, done_before: int = 0) -> None:
        """Begin to tell how the worker is, see `Portrait.report`; once what is being told now has been.

        A full server takes no report, and the one that lists the workers may be away where others that hold the queues
        are not: that is said, and the worker goes on.
        """
        if self._link.busy:
            self._next = lambda: self.tell(members, wanted, stopping, done_before)
            return
        report = self._portrait.report(members, wanted, stopping, self.wish.serial, done_before)
        self._link.follow(self._listing.telling(report), Deadline(LINK_TIMEOUT_S), self._told)

    def settle(self) -> None:
        """Wait until what is being told has been, or cannot be."""
        self._link.wait()

    def leave(self) -> None:
        """See `Listing.leaving`. A server that is away is not waited for once more."""
        self._next = None
        if self.answers:
            self.settle()  # what arrived behind it would list this worker again
        if not self.answers:
            log.warning("could not sign off, for the server did not answer when it was last asked")
            return
        self._link.follow(self._listing.leaving(), Deadline(LINK_TIMEOUT_S), self._left)
        self._link.wait()

    def end(self) -> None:
        """Tell and hear nothing any more."""
        self._next = None
        if self.answers:
            self.settle()
        self._bell.take_down()
        self._link.close()

    def _told(self, result: Wish | BrokerError) -> None:
        self.answers = not isinstance(result, BrokerError)
        if isinstance(result, BrokerError):
            # Perhaps the server is another one by now.
            self._bell.take_down()
            if str(result) not in self._unlisted:
                log.warning("this worker cannot be listed: %s", result)
                self._unlisted.add(str(result))
        else:
            if self._unlisted:
                log.info("this worker is listed again")
                self._unlisted.clear()
            self._bell.hang()
            self.news = result.serial != self.wish.serial
            self.wish = result
            self._heard()
        tell, self._next = self._next, None
        if tell is not None and not self._link.busy:
            tell()

    def _left(self, result: BrokerError | None) -> None:
        if result is not None:
            log.warning("could not sign off: %s", result)
