"""What the server's answers to a send mean: the call that stands, or an error in the sender's terms. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from rsq.broker.queue import Queue, QueueMoved
from rsq.calls.message import Message
from rsq.calls.placement import Placement
from rsq.errors import BrokerError, BrokerUnavailable, DuplicateCall, NotReplicated, QueueFull, QueuePaused

Send: TypeAlias = "tuple[Message, Placement]"


class Accepted(NamedTuple):
    """Answer to a send. `task_id` is the call that stands; `duplicate` tells that it is an earlier one."""

    task_id: str
    duplicate: bool = False


def answer(queue: Queue, message: Message, placement: Placement, reply: Any) -> Accepted:
    """What the reply of XADD or of `enqueue.lua` says. Raises QueueFull, QueuePaused, DuplicateCall, or the refusal."""
    if isinstance(reply, bytes):
        return Accepted(message.id)
    if isinstance(reply, BrokerError):
        raise reply
    verdict, value = reply
    if verdict == b"moved":
        raise QueueMoved(queue.name)
    if verdict == b"paused":
        raise QueuePaused(
            f"queue {queue.name!r} is paused and refuses calls; {message.task}[{message.id}] was not enqueued: "
            f"send it again after rsq resume {queue.name}"
        )
    if verdict == b"full":
        raise QueueFull(
            f"queue {queue.name!r} holds {value} messages, its max_length; {message.task}[{message.id}] was not "
            "enqueued: try again later"
        )
    if verdict == b"duplicate" and placement.raises:
        raise DuplicateCall(
            f"{message.task}[{value.decode()}] stands already under this "
            f"{f'dedupe key {placement.dedupe_key!r}' if placement.dedupe_key else 'task id'}; nothing was enqueued",
            value.decode(),
        )
    return Accepted(value.decode(), duplicate=verdict in (b"duplicate", b"replaced"))


def too_few(count: Any, replicas: int) -> str:
    """Why `count`, what WAIT answered, is not enough; '' = it is."""
    if not isinstance(count, int):
        return str(count)
    return "" if count >= replicas else f"{count} of {replicas} replicas have confirmed"


def check_replicated(sends: Sequence[Send], accepted: Sequence[Accepted], count: Any, replicas: int) -> None:
    """Whether `count`, what WAIT answered, is enough. Raises NotReplicated."""
    why = too_few(count, replicas)
    if not why:
        return
    message = sends[0][0]
    what = f"{message.task}[{message.id}] is" if len(sends) == 1 else f"these calls of {message.task} are"
    raise NotReplicated(
        f"{what} stored on the master, but may be lost if it fails before its replicas have caught up: {why}. Sent "
        "again with the same task_id from this process, a call is not doubled",
        [each.task_id for each in accepted],
    )


def gave_up(sends: Sequence[Send], why: str) -> BrokerUnavailable:
    """The error where it is not known what became of these."""
    message = sends[0][0]
    if len(sends) == 1:
        what = f"Task {message.task}[{message.id}] may or may not be enqueued: to send it again without doubling it, "
        how = f"pass task_id={message.id!r} from this process"
    else:
        what = (
            f"{len(sends)} calls of {message.task} may or may not be enqueued: to send one again without doubling it, "
        )
        how = "pass its task_id, one of this error's `task_ids`, from this process"
    return BrokerUnavailable(why + what + how, [message.id for message, _ in sends])
