"""The beat: looks for what is due next, fires it on time, and tells the others that it runs.

It holds nothing that another beat does not find in Redis, and any number of them may run: who is first fires a slot,
the others hear that it is done. Its caller owns the loop.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from rsq.app import BaseApp
from rsq.beat.canvases import tasks_of
from rsq.beat.control import Schedules
from rsq.beat.entry import Record, record_of, slot_id, unpack_record
from rsq.beat.store import Fired, LastRun, Store
from rsq.beat.sync import sync
from rsq.broker.server_check import check_server
from rsq.calls.due import MISSED_MS
from rsq.clock import ServerClock
from rsq.errors import BrokerError, DecodeError

log = logging.getLogger("rsq.beat")

LOOK_EVERY_S = 0.8
"""How soon a schedule that was added or changed at run time is seen."""

AHEAD_MS = 1500
"""How far ahead a look sees; what comes in this time is fired without another look before it."""

PAGE = 2000
"""Schedules that one look brings; those that are set aside do not count."""

ASIDE_S = 60.0
"""A schedule that cannot be read is looked at again after this: it may have been written anew."""

BEAT_TTL_MS = 10_000
"""A beat that says nothing for so long does not run any more, for those who ask whose code counts."""

VERIFY_EVERY_S = 5.0
"""The schedules of the code are compared with the server's after every change there, but no more often than this."""

AGAIN_S = 0.5
"""Wait before the server is asked again after a fault."""


@dataclass
class _Planned:
    """A schedule that is due within the time that the last look covers.

    next_ms  the slot after `due_ms`: worked out ahead, so that it takes no time when that one is due
    """

    record: Record
    due_ms: int
    next_ms: int

    def slots(self, now_ms: int) -> list[int]:
        """What is to be fired now: nearly always the one slot that has just come."""
        if self.next_ms > now_ms and now_ms - self.due_ms <= MISSED_MS:
            return [self.due_ms]
        return self.record.slots(self.due_ms, now_ms)


class Beat:
    """One beat. `begin` once, then `step` again and again, then `end`."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app
        self._store = Store(app.client)
        self._clock = ServerClock()
        self._id = ""
        self._wanted: dict[str, Record] = {}
        self._verified = (-1, 0.0)  # version of the schedules, and when
        self._plan: dict[str, _Planned] = {}
        self._horizon_ms = 0
        self._look_at = 0.0
        self._known: dict[str, tuple[bytes, Record]] = {}
        self._aside: dict[str, float] = {}
        self._said: dict[str, int] = {}
        self._away = False

    def begin(self) -> str:
        """Look at the server, write the schedules of the code; gives the line that reports it.

        Raises SettingsError for a schedule that cannot be sent, BrokerError.
        """
        app = self._app
        with app.client.link() as link:
            server = check_server(link, app.settings)
            seconds, micros = link.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        self._clock.set(now_ms)
        for entry in app.part(Schedules).declared.values():
            for unknown in sorted(tasks_of(entry.task, entry.args) - app.tasks.keys()):
                log.warning("schedule %r calls %s, a task that this app does not have", entry.name, unknown)
            self._wanted[entry.name] = record_of(app, entry, app.name, now_ms)
        self._id = f"{now_ms} {os.urandom(3).hex()} {socket.gethostname()}-{os.getpid()} {app.name}"
        self._store.check_in(self._id, now_ms + BEAT_TTL_MS, now_ms)
        number = sync(self._store, app.name, self._wanted, now_ms)
        self._verified = (-1, time.monotonic())
        return (
            f"rsq beat {socket.gethostname()}-{os.getpid()}: app {app.name}, schedules: {len(self._wanted)} in its "
            f"code, {number} in all; server: {server}"
        )

    def step(self) -> float:
        """Do what is to be done now; gives the seconds until there is more. A fault of the server is an event."""
        try:
            if time.monotonic() >= self._look_at:
                self._look()
            self._fire()
        except BrokerError as error:
            if not self._away:
                log.warning("%s; trying again until it answers", error)
            self._away = True
            self._plan.clear()
            self._look_at = 0.0
            return AGAIN_S
        if self._away:
            log.info("the server answers again")
            self._away = False
        now_ms = self._clock.now_ms()
        next_s = min((planned.due_ms - now_ms for planned in self._plan.values()), default=AHEAD_MS) / 1000
        return max(0.0, min(next_s, self._look_at - time.monotonic()))

    def end(self) -> None:
        """Say that this beat runs no more."""
        try:
            self._store.check_out(self._id)
        except BrokerError as error:
            log.warning("could not sign off: %s", error)
        self._app.close()

    def run(self, wait: Callable[[float], bool]) -> None:
        """Step until `wait`, which is given seconds, says that it is to stop."""
        pause_s = 0.0
        while not wait(pause_s):
            pause_s = self.step()
        self.end()

    # -- what is next

    def _look(self) -> None:
        now_ms = self._clock.now_ms()
        beats, version, now_ms = self._store.check_in(self._id, now_ms + BEAT_TTL_MS, now_ms)
        self._clock.set(now_ms)
        self._look_at = time.monotonic() + LOOK_EVERY_S
        if self._id == youngest(beats, self._app.name):
            self._verify(version, now_ms)
        self._aside = {name: until for name, until in self._aside.items() if until > time.monotonic()}
        most = PAGE + len(self._aside)
        rows = self._store.due(now_ms + AHEAD_MS, most)
        full = len(rows) == most
        self._horizon_ms = rows[-1][1] if full else now_ms + AHEAD_MS
        if full:
            # There is more than this in that time: look again as soon as these are fired.
            self._look_at = time.monotonic() + max(0, self._horizon_ms - now_ms) / 1000
        rows = [row for row in rows if row[0] not in self._aside]
        before, self._plan = self._plan, {}
        for (name, due_ms), kept in zip(rows, self._store.raw([name for name, _ in rows]), strict=True):
            record = self._record(name, kept)
            planned = before.get(name)
            if planned is not None and planned.record is record and planned.due_ms == due_ms:
                self._plan[name] = planned
            elif record is not None:
                self._plan[name] = _Planned(record, due_ms, record.schedule.next_after(due_ms))

    def _record(self, name: str, kept: bytes | None) -> Record | None:
        """The record, ready to be fired; None when there is none."""
        if kept is None:
            self._known.pop(name, None)
            return None
        packed, record = self._known.get(name, (b"", None))
        if packed != kept or record is None:
            try:
                record = unpack_record(name, kept)
            except DecodeError as error:
                if self._said.get(name) != hash(kept):
                    log.error("%s", error)
                self._said[name] = hash(kept)
                self._aside[name] = time.monotonic() + ASIDE_S
                return None
            if record.pending:
                self._store.settle(record)
                self._look_at = 0.0
                return None
            self._known[name] = (kept, record)
        return None if record.paused else record

    def _verify(self, version: int, now_ms: int) -> None:
        """Write the schedules of the code again where somebody has changed them."""
        verified, when = self._verified
        now = time.monotonic()
        if version != verified and now - when >= VERIFY_EVERY_S:
            sync(self._store, self._app.name, self._wanted, now_ms)
            # No version: the schedules were lost, and may be lost again before this beat has seen a new one.
            self._verified = (version or -1, now)

    # -- firing

    def _fire(self) -> None:
        now_ms = self._clock.now_ms()
        ready = [planned for planned in self._plan.values() if planned.due_ms <= now_ms]
        if not ready:
            return
        slots = [(each.record, slot) for each in ready for slot in each.slots(now_ms)]
        dues = {
            each.record.name: each.next_ms if each.next_ms > now_ms else each.record.schedule.next_after(now_ms)
            for each in ready
        }
        last: dict[str, LastRun] = {}
        for fired in self._store.fire(slots, now_ms):
            self._take_in(fired, dues, last)
        rows = []
        for each in ready:
            name = each.record.name
            due_ms = dues.get(name)
            rows.append((each.record, due_ms, last.get(name)))
            if due_ms is not None and due_ms <= self._horizon_ms:
                each.due_ms, each.next_ms = due_ms, each.record.schedule.next_after(due_ms)
            else:
                del self._plan[name]
        self._store.advance(rows)

    def _take_in(self, fired: Fired, dues: dict[str, int], last: dict[str, LastRun]) -> None:
        """What an answer means for the schedule's next slot, and for its last run."""
        record, slot_ms = fired.record, fired.slot_ms
        match fired.verdict:
            case "fired":
                late_ms = self._clock.now_ms() - slot_ms
                log.debug("fired schedule %r, %d ms late: %s", record.name, late_ms, fired.detail)
                last[record.name] = LastRun(slot_ms, record.queue, fired.detail)
            case "done":
                if record.name not in last and fired.detail == str(slot_ms):
                    last[record.name] = LastRun(slot_ms, record.queue, slot_id(record.name, slot_ms))
            case "early":
                dues[record.name] = min(slot_ms, dues.get(record.name, slot_ms))
            case "duplicate" | "full" | "paused":
                why = {
                    "duplicate": "its dedupe key is taken by",
                    "full": "the queue is full, it holds",
                    "paused": "the queue is paused and refuses",
                }[fired.verdict]
                log.warning("schedule %r passes a slot over: %s %s", record.name, why, fired.detail)
            case _:
                # A newer definition, or a server that refuses: the next look tells.
                if fired.verdict == "refused":
                    log.error("schedule %r could not be fired, trying again: %s", record.name, fired.detail)
                dues.pop(record.name, None)


def youngest(beats: list[str], app_name: str) -> str | None:
    """Of the beats of one app the one that started last."""
    own = [beat for beat in beats if beat.split(" ", 3)[3] == app_name]
    return max(own, key=lambda beat: (int(beat.split(" ", 1)[0]), beat), default=None)
