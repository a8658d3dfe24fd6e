"""`app.schedules`: the schedules that the code declares, and those of the server, at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rsq.app import BaseApp
from rsq.beat.canvases import shown
from rsq.beat.entry import RUN_TIME, Entry, Record, entry_calling, entry_of, record_of
from rsq.beat.store import LastRun, Store
from rsq.calls.message import new_id
from rsq.calls.outcome import unpack_result
from rsq.calls.schedules import schedule_of
from rsq.canvas.signature import Signature
from rsq.errors import DecodeError, RsqError, SettingsError
from rsq.result import AsyncResult
from rsq.task import Task


@dataclass(frozen=True)
class ScheduleInfo:
    """One schedule as `Schedules.list` shows it; all times in ms since the epoch.

    origin   name of the app whose code has it, '' for one that was added at run time
    task     its name; of a canvas how that is written, cut to 200 characters
    next_ms  its next slot; None while it is paused
    last_ms  its last run, None if there was none
    last_id  task id of that run
    outcome  its state: SUCCESS, FAILURE, REVOKED, or '' while there is no result (any more)
    """

    name: str
    origin: str
    task: str
    queue: str
    schedule: str
    paused: bool
    next_ms: int | None
    last_ms: int | None = None
    last_id: str | None = None
    outcome: str = ""


class Schedules:
    """The schedules of one app and its server. `declare` is for code; the rest talks to the server."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app
        self._declared: dict[str, Entry] = {}
        self._periodic: dict[str, Entry] = {}

    @property
    def _store(self) -> Store:
        return Store(self._app.client)

    # -- in code

    @property
    def declared(self) -> Mapping[str, Entry]:
        """What the code declares: `app.schedule` and every `@app.periodic`."""
        return {**self._declared, **self._periodic}

    def declare(self, written: Mapping[str, Any]) -> None:
        """Take the place of what `app.schedule` was before. Raises SettingsError."""
        if not isinstance(written, Mapping):
            raise SettingsError(f"app.schedule takes a map from names to schedules, not {written!r}")
        self._declared = {name: entry_of(name, value) for name, value in written.items()}

    def declare_periodic(self, task: Task[..., Any], schedule: object, name: str | None, given: Any) -> None:
        """What `@app.periodic` does. Raises SettingsError."""
        name = name or task.name
        entry = Entry(name, task.name, schedule_of(schedule), **given)
        known = self._periodic.get(name)
        if known is not None and known != entry:
            raise SettingsError(f"two periodic schedules are named {name!r}: give one of them another name=...")
        self._periodic[name] = entry

    # -- on the server

    def add(
        self,
        name: str,
        schedule: object,
        task: Task[..., Any] | Signature[Any] | str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        catchup: str = "latest",
        catchup_limit: int = 100,
        **options: Any,
    ) -> None:
        """Add a schedule, or change the one that was added under this name before. It stays until it is removed.

        schedule  crontab(...), every(...), a timedelta, or a number of seconds
        task      a task, its registered name, a signature or a canvas
        options   as `Task.apply_async` takes them, but for eta and task_id
        Raises    SettingsError, also when the code has a schedule of this name; BrokerError
        """
        given = {"catchup": catchup, "catchup_limit": catchup_limit}
        entry = entry_calling(name, task, schedule_of(schedule), tuple(args), kwargs or {}, options, **given)
        record = record_of(self._app, entry, RUN_TIME, self._app.client.now_ms())

        def change(there: Record | None) -> Record:
            if there is not None and not there.removed and there.origin != RUN_TIME:
                raise SettingsError(f"schedule {name!r} stands in the code of app {there.origin!r}: change it there")
            return merged(there, record)

        self._store.change(name, change)

    def remove(self, name: str) -> None:
        """Remove a schedule that was added at run time, or cannot be read; after this no slot of it is fired.

        Raises SettingsError, also for one of the code, BrokerError.
        """

        def change(there: Record | None) -> None:
            origin = self._known(name, there).origin
            if origin != RUN_TIME:
                raise SettingsError(
                    f"schedule {name!r} stands in the code of app {origin!r}, whose beat would put it back: "
                    "remove it there, or pause it"
                )

        while True:
            try:
                self._store.change(name, change)
                return
            except DecodeError:
                if self._store.discard(name):
                    return

    def pause(self, name: str) -> None:
        """Fire no slot of it from now on. What is missed is not made up for. Raises SettingsError, BrokerError."""

        def change(there: Record | None) -> Record:
            known = self._known(name, there)
            return known if known.paused else replace(known, paused=True, due_ms=None)

        self._store.change(name, change)

    def resume(self, name: str) -> None:
        """Go on with the next slot. Raises SettingsError, BrokerError."""
        now_ms = self._app.client.now_ms()

        def change(there: Record | None) -> Record:
            known = self._known(name, there)
            if not known.paused:
                return known
            return replace(known, paused=False, due_ms=known.schedule.next_after(now_ms))

        self._store.change(name, change)

    def trigger(self, name: str) -> AsyncResult[Any]:
        """Send one call of it now, paused or not; its slots go on as they were. Raises SettingsError, BrokerError."""
        store, client = self._store, self._app.client
        record = self._known(name, store.read(name))
        now_ms = client.now_ms()
        message = record.message(new_id(), now_ms)
        accepted = client.producer.send(client.target(record.queue), message, record.placement())
        store.advance([(record, None, LastRun(now_ms, record.queue, accepted.task_id))])
        return AsyncResult(client, accepted.task_id, record.queue, duplicate=accepted.duplicate)

    def look(self) -> tuple[list[ScheduleInfo], dict[str, str]]:
        """`list` and `unreadable` at once. Raises BrokerError."""
        store = self._store
        records, unreadable = store.load()
        runs = {name: run for name, run in store.last_runs().items() if name in records}
        outcomes = self._outcomes(runs)
        listed = [
            ScheduleInfo(
                name=record.name,
                origin=record.origin,
                task=shown(record.task, record.body),
                queue=record.queue,
                schedule=str(record.schedule),
                paused=record.paused,
                next_ms=record.due_ms,
                last_ms=runs[name].when_ms if name in runs else None,
                last_id=runs[name].task_id if name in runs else None,
                outcome=outcomes.get(name, ""),
            )
            for name, record in sorted(records.items())
            if not record.removed
        ]
        return listed, {name: str(error) for name, error in sorted(unreadable.items())}

    def unreadable(self) -> dict[str, str]:
        """The schedules that cannot be read, by name, and why. This version fires none of them. Raises BrokerError."""
        return self.look()[1]

    def list(self) -> list[ScheduleInfo]:
        """All schedules of the server, by name, but for those that are `unreadable`. Raises BrokerError."""
        return self.look()[0]

    def __iter__(self) -> Iterator[ScheduleInfo]:
        return iter(self.list())

    def _outcomes(self, runs: Mapping[str, LastRun]) -> dict[str, str]:
        """States of the last runs, as far as their results are there."""
        client = self._app.client
        commands = [("GET", client.queue(run.queue).keys.result(run.task_id)) for run in runs.values()]
        with client.link() as link:
            replies = link.pipeline(commands) if commands else []
        found = {}
        for name, reply in zip(runs, replies, strict=True):
            if isinstance(reply, RsqError):
                raise reply
            if reply is not None:
                with suppress(DecodeError):
                    found[name] = unpack_result(reply).state.value
        return found

    def _known(self, name: str, there: Record | None) -> Record:
        if there is None or there.removed:
            raise SettingsError(f"there is no schedule {name!r}: see rsq schedule list")
        return there


def merged(there: Record | None, wanted: Record) -> Record:
    """What is to stand where `there` stands: its pause stays, and, while the times are the same, its place in them."""
    if there is None or there.removed:
        return replace(wanted, due_ms=wanted.schedule.next_after(wanted.since_ms))
    if there.declares_the_same(wanted):
        return there
    next_ms = wanted.schedule.next_after(wanted.since_ms)
    if there.schedule == wanted.schedule and there.due_ms is not None:
        return replace(wanted, paused=there.paused, since_ms=there.since_ms, due_ms=there.due_ms)
    return replace(wanted, paused=there.paused, due_ms=next_ms)
