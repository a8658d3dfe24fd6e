"""`app.publish(...)`: the producer's half of a stream of events, for programs that have rsq. Others take XADD."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from rsq.app import BaseApp
from rsq.broker.exchange import Exchange
from rsq.broker.publishing import NewEvent, Published, publishing
from rsq.calls.checks import check_stream, count_of, positive
from rsq.calls.message import Message, unpack_meta
from rsq.calls.placement import PLAIN
from rsq.errors import SettingsError
from rsq.task import EagerMode

LONGEST_ID = 500
"""Characters of an id that is given."""


class Order(NamedTuple):
    """What is to be published."""

    stream: str
    events: list[NewEvent]
    ttl_ms: int
    replicas: int


class Publisher:
    """What an app publishes; a part of it."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app
        self._numbers = count(1)

    def publish(self, order: Order) -> list[Published]:
        """See `App.publish_many`."""
        if self._app.eager is not None:
            return self._run_all(self._app.eager, order)
        return self._app.client.follow(self._talk(order))

    async def apublish(self, order: Order) -> list[Published]:
        """`publish` for coroutines."""
        if self._app.eager is not None:
            return self._run_all(self._app.eager, order)
        return await self._app.client.afollow(self._talk(order))

    def order(
        self,
        stream: str,
        events: Iterable[Mapping[Any, Any]],
        ids: Iterable[str] | None,
        dedupe_ttl: float,
        wait_replicas: int | None,
    ) -> Order:
        """What these ask for. Raises SettingsError."""
        check_stream(stream)
        given = [_fields(event) for event in events]
        named = [""] * len(given) if ids is None else [_checked_id(each) for each in ids]
        if len(named) != len(given):
            raise SettingsError(f"there are {len(given)} events and {len(named)} ids: give one to each, or to none")
        settings = self._app.client.settings
        replicas = settings.wait_replicas if wait_replicas is None else count_of("wait_replicas", wait_replicas)
        made = [NewEvent(each, fields) for each, fields in zip(named, given, strict=True)]
        return Order(stream, made, max(1, int(positive("dedupe_ttl", dedupe_ttl) * 1000)), replicas)

    def _talk(self, order: Order) -> Exchange[list[Published]]:
        client = self._app.client
        return publishing(*order, client.settings.broker_timeout_s, client.endpoint.answer_s)

    def _run_all(self, eager: EagerMode, order: Order) -> list[Published]:
        return [self._run(eager, order.stream, event, order.ttl_ms) for event in order.events]

    def _run(self, eager: EagerMode, stream: str, event: NewEvent, ttl_ms: int) -> Published:
        """In eager mode an event runs at once, in each group that this app reads the stream for."""
        number, duplicate = f"{int(time.time() * 1000)}-{next(self._numbers)}", False
        errors: list[Exception] = []
        fields = [each if isinstance(each, bytes) else each.encode() for each in event.fields]
        for task in list(self._app.tasks.values()):
            source = task.source
            if source is None or source.stream != stream:
                continue
            task_id, body = source.call_of(number.encode(), fields)
            meta, key, *_ = source.rules_of(fields)
            placement = replace(PLAIN, dedupe_key=key) if key else PLAIN
            message = Message(task_id.decode(), task.name, body, task.options.queue or "", 0, unpack_meta(meta))
            if event.id:
                message.id = source.published_id(event.id)
                placement = replace(placement, unique=True, dedupe_ttl_ms=ttl_ms)
            try:
                duplicate = eager(task, message, placement).duplicate
            except Exception as error:
                errors.append(error)  # of one group: the others have nothing to do with it
        if errors:
            raise errors[0]
        return Published(number, duplicate)


def _fields(event: Mapping[Any, Any]) -> Sequence[str | bytes]:
    if not isinstance(event, Mapping) or not event:
        raise SettingsError(f"an event is a map with one field at least, not {event!r}")
    found: list[str | bytes] = []
    for name, value in event.items():
        if not isinstance(name, (str, bytes)):
            raise SettingsError(f"a field of an event is named by a text, not by {name!r}")
        if isinstance(value, bool) or not isinstance(value, (str, bytes, int, float)):
            told = f"field {name!r} of an event takes a text, bytes or a number, not {value!r}"
            raise SettingsError(f"{told}: json.dumps makes a text of it")
        found += (name, value if isinstance(value, (str, bytes)) else repr(value))
    return found


def _checked_id(given: Any) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= LONGEST_ID:
        raise SettingsError(f"the id of an event is a text of 1 to {LONGEST_ID} characters, not {given!r}")
    return given
