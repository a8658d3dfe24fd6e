"""Schedules of signatures and canvases.

A slot of a canvas is fired as one call of the task `rsq.start`, which every worker knows, and which gives its place to
the canvas: so it is fired once like any other, the canvas starts in the step that settles this call, and the id of the
slot is that of its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rsq import codec
from rsq.app import BaseApp
from rsq.canvas.signature import Canvas, Signature
from rsq.errors import DecodeError, SettingsError
from rsq.flow.flows import is_plain
from rsq.flow.planner import Planner
from rsq.flow.stand_in import START
from rsq.task import Task

LONGEST_TEXT = 200

OF_ONE_CALL = ("eta", "task_id")
"""Options that a schedule cannot have, since it makes many calls."""


def called(
    name: str, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Any, Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
    """Name of the task, arguments and options of the call that a schedule makes of a task, its name, or a signature.

    name    of the schedule. Raises SettingsError for a signature that it cannot call again and again
    """
    if not isinstance(task, Signature):
        return (task.name if isinstance(task, Task) else task), args, kwargs, options
    for part in _every(task):
        for option in OF_ONE_CALL:
            if option in part.options:
                raise SettingsError(f"schedule {name!r}: {option} of {part!r} is for one call, a schedule makes many")
    own: Signature[Any] = Signature.from_dict(dict(task))  # whoever changes his later changes no schedule
    for part in _every(own):
        part.options.pop("task_id", None)  # one that is frozen has its ids there
    own = own.clone(args, kwargs)
    if is_plain(own):
        return own.task, own.args, own.kwargs, {**own.options, **options}
    return START, (own,), {}, options


def queue_of(app: BaseApp, canvas: Signature[Any]) -> str:
    """Where it starts: where the first of its calls goes. Raises what starting it raises."""
    plan = Planner(app).plan(canvas).plan
    calls = () if plan is None else (node.call for node in plan.nodes if not (node.waits or node.errback))
    return next((call.message.queue for call in calls if call is not None), app.settings.default_queue)


def tasks_of(task: str, args: Sequence[Any]) -> set[str]:
    """Names of the tasks that this call of a schedule comes to."""
    return {part.task for part in _every(args[0]) if not isinstance(part, Canvas)} if task == START else {task}


def shown(task: str, body: bytes) -> str:
    """What is called, for people: the name of a task, or a canvas."""
    if task != START:
        return task
    try:
        (canvas,), _ = codec.decode_call(body)
    except (DecodeError, ValueError):
        return task
    text = repr(canvas)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."


def _every(signature: Signature[Any]) -> Iterator[Signature[Any]]:
    yield signature
    for part in (*getattr(signature, "tasks", ()), *signature.links, *signature.errbacks):
        yield from _every(part)
