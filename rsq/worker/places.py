"""Sees to it that there is a living child in each place: starts, replaces, adds and takes away children."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from rsq.errors import SettingsError
from rsq.worker.children import Child, Children, how_it_ended
from rsq.worker.hard_limits import overdue
from rsq.worker.hellos import Hellos
from rsq.worker.lease_keeper import LeaseKeeper
from rsq.worker.leases import Retirement
from rsq.worker.part import Backoff, Part
from rsq.worker.process import EXIT_CANNOT_BEGIN
from rsq.worker.retirements import Retirements

log = logging.getLogger("rsq.worker")

RESPAWN_S = (0.05, 10.0)
"""First and longest wait before a child that died young is replaced, or one that cannot be started is tried again."""

YOUNG_S = 5.0
"""A child that dies within this time has died young."""


class Places(Part):
    """All places are filled when `tend` is first called.

    fail       is told why this worker cannot begin: the first child to speak, or to die, was none
    on_change  code is loaded anew when it changes: one child tries it, and where that fails, none until the next change

    closed     no child is started any more
    """

    def __init__(
        self,
        children: Children,
        hellos: Hellos,
        keeper: LeaseKeeper,
        retirements: Retirements,
        fail: Callable[[Exception], None],
        on_change: bool = False,
    ) -> None:
        self.closed = False
        self._children = children
        self._hellos = hellos
        self._keeper = keeper
        self._retirements = retirements
        self._fail = fail
        self._on_change = on_change
        self._tries: Child | None = None
        self._is_tried = True
        self._is_broken = False
        self._backoffs: defaultdict[int, Backoff] = defaultdict(lambda: Backoff(*RESPAWN_S))
        self._vacant: dict[int, float] = dict.fromkeys(children.places, 0.0)

    def __bool__(self) -> bool:
        """Whether a child is still to be started."""
        return bool(self._vacant) and not self.closed

    @property
    def due_at(self) -> float:  # type: ignore[override]
        """When the next child is to be started."""
        return min(self._vacant.values()) if self and self._may_start() else math.inf

    def tend(self, now: float) -> None:
        """Start those that are due."""
        for index, due_at in list(self._vacant.items()):
            if now >= due_at and self._may_start():
                self._spawn(index)

    def _may_start(self) -> bool:
        return self._is_tried or not (self._is_broken or self._tries)

    def _spawn(self, index: int) -> None:
        try:
            child = self._children.spawn(index)
        except OSError as error:
            wait_s = self._backoffs[index].next_s()
            log.error("child %d cannot be started, again in %.1f s: %s", index, wait_s, error)
            self._vacant[index] = time.monotonic() + wait_s
            return
        del self._vacant[index]
        self._hellos.expect(child)
        if not self._is_tried:
            self._tries = child

    def welcome(self, child: Child, hello: dict[str, Any]) -> None:
        """A child has spoken: it is ready, or has an error."""
        is_first = self._keeper.settings is None
        if child is self._tries:
            self._tries = None
            self._is_tried, self._is_broken = "error" not in hello, "error" in hello
        if not hello or self.closed:
            return
        if "error" not in hello:
            self._keeper.welcome(hello)
        elif is_first:
            self._fail(SettingsError(hello["error"]))
        else:
            until = "; it is tried again when the code changes" if self._is_broken else ""
            log.error("a new child cannot load the app: %s%s", hello["error"], until)

    def renew_code(self) -> None:
        """The code has changed: all children make room for new ones, which load it as it is now."""
        self._tries, self._is_tried, self._is_broken = None, not self._on_change, False
        self._vacant = dict.fromkeys(self._vacant, 0.0)
        for child in self._children:
            child.dismiss()

    def resize(self, wanted: int) -> None:
        """Have so many places, as far as there is room."""
        before = len(self._children.places)
        self._vacant |= dict.fromkeys(self._children.resize(wanted), 0.0)
        self._vacant = {index: at for index, at in self._vacant.items() if index in self._children.places}
        if len(self._children.places) != before:
            log.info("told by rsq control: %d children in place of %d", len(self._children.places), before)

    def reap(self) -> None:
        """Hand on what dead children held, and see to their successors."""
        for child, code in self._children.reap():
            self._hellos.last_words(child)
            self._mourn(child, code)

    def _mourn(self, child: Child, code: int) -> None:
        self._keeper.soon()
        # An end is in order when the child has said so. Of what we cut off ourselves nothing is a suspect; but a call
        # that was taken early will not be run again, so its caller must hear of it.
        how = "" if child.cut_off or (child.board.ended and code == 0) else how_it_ended(code)
        late = overdue(child)
        running = [entry for entry in child.board.running() if entry not in late and (how or entry.taken)]
        if child.registered:
            for lane, consumer in enumerate(child.consumers):
                self._retirements.add(Retirement(consumer, how, running, late, lane))
        elif self._keeper.settings is None and not child.cut_off and not self.closed:
            self._fail(SettingsError(f"the child died while it loaded the app ({how})"))
        if how and code != EXIT_CANNOT_BEGIN and not (self.closed and not child.registered):
            what = f", while it ran {', '.join(entry.task_id for entry in running)}" if running else ""
            log.error("child %d (pid %d) died: %s%s", child.index, child.pid, how, what)
        if child is self._tries:
            self._tries, self._is_broken = None, True
        if child.index not in self._children.places:
            return
        now, backoff = time.monotonic(), self._backoffs[child.index]
        young = now - child.started < YOUNG_S and how and not running and not late
        if not young:
            backoff.reset()
        self._vacant[child.index] = now + (backoff.next_s() if young else 0.0)
