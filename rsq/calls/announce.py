"""What handlers of signals are told when a call is sent."""

from __future__ import annotations

from rsq import codec
from rsq.calls.message import Message
from rsq.signals import after_publish, before_publish


def tell_before(message: Message, flow: str | None = None) -> None:
    """Let the handlers of `before_publish` see a message, and put headers into it. `flow`: of which it is a part."""
    args, kwargs = codec.decode_call(message.body)
    headers = dict(message.meta.get("headers", {}))
    before_publish.send(
        message.task, task_id=message.id, args=args, kwargs=kwargs, headers=headers, queue=message.queue, flow=flow
    )
    if headers:
        message.meta = {**message.meta, "headers": headers}


def tell_after(message: Message, task_id: str, duplicate: bool, flow: str | None = None) -> None:
    """Tell the handlers of `after_publish`."""
    headers = message.meta.get("headers", {})
    after_publish.send(
        message.task, task_id=task_id, headers=headers, queue=message.queue, duplicate=duplicate, flow=flow
    )
