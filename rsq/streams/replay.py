"""Events of a stream once more, through a group of their own: `rsq events replay`. No worker has to know of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from rsq.app import BaseApp
from rsq.broker.connection import Endpoint
from rsq.broker.event_stream import EventStream
from rsq.broker.pool import LinkPool
from rsq.calls.source import BEGINNING, Source, before, order_of
from rsq.errors import SettingsError
from rsq.streams.feeding import Feed
from rsq.task import Task

TIMEOUT_S = 10.0
"""So long the command waits for an answer."""

LOOK_S = 0.25
"""It looks so often for room in the queue."""


def source_of(app: BaseApp, stream: str, group: str | None) -> Task[..., object]:
    """The task that reads a stream, for a group where there are several. Raises SettingsError."""
    tasks = {task.source.group: task for task in app.tasks.values() if task.source and task.source.stream == stream}
    known = ", ".join(sorted(tasks))
    if group is not None and group not in tasks:
        told = f"this app reads it for {known}" if tasks else "this app does not read it"
        raise SettingsError(f"nothing reads stream {stream} for group {group}: {told}")
    if not tasks:
        raise SettingsError(f"nothing in this app reads stream {stream}; name the app with -A")
    if group is None and len(tasks) > 1:
        raise SettingsError(f"stream {stream} is read for several groups: say with --of which one: {known}")
    return tasks[group] if group is not None else next(iter(tasks.values()))


class Replay:
    """The events of a stream from an entry on, up to the last one that is there when it begins.

    What is fed is noted with the calls: ended on the way it goes on where it was when it is begun again.
    """

    def __init__(self, app: BaseApp, task: Task[..., object], group: str, first: str) -> None:
        """Raises SettingsError, BrokerError."""
        assert task.source is not None, "it is the task of a source"
        if any(each.source and each.source.group == group for each in app.tasks.values()):
            raise SettingsError(f"group {group} has its own function: take a name that nothing reads for")
        self.source: Source = replace(task.source, group=group, start=before(first))
        client = app.client
        self._queue = client.target(task.options.queue)
        endpoint = Endpoint.of(client.settings)
        self._links = LinkPool(endpoint, TIMEOUT_S)
        self._feed = Feed(self.source, task.name, self._queue, self._links)
        self._events = EventStream(endpoint, self.source.stream, group, TIMEOUT_S)

    def run(self, tell: Callable[[str], None]) -> int:
        """Feed them; gives how many were fed. Raises SettingsError, BrokerError.

        tell  is called with what it waits for
        """
        try:
            return self._run(tell)
        finally:
            self._feed.leave()
            self._links.close()
            self._events.close()

    def _run(self, tell: Callable[[str], None]) -> int:
        source, look, fed = self.source, self._events.look(), 0
        if look.last is None:
            raise SettingsError(f"there is no stream {source.stream}")
        if ended := self._events.ended():
            raise SettingsError(f"group {source.group} has been replayed up to {ended}: name another one")
        answer = self._feed.ask()
        if look.delivered is not None and not answer.position:
            raise SettingsError(f"group {source.group} of stream {source.stream} is there already: name another one")
        said, last = "", order_of(look.last)
        while True:
            if answer.who == "moved":
                raise SettingsError(f"queue {self._queue.name} lies in another partition now: begin again")
            if answer.who == "you" and not answer.position:
                answer = self._feed.ask(upto=source.start)
                continue
            if answer.who == "you" and order_of(answer.position) >= last:
                break
            if answer.who == "you" and answer.number > 0:
                self._events.tell(answer.position)  # so nothing is trimmed that is to come
                events = self._events.read(answer.position, min(self._feed.page, answer.number))
                events = [event for event in events if order_of(event[0].decode()) <= last]
                if events:
                    fed += len(events)
                    answer = self._feed.events(answer.position, events)
                else:
                    answer = self._feed.ask(after=answer.position, upto=look.last)
                continue
            waits = f"room in queue {self._queue.name}" if answer.who == "you" else "another one that replays the same"
            if waits != said:
                tell(f"waiting for {waits}")
                said = waits
            time.sleep(LOOK_S)
            answer = self._feed.ask()
        self._events.end(answer.position or BEGINNING)
        self._feed.forget()
        return fed
