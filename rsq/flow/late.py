"""Calls whose queue or dedupe key is made of a value that another call brings: it is known once that has come."""

from __future__ import annotations

from typing import Any, NoReturn

from rsq.calls.options import CallOptions
from rsq.canvas.inside import Inside
from rsq.canvas.signature import Signature
from rsq.task import Task

LATE = "rsq.late"

CALL = "rsq.call"
"""The argument of such a call: the signature of what is to be called; no argument of a task has this name."""


class Asked(Exception):
    """A rule of a call has looked at an argument that is not there yet."""


class Awaited:
    """Stands for an argument that another call brings, where the call's own rules look at its arguments.

    looks  all that looked at it, or at one of the others of the call: who is given it may swallow the error
    """

    def __init__(self, looks: list[str]) -> None:
        object.__setattr__(self, "looks", looks)

    def __getattribute__(self, name: str) -> NoReturn:
        object.__getattribute__(self, "looks").append(name)
        raise Asked(name)

    def _needed(self, *_: Any, **__: Any) -> NoReturn:
        object.__getattribute__(self, "looks").append("")
        raise Asked

    __getitem__ = __format__ = __str__ = __repr__ = __iter__ = __bool__ = __hash__ = __eq__ = __ne__ = _needed
    __len__ = __int__ = __float__ = __index__ = __contains__ = __lt__ = __gt__ = __le__ = __ge__ = _needed
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __floordiv__ = _needed


def late(self: Inside, *value: Any, **named: Any) -> NoReturn:
    """Give its place to the call, with what has come: its own rules decide about that."""
    self.replace(named.pop(CALL).clone(value, named))


def first_sent(signature: Signature[Any], task: Task[..., Any], options: CallOptions) -> Signature[Any]:
    """What is sent in place of a call, and gives its place to that once it has its arguments.

    It has what is seen of the call from outside: the id, the stamps, and how its result is kept. It goes where the call
    goes, or, where a function decides about that, to the default queue.
    """
    settings = task.app.client.settings
    queue = options.queue or task.app.router.said_of(task.name, settings.default_queue) or settings.default_queue
    call = signature.clone()
    call.links = call.errbacks = ()
    call.id, stamps = None, call.options.pop("stamps", None)
    for name in ("task_id", "ignore_result", "result_expires"):
        call.options.pop(name, None)
    kept = {
        name: signature.options.get(name, getattr(task.options, name)) for name in ("ignore_result", "result_expires")
    }
    more = {} if stamps is None else {"stamps": stamps}
    sent = Signature[Any](LATE, (), {CALL: call}, {"queue": queue, "priority": options.priority, **kept, **more})
    sent.id, sent.app = options.task_id or signature.id, signature.app
    return sent
