"""`rsq.App`: the app with all that lives above it, and the process-wide default app."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from rsq import pickling
from rsq.app import BaseApp, shared
from rsq.task import Task

pickling.register()

if TYPE_CHECKING:
    from rsq.app import Decorator
    from rsq.beat.control import Schedules
    from rsq.broker.publishing import Published
    from rsq.canvas.signature import Signature
    from rsq.flow.batches import Batches
    from rsq.flow.filling import NewBatch
    from rsq.flow.flows import Flows
    from rsq.flow.graph import Graph
    from rsq.streams.publish import Publisher
    from rsq.testing import Testing


class App(BaseApp):
    __doc__ = BaseApp.__doc__

    @property
    def testing(self) -> Testing:
        """Helpers for tests: eager mode and a worker inside the test. See `rsq.testing`."""
        from rsq.testing import Testing

        return self.part(Testing)

    @property
    def flows(self) -> Flows:
        """What starts signatures. See `rsq.flow.flows`."""
        from rsq.flow.flows import Flows

        return self.part(Flows)

    def on(
        self,
        stream: str,
        *,
        group: str,
        start: str = "0",
        decode: str | Callable[[Mapping[str, str]], Any] = "text",
        id_field: str | None = None,
        version_field: str | None = None,
        key_field: str | None = None,
        order_by: str | None = None,
        **options: Any,
    ) -> Decorator:
        """Call a function with each event of a stream that others write: ``@app.on("user_events", group="mail")``.

        It becomes a task whose one argument is the event; see `rsq.calls.source.Source`.

        stream   key of the stream
        group    who reads it: each group gets every event once
        start    where a group begins that was never there: "0" (default) the first event, "$" the next one that comes,
                 or the id of an entry
        decode   "text" (default): the event is a map of texts; "bytes": of bytes; "json:<field>" or "msgpack:<field>":
                 what is packed in that field; or a function that makes it of the map of texts
        id_field  of events with the same value in this field one runs
        version_field, key_field  once a newer version (a number) of a key is done, events with older ones do not run
        order_by  events with the same value in this field run one after the other, in the order of the stream
        options  of the task; `dedupe_ttl` says how long ids and versions are remembered. By default its queue is
                 ``<stream>.<group>``, and no results are kept
        Raises   InvalidTask, DuplicateTask
        """
        from rsq.calls.source import Source
        from rsq.streams.declare import declare

        source = Source(stream, group, start, decode, id_field, version_field, key_field, order_by)
        return cast("Decorator", lambda function: declare(self, source, function, options))

    def stream(
        self,
        stream: str,
        *,
        retain: int | timedelta,
        retain_for: Iterable[str] | None = None,
        longest_silence: float | timedelta | None = None,
        hard: bool = False,
    ) -> None:
        """Have the workers keep a stream of events short: ``app.stream("user_events", retain=100_000)``.

        Nothing goes that a group which counts has not read, or not acknowledged. Which those are: all that the stream
        has, and those of this app's sources.

        retain   how many entries stay, or a timedelta: for how long
        retain_for  these groups count, and no others
        longest_silence  seconds after which a group counts no more that has something to read and does not move
        hard     what is beyond goes all the same, and is counted
        Raises   SettingsError
        """
        from rsq.calls.retention import retention
        from rsq.streams.retain import Retentions

        self.part(Retentions).declare(retention(stream, retain, retain_for, longest_silence, hard))

    def publish(
        self,
        stream: str,
        event: Mapping[str, Any],
        *,
        id: str | None = None,
        dedupe_ttl: float = 86_400.0,
        wait_replicas: int | None = None,
    ) -> Published:
        """Add an event to a stream: ``app.publish("user_events", {"user_id": 42}, id="message-7")``.

        event    names to texts, bytes or numbers
        id       of your own: an event with it is added once, however often it is sent. Without one it is sent once, and
                 after a BrokerUnavailable nobody can tell whether it is there
        dedupe_ttl  seconds for which the id is remembered
        wait_replicas  how many replicas must have it before this returns; default: the setting
        Raises   SettingsError, BrokerUnavailable, BrokerRefused, NotReplicated
        """
        return self.publish_many(
            stream, [event], ids=None if id is None else [id], dedupe_ttl=dedupe_ttl, wait_replicas=wait_replicas
        )[0]

    async def apublish(
        self,
        stream: str,
        event: Mapping[str, Any],
        *,
        id: str | None = None,
        dedupe_ttl: float = 86_400.0,
        wait_replicas: int | None = None,
    ) -> Published:
        """`publish` for coroutines."""
        ids = None if id is None else [id]
        order = self._publisher.order(stream, [event], ids, dedupe_ttl, wait_replicas)
        return (await self._publisher.apublish(order))[0]

    def publish_many(
        self,
        stream: str,
        events: Iterable[Mapping[str, Any]],
        *,
        ids: Iterable[str] | None = None,
        dedupe_ttl: float = 86_400.0,
        wait_replicas: int | None = None,
    ) -> list[Published]:
        """`publish` for many events, which are written hundreds at once; gives what became of each.

        ids  one for each event, or None
        """
        return self._publisher.publish(self._publisher.order(stream, events, ids, dedupe_ttl, wait_replicas))

    @property
    def _publisher(self) -> Publisher:
        from rsq.streams.publish import Publisher

        return self.part(Publisher)

    def batch(
        self,
        *,
        on_success: Signature[Any] | None = None,
        on_complete: Signature[Any] | None = None,
        on_death: Signature[Any] | None = None,
        description: str = "",
    ) -> NewBatch:
        """A batch: ``with app.batch(on_success=done.s()) as batch: batch.add(work.s(1))``. See `rsq.flow.batch`.

        on_success   called once all of its calls have succeeded
        on_complete  called once each of them has ended, in whatever way
        on_death     called once, when the first of them has not succeeded
        description  for people
        Raises       SettingsError
        """
        from rsq.flow.filling import NewBatch

        return NewBatch(self, {"success": on_success, "complete": on_complete, "death": on_death}, description)

    def flow(self, name: str = "") -> Graph:
        """A flow to be put together node by node: ``flow.add(load.s(), after=[a, b])``. See `rsq.flow.graph`."""
        from rsq.flow.graph import Graph

        return Graph(self, name)

    @property
    def batches(self) -> Batches:
        """The batches on the server, by their ids: ``app.batches[id]``. See `rsq.flow.batches`."""
        from rsq.flow.batches import Batches

        return self.part(Batches)

    @property
    def schedules(self) -> Schedules:
        """The schedules on the server: add, remove, pause, resume, trigger, list. See `rsq.beat.control`."""
        from rsq.beat.control import Schedules

        return self.part(Schedules)

    @property
    def schedule(self) -> Mapping[str, Any]:
        """The schedules that the code declares, for `rsq beat`; those of `@app.periodic` are among them."""
        return self.schedules.declared

    @schedule.setter
    def schedule(self, entries: Mapping[str, Any]) -> None:
        """Celery's `beat_schedule`: name -> map with task, schedule, args, kwargs, options. Raises SettingsError."""
        self.schedules.declare(entries)

    def periodic(self, schedule: Any, *, name: str | None = None, **given: Any) -> Callable[[Any], Any]:
        """Call a task by a schedule: ``@app.periodic(crontab("*/5 * * * *", tz="Europe/Paris"))``.

        It stands above ``@app.task(...)``; a plain function becomes a task with the default options.

        schedule  crontab(...), every(...), a timedelta, or a number of seconds
        name      of the schedule; default: the task's. A task with two schedules needs one
        given     args, kwargs, options, catchup, catchup_limit, as in `app.schedule`
        Raises    SettingsError
        """

        def declare(function: Any) -> Any:
            task = function if isinstance(function, Task) else self.task(function)
            self.schedules.declare_periodic(task, schedule, name, given)
            return task

        return declare


default_app = App("default")
"""The app of a process that makes no other. It connects at the first send."""

task = default_app.task
"""`@task` for modules that name no app, like Celery's `shared_task`: its tasks belong to the project's app, see
`rsq.shared`."""

if not TYPE_CHECKING:  # it has the signatures of `App.task`
    task = shared.declare
