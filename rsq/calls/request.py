"""What a running task may know of its own call."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from rsq.calls.event import about
from rsq.calls.inputs import arguments_of
from rsq.calls.message import NO_META, Delivery
from rsq.hints import hinted


@hinted("Request")
class Request:
    """What a running task may know of its own call, as `self.request`.

    id          task id: the same through all retries, so it serves as idempotency key
    task        registered name
    queue       the queue that it came from
    priority    0 to 9
    attempt     number of this run, from 1
    retries     runs before this one that ended in an error
    deliveries  how often a worker was given this message; above 1 the body may have run before
    crashes     how many processes died while they ran it
    expires     ms since the epoch, or None
    parent, root  ids of the call that sent this one and of the first of all, or None
    flow        id of the flow that it is a part of, such as its batch, or None
    event       (stream, id) of the event that it is about, or None
    headers     what the sender put there
    stamps, stamped_headers  what was stamped on the canvas, or on the call: a map, and its names
    timelimit   (hard, soft) time limit in seconds, None for none
    args, kwargs  the arguments, unpacked anew at each look
    hostname    name of this host
    delivery_info  as in Celery: a map with routing_key (the queue), priority, redelivered, exchange ('')
    called_directly  True when the function was called without a worker
    is_eager    True in eager mode
    """

    __slots__ = ("_delivery", "called_directly")

    def __init__(self, delivery: Delivery | None) -> None:
        self.called_directly = delivery is None
        self._delivery = delivery or _DIRECT

    def __repr__(self) -> str:
        if self.called_directly:
            return "<Request called directly>"
        return f"<Request {self.task}[{self.id}] queue={self.queue} attempt={self.attempt}>"

    @property
    def id(self) -> str:
        return self._delivery.id

    @property
    def task(self) -> str:
        return self._delivery.task

    @property
    def queue(self) -> str:
        return self._delivery.queue

    @property
    def priority(self) -> int:
        return self._delivery.priority

    @property
    def attempt(self) -> int:
        return self._delivery.attempt

    @property
    def retries(self) -> int:
        return self._delivery.attempt - 1

    @property
    def deliveries(self) -> int:
        return self._delivery.deliveries

    @property
    def crashes(self) -> int:
        return self._delivery.crashes

    @property
    def expires(self) -> int | None:
        return self._delivery.meta.get("expires")

    @property
    def parent(self) -> str | None:
        return self._delivery.meta.get("parent")

    @property
    def root(self) -> str | None:
        return self._delivery.meta.get("root")

    @property
    def flow(self) -> str | None:
        flow: str | None = self._delivery.meta.get("flow", (None,))[0]
        return flow

    @property
    def event(self) -> tuple[str, str] | None:
        return about(self._delivery.body)

    @property
    def headers(self) -> Mapping[str, Any]:
        headers: Mapping[str, Any] = self._delivery.meta.get("headers", NO_META)
        return headers

    @property
    def stamps(self) -> Mapping[str, Any]:
        stamps: Mapping[str, Any] = self._delivery.meta.get("stamps", NO_META)
        return stamps

    @property
    def stamped_headers(self) -> list[str]:
        return list(self.stamps)

    @property
    def timelimit(self) -> tuple[float | None, float | None]:
        return self._delivery.timelimit

    @property
    def args(self) -> list[Any]:
        return [] if self.called_directly else arguments_of(self._delivery)[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        return {} if self.called_directly else arguments_of(self._delivery)[1]

    @property
    def hostname(self) -> str:
        import socket  # late, as few ask

        return socket.gethostname()

    @property
    def delivery_info(self) -> dict[str, Any]:
        return {
            "exchange": "",
            "routing_key": self.queue,
            "priority": self.priority,
            "redelivered": self.deliveries > 1,
        }

    @property
    def is_eager(self) -> bool:
        return not self.called_directly and not self._delivery.consumer  # no worker has fetched it

    @property
    def lease_lost(self) -> bool:
        """True once another worker owns this call: whatever this run still does will not be committed."""
        return self._delivery.lease_lost


_DIRECT = Delivery("", 0, b"", [b"id", b"", b"task", b"", b"body", b"", b"meta", b""])

current: ContextVar[Delivery | None] = ContextVar("rsq.current", default=None)
"""The delivery whose body runs in this context."""


def current_request() -> Request | None:
    """The call that runs in this context, also in functions that the task calls; None outside of one."""
    delivery = current.get()
    return None if delivery is None else Request(delivery)
