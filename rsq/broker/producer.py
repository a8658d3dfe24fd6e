"""Sending calls: the plain XADD, everything else by script, and what to do when a reply is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rsq.broker.connection import Link, LinkPool
from rsq.broker.queue import PLAIN, Placement, Queue
from rsq.errors import BrokerError, BrokerUnavailable, QueueFull
from rsq.message import Message

PAUSE_S = 0.05
"""First wait before a send is repeated; it doubles with each further one."""

CHUNK = 1000
"""Messages in one write of a bulk send."""


Send: TypeAlias = "tuple[Message, Placement]"


@dataclass(frozen=True)
class Accepted:
    """Answer to a send. `task_id` is the call that stands; `duplicate` tells that it is an earlier one."""

    task_id: str
    duplicate: bool = False


class Producer:
    """Sends messages. For any number of threads; a forked child gets connections of its own."""

    def __init__(self, pool: LinkPool) -> None:
        self._pool = pool
        self._introduced: set[str] = set()
        self._unsure = Unsure()

    def send(self, queue: Queue, message: Message, placement: Placement = PLAIN) -> Accepted:
        """Enqueue one message; when this returns the server has it.

        A lost reply is an ordinary event: the send is repeated under the same id, by a script that finds out whether
        the first try arrived.

        Raises BrokerUnavailable after `broker_timeout_s` in all, with the task id under which this process may send the
        call again without doubling it; BrokerRefused; QueueFull.
        """
        began = time.monotonic()
        first_try = self._unsure.pop(message.id) if placement.unique else None
        if first_try is not None:
            return self._repeat(queue, [(message, placement)], first_try, began, None)[0]
        link = self._pool.take()
        try:
            if placement is PLAIN:
                link.call_packed(queue.plain_enqueue(message))
                accepted = Accepted(message.id)
            else:
                accepted = answer(queue, message, link.run_one(queue.enqueue_call(message, placement)))
            if queue.name not in self._introduced:
                link.call_packed(queue.introduce())
                self._introduced.add(queue.name)
            return accepted
        except BrokerUnavailable as error:
            fault = error
        finally:
            self._pool.give_back(link)
        return self._repeat(queue, [(message, placement)], began, began, fault)[0]

    def send_many(self, queue: Queue, sends: Sequence[Send]) -> list[Accepted]:
        """Enqueue many messages of one queue, a thousand in a write; answers in order.

        Each thousand has the deadline of one send. A refusal of one (QueueFull) is raised after its thousand was sent:
        those before and beside it stand.
        """
        accepted: list[Accepted] = []
        for first in range(0, len(sends), CHUNK):
            accepted += self._send_chunk(queue, sends[first : first + CHUNK])
        return accepted

    def _send_chunk(self, queue: Queue, chunk: Sequence[Send]) -> list[Accepted]:
        began = time.monotonic()
        link = self._pool.take()
        try:
            if all(placement is PLAIN for _, placement in chunk):
                replies = link.pipeline_packed([queue.plain_enqueue(message) for message, _ in chunk])
            else:
                replies = link.run_many([queue.enqueue_call(message, placement) for message, placement in chunk])
            if queue.name not in self._introduced:
                link.call_packed(queue.introduce())
                self._introduced.add(queue.name)
        except BrokerUnavailable as error:
            replies = [error] * len(chunk)
        finally:
            self._pool.give_back(link)
        failed = [send for send, reply in zip(chunk, replies, strict=True) if isinstance(reply, BrokerUnavailable)]
        repeated = iter(self._repeat(queue, failed, began, began, None) if failed else ())
        accepted: list[Accepted] = []
        for (message, placement), reply in zip(chunk, replies, strict=True):
            if isinstance(reply, BrokerUnavailable):
                accepted.append(next(repeated))
            elif isinstance(reply, BrokerError):
                raise reply
            else:
                accepted.append(Accepted(message.id) if placement is PLAIN else answer(queue, message, reply))
        return accepted

    def _repeat(
        self, queue: Queue, sends: Sequence[Send], first_try: float, began: float, fault: BrokerUnavailable | None
    ) -> list[Accepted]:
        """Send again what was sent at `first_try` and may have arrived, until the deadline of the send that `began`."""
        self._introduced.clear()
        deadline = began + self._pool.timeout_s
        accepted: list[Accepted] = []
        pause_s = PAUSE_S
        while (left_s := deadline - time.monotonic()) > 0:
            # A link of its own: its waits must end with the deadline of the whole send.
            link = Link(self._pool.endpoint, left_s)
            try:
                while len(accepted) < len(sends):
                    message, placement = sends[len(accepted)]
                    since_ms = int((time.monotonic() - first_try) * 1000)
                    call = queue.enqueue_call(message, placement, since_ms)
                    accepted.append(answer(queue, message, link.run_one(call)))
                return accepted
            except BrokerUnavailable as error:
                fault = error
            finally:
                link.close()
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s *= 2
        message = sends[len(accepted)][0]
        self._unsure.add(message.id, first_try)
        raise gave_up(message, self._pool.timeout_s, fault)


class Unsure:
    """Ids of calls of which this process never learned whether they arrived, and when each was first tried."""

    MOST = 1000

    def __init__(self) -> None:
        self._first_tries: dict[str, float] = {}

    def add(self, task_id: str, first_try: float) -> None:
        if len(self._first_tries) >= self.MOST:
            self._first_tries.pop(next(iter(self._first_tries)))
        self._first_tries[task_id] = first_try

    def pop(self, task_id: str) -> float | None:
        return self._first_tries.pop(task_id, None)


def answer(queue: Queue, message: Message, reply: Any) -> Accepted:
    """What the reply of `enqueue.lua` says. Raises QueueFull."""
    verdict, value = reply
    if verdict == b"full":
        raise QueueFull(
            f"queue {queue.name!r} holds {value} messages, its max_length; {message.task}[{message.id}] was not "
            "enqueued: try again later"
        )
    return Accepted(value.decode(), duplicate=verdict == b"duplicate")


def gave_up(message: Message, deadline_s: float, fault: BrokerUnavailable | None) -> BrokerUnavailable:
    """The error at the end of the deadline."""
    return BrokerUnavailable(
        f"{fault or 'no answer'}; gave up after {deadline_s:g} s. Task {message.task}[{message.id}] may or may not be "
        f"enqueued: to send it again without doubling it, pass task_id={message.id!r} from this process",
        message.id,
    )
