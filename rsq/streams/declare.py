"""`app.on(...)`: a function becomes the task of a source."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rsq.app import BaseApp
from rsq.broker.queue import Queue
from rsq.calls.shape import shape_of
from rsq.calls.source import Source
from rsq.errors import DuplicateTask, InvalidTask
from rsq.functions import arity_check, check_function, place_of, signature_of
from rsq.task import Task

Q = TypeVar("Q", bound=Queue)

_OF_SENDERS = (
    "priority",
    "expires",
    "dedupe_key",
    "dedupe_until",
    "on_duplicate",
    "debounce",
    "max_length",
    "max_length_wait",
)
"""Options that are for who sends a call; nobody sends those of a source."""


def declare(app: BaseApp, source: Source, function: Callable[..., Any], given: Mapping[str, Any]) -> Task[..., Any]:
    """Make a function the task of a source. Raises InvalidTask, DuplicateTask."""
    for name in given:
        if name in _OF_SENDERS:
            raise InvalidTask(f"{name} is for tasks that are sent: events come as they are, so leave it out in app.on")
    options = app.options_of({"queue": given.get("queue") or source.queue, "ignore_result": True, **given})
    check_function(function)
    if not arity_check(signature_of(function, function, False))(1 + options.bind):
        raise InvalidTask(f"{place_of(function)} is called with the event: it takes one argument")
    for other in app.tasks.values():
        if (
            other.source is not None
            and other.source.key == source.key
            and place_of(other.function) != place_of(function)
        ):
            raise DuplicateTask(
                f"{place_of(other.function)} and {place_of(function)} both read {source}: each event is for one of a "
                "group, so give one of them another group=..."
            )
    task = app.register(function, options)
    shape = None if callable(source.decode) or source.decode == "bytes" else shape_of(_annotation(function))
    task.source = replace(source, kept_ms=max(1, int(options.dedupe_ttl * 1000)), shape=shape)
    return task


def _annotation(function: Callable[..., Any]) -> Any:
    """What the function says that it takes as its event: its last argument without a default. None: nobody knows."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name in it is not there at run time, as of `if TYPE_CHECKING`
        return None
    named = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    return hints.get(named[-1].name) if named else None


def sources_of(tasks: Mapping[str, Task[..., Any]], queues: Sequence[Q]) -> Iterator[tuple[str, Source, Q]]:
    """The sources that feed one of these queues, each with the name of its task."""
    by_name = {queue.name: queue for queue in queues}
    for task in tasks.values():
        queue = by_name.get(task.options.queue or "")
        if task.source is not None and queue is not None:
            yield task.name, task.source, queue
