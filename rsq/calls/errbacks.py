"""What an errback is told: which call has failed, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsq import codec
from rsq.calls.inputs import takes_of
from rsq.calls.message import Delivery
from rsq.calls.outcome import failure_of, unpack_result
from rsq.calls.request import Request
from rsq.errors import DecodeError


def errback_arguments(delivery: Delivery, fits: Callable[[int], bool]) -> tuple[list[Any], dict[str, Any]]:
    """As in Celery: the request of the call that failed, its error and the text of its traceback; or its id alone,
    where the errback takes no more. They come before its own arguments. Raises DecodeError.

    fits  whether the errback takes so many positional arguments
    """
    args, kwargs = codec.decode_call(delivery.body)
    try:
        node, task_id, queue, task = str(takes_of(delivery)).split(" ", 3)
        packed = delivery.inputs[int(node)]
    except (ValueError, KeyError) as error:
        raise DecodeError(f"{delivery.id} is not told what has failed: {error}") from None
    if not fits(len(args) + 3):
        return [task_id, *args], kwargs
    result = unpack_result(packed[1:])  # behind FAILED
    failure, trace = failure_of(result, task_id), str((result.error or {}).get("traceback", ""))
    fields = [b"id", task_id.encode(), b"task", task.encode(), b"body", codec.encode_call((), {}, None), b"meta", b""]
    return [Request(Delivery(queue, 0, b"", fields)), failure, trace, *args], kwargs
