"""Sending calls: the plain XADD, everything else by script, and what to do when a reply is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rsq.broker.connection import Link, LinkPool
from rsq.broker.queue import REFUSE, Queue
from rsq.calls.message import Message
from rsq.calls.placement import PLAIN, Placement
from rsq.errors import BrokerError, BrokerUnavailable, DuplicateCall, NotReplicated, QueueFull, QueuePaused

PAUSE_S = 0.05
"""First wait before a send is repeated; it doubles with each further one."""

ROOM_PAUSE_S = (0.02, 0.5)
"""First and longest wait before a full queue is tried again."""

CHUNK = 1000
"""Messages in one write of a bulk send."""

OPEN_S = 1.0
"""For so long after a queue took a call, others are sent to it without asking whether it has been closed since."""

Send: TypeAlias = "tuple[Message, Placement]"


@dataclass(frozen=True)
class Accepted:
    """Answer to a send. `task_id` is the call that stands; `duplicate` tells that it is an earlier one."""

    task_id: str
    duplicate: bool = False


class Producer:
    """Sends messages. For any number of threads; a forked child gets connections of its own.

    replicas  how many must have a call before a send returns, where its placement does not say otherwise
    """

    def __init__(self, pool: LinkPool, replicas: int = 0) -> None:
        self._pool = pool
        self._replicas = replicas
        self._introduced: set[str] = set()
        self._open_until: dict[str, float] = {}
        self._unsure = Unsure()

    def send(self, queue: Queue, message: Message, placement: Placement = PLAIN) -> Accepted:
        """Enqueue one message; when this returns the server has it.

        A lost reply is an ordinary event: the send is repeated under the same id, by a script that finds out whether
        the first try arrived.

        Raises BrokerUnavailable after `broker_timeout_s` in all, with the task id under which this process may send the
        call again without doubling it; BrokerRefused; QueueFull; QueuePaused; DuplicateCall; NotReplicated.
        """
        if placement.room_wait_s:
            for pause_s in room_pauses(placement.room_wait_s):
                try:
                    return self._send(queue, message, placement)
                except QueueFull:
                    time.sleep(pause_s)
        return self._send(queue, message, placement)

    def _send(self, queue: Queue, message: Message, placement: Placement) -> Accepted:
        began = time.monotonic()
        replicas = self._replicas if placement.replicas is None else placement.replicas
        first_try = self._unsure.pop(message.id) if placement.unique else None
        if first_try is not None:
            return self._repeat(queue, [(message, placement)], first_try, began, None, replicas)[0]
        if replicas:
            return self._send_chunk(queue, [(message, placement)], replicas)[0]
        link = self._pool.take()
        try:
            if placement is PLAIN and began < self._open_until.get(queue.name, 0.0):
                link.call_packed(queue.plain_enqueue(message))
                accepted = Accepted(message.id)
            else:
                # The script also knows whether the queue is closed: one call a second of the plain ones goes this way.
                accepted = answer(queue, message, placement, link.run_one(queue.enqueue_call(message, placement)))
                self._open_until[queue.name] = began + OPEN_S
            if queue.name not in self._introduced:
                link.call_packed(queue.introduce())
                self._introduced.add(queue.name)
            return accepted
        except BrokerUnavailable as error:
            fault = error
        finally:
            self._pool.give_back(link)
        return self._repeat(queue, [(message, placement)], began, began, fault, replicas)[0]

    def send_many(self, queue: Queue, sends: Sequence[Send]) -> list[Accepted]:
        """Enqueue many messages of one queue, a thousand in a write; answers in order.

        Each thousand has the deadline of one send. A refusal of one (QueueFull, QueuePaused, DuplicateCall) is raised
        after its thousand was sent: those before and beside it stand. Replicas are waited for once in each thousand,
        and no more after they were too few: NotReplicated is raised when all is sent. Where room is waited for they go
        one by one.
        """
        if any(placement.room_wait_s for _, placement in sends):
            return [self.send(queue, message, placement) for message, placement in sends]
        accepted: list[Accepted] = []
        short: NotReplicated | None = None
        unconfirmed: list[str] = []
        wanted = [self._replicas if placement.replicas is None else placement.replicas for _, placement in sends]
        for first in range(0, len(sends), CHUNK):
            chunk = sends[first : first + CHUNK]
            replicas = 0 if short else max(wanted[first : first + CHUNK])
            try:
                accepted += self._send_chunk(queue, chunk, replicas)
                if short:
                    unconfirmed += [each.task_id for each in accepted[-len(chunk) :]]
            except NotReplicated as error:
                short = error
                unconfirmed += error.task_ids
        if short:
            raise NotReplicated(str(short), unconfirmed)
        return accepted

    def _send_chunk(self, queue: Queue, chunk: Sequence[Send], replicas: int) -> list[Accepted]:
        began = time.monotonic()
        then = queue.replication(replicas, self._pool.timeout_s) if replicas else []
        link = self._pool.take()
        try:
            if all(placement is PLAIN for _, placement in chunk):
                if began >= self._open_until.get(queue.name, 0.0):
                    check_open(queue, chunk[0][0], link.call("GET", queue.keys.paused))
                    self._open_until[queue.name] = began + OPEN_S
                replies = link.pipeline_packed([*(queue.plain_enqueue(message) for message, _ in chunk), *then])
            else:
                calls = [queue.enqueue_call(message, placement) for message, placement in chunk]
                replies = link.run_many(calls, then)
            if queue.name not in self._introduced:
                link.call_packed(queue.introduce())
                self._introduced.add(queue.name)
        except BrokerUnavailable as error:
            replies = [error] * (len(chunk) + len(then))
        finally:
            self._pool.give_back(link)
        replies, count = replies[: len(chunk)], replies[-1]
        if then and isinstance(count, BrokerUnavailable):
            # It is master no more, or gone: what it has accepted is to be found on the next one, or sent again.
            replies = [reply if isinstance(reply, BrokerError) else count for reply in replies]
        failed = [send for send, reply in zip(chunk, replies, strict=True) if isinstance(reply, BrokerUnavailable)]
        repeated = iter(self._repeat(queue, failed, began, began, None, replicas) if failed else ())
        accepted: list[Accepted] = []
        for (message, placement), reply in zip(chunk, replies, strict=True):
            if isinstance(reply, BrokerUnavailable):
                accepted.append(next(repeated))
            elif isinstance(reply, BrokerError):
                raise reply
            else:
                accepted.append(
                    Accepted(message.id) if placement is PLAIN else answer(queue, message, placement, reply)
                )
        if then and len(failed) < len(chunk):
            check_replicated(chunk, accepted, count, replicas, self._unsure, began)
        return accepted

    def _repeat(
        self,
        queue: Queue,
        sends: Sequence[Send],
        first_try: float,
        began: float,
        fault: BrokerUnavailable | None,
        replicas: int,
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
                    accepted.append(answer(queue, message, placement, link.run_one(call)))
                if replicas:
                    count = link.pipeline_packed(queue.replication(replicas, left_s))[-1]
                    check_replicated(sends, accepted, count, replicas, self._unsure, first_try)
                return accepted
            except BrokerUnavailable as error:
                fault = error
                if replicas:
                    accepted.clear()  # the next master need not have them
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


def room_pauses(seconds: float) -> Iterator[float]:
    """Waits between tries to get into a full queue, until `seconds` are over."""
    deadline = time.monotonic() + seconds
    pause_s, longest_s = ROOM_PAUSE_S
    while (left_s := deadline - time.monotonic()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(longest_s, pause_s * 2)


def answer(queue: Queue, message: Message, placement: Placement, reply: Any) -> Accepted:
    """What the reply of `enqueue.lua` says. Raises QueueFull, QueuePaused, DuplicateCall."""
    verdict, value = reply
    if verdict == b"paused":
        check_open(queue, message, REFUSE)
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


def check_open(queue: Queue, message: Message, paused: bytes | None) -> None:
    """Raises QueuePaused where the queue's key `paused` says that it takes no calls."""
    if paused == REFUSE:
        raise QueuePaused(
            f"queue {queue.name!r} is paused and refuses calls; {message.task}[{message.id}] was not enqueued: "
            f"send it again after rsq resume {queue.name}"
        )


def check_replicated(
    sends: Sequence[Send], accepted: Sequence[Accepted], count: Any, replicas: int, unsure: Unsure, first_try: float
) -> None:
    """Whether `count`, what WAIT answered, is enough. Raises NotReplicated, or BrokerUnavailable where it came to that.

    Calls that are not confirmed count as unsure, so that they can be sent again under their ids.
    """
    if isinstance(count, BrokerUnavailable):
        raise count
    if isinstance(count, int) and count >= replicas:
        return
    for message, _ in sends:
        unsure.add(message.id, first_try)
    message = sends[0][0]
    what = f"{message.task}[{message.id}] is" if len(sends) == 1 else f"these calls of {message.task} are"
    why = f"{count} of {replicas} replicas have confirmed" if isinstance(count, int) else str(count)
    raise NotReplicated(
        f"{what} stored on the master, but may be lost if it fails before its replicas have caught up: {why}. Sent "
        "again with the same task_id from this process, a call is not doubled",
        [each.task_id for each in accepted],
    )


def gave_up(message: Message, deadline_s: float, fault: BrokerUnavailable | None) -> BrokerUnavailable:
    """The error at the end of the deadline."""
    return BrokerUnavailable(
        f"{fault or 'no answer'}; gave up after {deadline_s:g} s. Task {message.task}[{message.id}] may or may not be "
        f"enqueued: to send it again without doubling it, pass task_id={message.id!r} from this process",
        message.id,
    )
