"""Sending calls: the plain XADD, everything else by script, and what to do when a reply is lost.

Written once for threads and coroutines, as talks (see `rsq.broker.exchange`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, TypeVar

from rsq.broker.aio import AsyncLink, PerLoop
from rsq.broker.answers import Accepted, Send, answer, check_replicated, gave_up
from rsq.broker.connection import running
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange, pauses
from rsq.broker.partitions import Queues
from rsq.broker.pool import LinkPool
from rsq.broker.queue import Queue, QueueMoved, replication
from rsq.broker.wire import packed
from rsq.calls.message import Message
from rsq.calls.placement import PLAIN, Placement
from rsq.errors import (
    BrokerError,
    BrokerUnavailable,
    NotReplicated,
    QueueFull,
)

log = logging.getLogger("rsq.broker")

ROOM_PAUSE_S = (0.02, 0.5)
"""First and longest wait before a full queue is tried again."""

CHUNK = 1000
"""Messages in one write of a bulk send."""

CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of bodies in one write: a slow line has to carry it within the deadline of one send."""

OPEN_S = 1.0
"""For so long after a queue took a call, others are sent to it without asking whether it has been closed since."""

CLOCK_STEP_MS, CLOCKS_APART_MS = 50, 1000
"""So far the server's clock may have been set forward between a send and the look for it; and so far the clock of a
server that took over may be ahead, since what it has was stamped by its predecessor. Behind is no matter: the look goes
further back then."""

T = TypeVar("T")


class Producer:
    """Sends messages. For any number of threads; a forked child gets connections of its own."""

    def __init__(self, pool: LinkPool, sending: Sending) -> None:
        self._pool = pool
        self._sending = sending

    def send(self, queue: Queue, message: Message, placement: Placement = PLAIN) -> Accepted:
        """Enqueue one message; when this returns the server has it.

        A lost reply is an ordinary event: the server is asked whether the first try arrived, and if it did not, the
        send is repeated under the same id.

        Raises BrokerUnavailable after `broker_timeout_s` in all, or where nobody can tell any more whether the call
        arrived, with the task id under which this process may send it again without doubling it; BrokerRefused;
        QueueFull; QueuePaused; DuplicateCall; NotReplicated.
        """
        return self._follow(self._sending.talk(queue, message, placement))

    def send_many(self, queue: Queue, sends: Sequence[Send]) -> list[Accepted]:
        """Enqueue many messages of one queue, in writes of a thousand or 8 MB; answers in order.

        Each write has the deadline of one send. A refusal of one (QueueFull, QueuePaused, DuplicateCall) is raised
        after its write was sent: those before and beside it stand. BrokerUnavailable names all of which it is not
        known that they arrived. Replicas are waited for once in each write, and no more after they were too few:
        NotReplicated is raised when all is sent. Where room is waited for they go one by one.
        """
        return self._follow(self._sending.many(queue, sends))

    def _follow(self, talk: Exchange[T]) -> T:
        link = self._pool.take()
        try:
            return link.follow(talk)
        finally:
            self._pool.give_back(link)


class AsyncProducer:
    """`Producer` for coroutines. Each event loop has a connection of its own."""

    def __init__(self, links: PerLoop[AsyncLink], sending: Sending) -> None:
        self._links = links
        self._sending = sending

    async def send(self, queue: Queue, message: Message, placement: Placement = PLAIN) -> Accepted:
        """Enqueue one message; see `Producer.send`."""
        return await self._links.here().follow(self._sending.talk(queue, message, placement))


class Sending:
    """The talks of sending, and what a process remembers from one to the next.

    queues     where they lie
    timeout_s  total deadline of one send
    replicas   how many must have a call before a send is over, where its placement does not say otherwise
    answer_s   how long one try waits for its answer, and longer in proportion for what is large; infinite where no
               other node can take the server's place
    """

    def __init__(self, queues: Queues, timeout_s: float, replicas: int = 0, answer_s: float = math.inf) -> None:
        self._queues = queues
        self._timeout_s = timeout_s
        self._replicas = replicas
        self._answer_s = answer_s
        self._introduced: set[str] = set()
        self._open_until: dict[Queue, float] = {}
        self._unsure = Unsure()

    def talk(self, queue: Queue, message: Message, placement: Placement) -> Exchange[Accepted]:
        """Send one call."""
        deadline = Deadline(self._timeout_s)
        fault: BrokerUnavailable | None = None
        if placement is PLAIN and deadline.began < self._open_until.get(queue, 0.0) and not self._replicas:
            try:
                (reply,) = yield [queue.plain_enqueue(message)], self._of_one_try(deadline, len(message.body))
                if not isinstance(reply, BrokerError):
                    return Accepted(message.id)
                raise reply
            except BrokerUnavailable as error:
                fault = error
        # It waits for room in a full queue.
        for pause_s in room_pauses(placement.room_wait_s):
            try:
                return (yield from self._one(queue, message, placement, deadline, fault))
            except QueueFull:
                pass
            yield pause_s
            deadline, fault = Deadline(self._timeout_s), None
        return (yield from self._one(queue, message, placement, deadline, fault))

    def many(self, queue: Queue, sends: Sequence[Send]) -> Exchange[list[Accepted]]:
        """Send many calls of one queue."""
        accepted: list[Accepted] = []
        placements = {id(placement): placement for _, placement in sends}.values()
        if any(placement.room_wait_s for placement in placements):
            for message, placement in sends:
                accepted.append((yield from self.talk(queue, message, placement)))
            return accepted
        short: NotReplicated | None = None
        unconfirmed: list[str] = []
        wanted = max(map(self._replicas_of, placements), default=0)
        tried = 0
        for chunk in chunks(sends):
            tried += len(chunk)
            try:
                accepted += yield from self._insist(queue, chunk, 0 if short else wanted, Deadline(self._timeout_s))
                if short:
                    unconfirmed += [each.task_id for each in accepted[-len(chunk) :]]
            except NotReplicated as error:
                short = error
                unconfirmed += error.task_ids
            except BrokerUnavailable as error:
                # Those behind it have not been sent at all, which their caller cannot know, either.
                behind = [message.id for message, _ in sends[tried:]]
                raise BrokerUnavailable(str(error), [*unconfirmed, *error.task_ids, *behind]) from None
        if short:
            raise NotReplicated(str(short), unconfirmed)
        return accepted

    def _one(
        self,
        queue: Queue,
        message: Message,
        placement: Placement,
        deadline: Deadline,
        fault: BrokerUnavailable | None = None,
    ) -> Exchange[Accepted]:
        first_try = self._unsure.pop(message.id) if placement.unique else None
        sends = [(message, placement)]
        return (yield from self._insist(queue, sends, self._replicas_of(placement), deadline, first_try, fault))[0]

    def _replicas_of(self, placement: Placement) -> int:
        return self._replicas if placement.replicas is None else placement.replicas

    def _insist(
        self,
        queue: Queue,
        sends: Sequence[Send],
        replicas: int,
        deadline: Deadline,
        first_try: float | None = None,
        fault: BrokerUnavailable | None = None,
    ) -> Exchange[list[Accepted]]:
        """Send, and again, until it is known what became of all, or until the deadline.

        first_try  when an earlier send, which gave up, first tried them (monotonic seconds)
        fault      of a try that was made just now
        """
        began = deadline.began if first_try is None else first_try
        repeated = first_try is not None or fault is not None
        try:
            for pause_s in pauses(deadline):
                if repeated:
                    self._introduced.clear()
                    self._open_until.clear()
                try:
                    # The server waits for its replicas by itself, and may take its time for that.
                    size_bytes = sum(len(message.body) for message, _ in sends)
                    own = deadline if replicas else self._of_one_try(deadline, size_bytes)
                    return (yield from self._try(queue, sends, replicas, own, began if repeated else None))
                except BrokerUnavailable as error:
                    repeated = True
                    if fault is None or deadline.left_s() > 0:  # else it only says that the time was over
                        fault = error
                except QueueMoved as error:
                    self._open_until.pop(queue, None)
                    (queue,) = yield from self._queues.finding([queue.name], deadline, use=True)
                    fault = BrokerUnavailable(str(error))
                yield max(0.0, min(pause_s, deadline.left_s()))
            why = f"{fault or 'no answer'}; gave up after {deadline.seconds:g} s. "
            raise gave_up(sends, why)
        except _CannotTell as error:
            self._unsure.add(sends, began)
            raise gave_up(sends, f"{error} ") from None
        except (NotReplicated, BrokerUnavailable):
            self._unsure.add(sends, began)
            raise

    def _of_one_try(self, deadline: Deadline, size_bytes: int) -> Deadline:
        if self._answer_s == math.inf:
            return deadline
        return deadline.within(self._answer_s + self._timeout_s * size_bytes / CHUNK_BYTES)

    def _try(
        self, queue: Queue, sends: Sequence[Send], replicas: int, deadline: Deadline, first_try: float | None
    ) -> Exchange[list[Accepted]]:
        """Send, once. `first_try`: look first, and send what has not arrived since then."""
        fresh = sends
        if first_try is not None:
            arrived = yield from self._look(queue, sends, deadline, first_try)
            fresh = [send for send, there in zip(sends, arrived, strict=True) if not there]
        plain = len(fresh) > 1 and all(placement is PLAIN for _, placement in fresh)
        # The script also knows whether the queue is closed: one call a second of the plain ones goes this way.
        asks = not plain or deadline.began >= self._open_until.get(queue, 0.0)
        replies: list[Any] = []
        if not plain:
            replies = yield from self._write(queue, fresh, [], deadline, replicas, first_try is not None)
        else:
            if asks:
                replies = yield from self._write(queue, fresh[:1], [], deadline)
                answer(queue, *fresh[0], replies[0])
            replies += yield from self._write(queue, [], fresh[len(replies) :], deadline, replicas)
        count = replies.pop() if replicas else None
        accepted = [answer(queue, *send, reply) for send, reply in zip(fresh, replies, strict=True)]
        if fresh and asks:
            self._open_until[queue] = deadline.began + OPEN_S
        if first_try is not None:
            each = iter(accepted)
            accepted = [
                Accepted(message.id) if there else next(each)
                for (message, _), there in zip(sends, arrived, strict=True)
            ]
        if replicas:
            check_replicated(sends, accepted, count, replicas)
        return accepted

    def _write(
        self,
        queue: Queue,
        by_script: Sequence[Send],
        plain: Sequence[Send],
        deadline: Deadline,
        replicas: int = 0,
        repeated: bool = False,
    ) -> Exchange[list[Any]]:
        """Send these in one write. Gives the reply to each, and behind them the number of replicas that have all.

        Raises BrokerUnavailable where one of them may not have been taken in.
        """
        introduction = [] if queue.name in self._introduced else [queue.introduce()]
        if not (by_script or plain or replicas):
            return []

        def then() -> list[bytes]:
            each = [queue.plain_enqueue(message) for message, _ in plain]
            return each + replication(queue.keys.barrier, replicas, deadline.left_s()) if replicas else each

        calls = [queue.enqueue_call(message, placement, repeated) for message, placement in by_script]
        # Where the queue was introduced before and nothing broke since, the script was loaded, too.
        replies = yield from running(calls, deadline, then, introduction, known=not (replicas and introduction))
        introduced = [replies.pop(0) for _ in introduction]
        fault = next((reply for reply in replies if isinstance(reply, BrokerUnavailable)), None)
        if fault is not None:
            raise fault
        for reply in introduced:
            if isinstance(reply, BrokerUnavailable):
                continue  # in a cluster another node knows the queues: it is told again by a later send
            if isinstance(reply, BrokerError):
                log.warning("queue %s cannot be made known to rsq status: %s", queue.name, reply)
            self._introduced.add(queue.name)
        if replicas:
            del replies[-2]  # of the key that is written before the wait
        return replies

    def _look(self, queue: Queue, sends: Sequence[Send], deadline: Deadline, first_try: float) -> Exchange[list[bool]]:
        """Which of these have arrived since they were first tried."""
        (clock,) = yield [packed("TIME")], deadline
        if isinstance(clock, BrokerError):
            raise clock
        passed_ms = int((monotonic() - first_try) * 1000)
        step_ms = CLOCK_STEP_MS if self._answer_s == math.inf else CLOCKS_APART_MS
        from_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000 - passed_ms - step_ms
        (found,) = yield from running([queue.arrived_call(sends, from_ms)], deadline)
        if isinstance(found, BrokerError):
            raise found
        if min(found) < 0:
            raise _CannotTell("The reply was lost, and too much has come since, or too much time has passed.")
        return [each == 1 for each in found]


class _CannotTell(Exception):
    """Nobody knows whether a call arrived."""


class Unsure:
    """Ids of calls of which this process never learned whether they arrived, and when each was first tried."""

    MOST = 10_000

    def __init__(self) -> None:
        self._first_tries: dict[str, float] = {}

    def add(self, sends: Sequence[Send], first_try: float) -> None:
        for message, _ in sends:
            if len(self._first_tries) >= self.MOST:
                self._first_tries.pop(next(iter(self._first_tries)))
            self._first_tries[message.id] = first_try

    def pop(self, task_id: str) -> float | None:
        return self._first_tries.pop(task_id, None)


def chunks(sends: Sequence[Send]) -> Iterator[Sequence[Send]]:
    """The sends in pieces of `CHUNK` calls and `CHUNK_BYTES` at most; a larger call stands alone."""
    first = size = 0
    for i, (message, _) in enumerate(sends):
        if i > first and (i - first >= CHUNK or size + len(message.body) > CHUNK_BYTES):
            yield sends[first:i]
            first, size = i, 0
        size += len(message.body)
    if first < len(sends):
        yield sends[first:]


def room_pauses(seconds: float) -> Iterator[float]:
    """Waits between tries to get into a full queue, until `seconds` are over."""
    deadline = Deadline(seconds)
    pause_s, longest_s = ROOM_PAUSE_S
    while (left_s := deadline.left_s()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(longest_s, pause_s * 2)
