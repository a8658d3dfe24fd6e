"""Tells the host how the worker is: the supervisor's side of the health file."""

from __future__ import annotations

import logging
import os

from rsq.errors import SettingsError
from rsq.worker.children import Children
from rsq.worker.health import ChildHealth, Health, HealthFile
from rsq.worker.lease_keeper import LeaseKeeper
from rsq.worker.leases import RENEWALS
from rsq.worker.part import Part
from rsq.worker.rounds import LINK_TIMEOUT_S

log = logging.getLogger("rsq.worker")


class HealthReport(Part):
    """Does nothing until `soon` is called with a keeper that knows its settings.

    target  what -A or RSQ_APP named
    """

    def __init__(self, worker_id: str, target: str, children: Children, keeper: LeaseKeeper) -> None:
        self._worker_id = worker_id
        self._target = target
        self._children = children
        self._keeper = keeper
        self._file = HealthFile(worker_id)
        self._is_missing = False

    def soon(self) -> None:
        """Something has changed."""
        if self._keeper.settings is not None:
            self.due_at = 0.0

    def tend(self, now: float) -> None:
        """Write the file. Where that cannot be done it is said once: it makes no worker worse."""
        settings, keeper = self._keeper.settings, self._keeper
        assert settings is not None, "it is known from the first hello on"
        pause_s = settings.lease_s / RENEWALS
        self.due_at = now + pause_s
        children = [
            ChildHealth(c.pid, c.registered, c.board.beat, c.board.commit_beat, len(c.board.running()))
            for c in self._children
        ]
        health = Health(
            worker_id=self._worker_id,
            pid=os.getpid(),
            target=self._target,
            app=str(keeper.hello["app"]),
            namespace=settings.namespace,
            at=now,
            every_s=pause_s + LINK_TIMEOUT_S,
            renewed=keeper.renewed,
            lease_s=settings.lease_s,
            stopping=keeper.stopping,
            children=children,
        )
        try:
            self._file.write(health)
            self._is_missing = False
        except (OSError, SettingsError) as error:
            if not self._is_missing:
                log.warning("health file: %s; rsq health knows nothing of this worker", error)
            self._is_missing = True

    def close(self) -> None:
        """The worker ends."""
        self._file.remove()
