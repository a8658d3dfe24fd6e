"""What a worker says at its start of queues that it leaves to others: with a wrong -Q nobody ever reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rsq.app import BaseApp

log = logging.getLogger("rsq.worker")


def warn_of_unread(app: BaseApp, names: Sequence[str]) -> None:
    """Log the queues to which calls of the app's tasks go, and that are not among `names`."""
    unread = [name for name in app.queues() if name not in names]
    if unread:
        log.warning(
            "calls of these tasks go to %s, too, which this worker does not read: run another one for that, or say "
            "-Q %s",
            " and ".join(unread),
            ",".join([*names, *unread]),
        )
