"""One call, sent until it is accepted or given up; the same for threads and for coroutines."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from rsq import AsyncResult, BrokerUnavailable, Task
from rsq.errors import NotReplicated
from tests.chaos.journal import Journal

TRIES = 5
"""A producer that gave up sends the call again under its id, so often in all."""

LONG_S = 1.0
"""A try that takes longer is in the journal."""

AnyTask: TypeAlias = Task[..., Any]
Handle: TypeAlias = "AsyncResult[Any]"
Unsure: TypeAlias = "BrokerUnavailable | NotReplicated"
Answer: TypeAlias = "Handle | Unsure"

UNSURE = (BrokerUnavailable, NotReplicated)
"""The call may have arrived, and may be gone again: it is to be sent anew under its id."""


class Sender:
    """Numbers the calls of a run and tells the journal of them. For any number of threads."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._serials = itertools.count(1)

    def number(self) -> int:
        return next(self._serials)

    def numbers(self, count: int) -> list[int]:
        return list(itertools.islice(self._serials, count))

    def send(self, task: AnyTask, *arguments: Any, serial: int | None = None, **options: Any) -> Handle | None:
        """Send one call, again and again under its id where the server is away. None: nobody knows."""
        tries = self._tries(task, serial, options)
        answer: Answer | None = None
        try:
            while True:
                number = next(tries) if answer is None else tries.send(answer)
                try:
                    answer = task.apply_async((number, *arguments), **options)
                except UNSURE as error:
                    answer = error
        except StopIteration as end:
            handle: Handle | None = end.value
            return handle

    async def asend(self, task: AnyTask, *arguments: Any, serial: int | None = None, **options: Any) -> Handle | None:
        """`send` for coroutines."""
        tries = self._tries(task, serial, options)
        answer: Answer | None = None
        try:
            while True:
                number = next(tries) if answer is None else tries.send(answer)
                try:
                    answer = await task.aapply_async((number, *arguments), **options)
                except UNSURE as error:
                    answer = error
        except StopIteration as end:
            handle: Handle | None = end.value
            return handle

    def _tries(
        self, task: AnyTask, serial: int | None, options: dict[str, Any]
    ) -> Generator[int, Answer, Handle | None]:
        """Gives the serial number for each try and takes its answer; changes `options` for the next."""
        serial = self.number() if serial is None else serial
        self.journal.write("sent", kind=task.__name__, serials=[serial])
        for _ in range(TRIES):
            began = time.monotonic()
            answer = yield serial
            self.tried([serial], began, answer)
            if not isinstance(answer, UNSURE):
                self.accepted(serial, answer)
                return answer
            options["task_id"] = answer.task_id
        self.journal.write("unsure", serials=[serial])
        return None

    def send_many(self, task: AnyTask, calls: Sequence[tuple[Any, ...]]) -> None:
        """All at once; the arguments of each, without its serial number."""
        serials = self.numbers(len(calls))
        self.journal.write("sent", kind=task.__name__, serials=serials)
        began = time.monotonic()
        try:
            handles = task.map_async([(serial, *call) for serial, call in zip(serials, calls, strict=True)])
        except UNSURE as error:
            # Which of them arrived is not known; each may have, once.
            self.tried(serials, began, error)
            self.journal.write("unsure", serials=serials)
            return
        self.tried(serials, began, None)
        for serial, handle in zip(serials, handles, strict=True):
            self.accepted(serial, handle)

    def tried(self, serials: list[int], began: float, answer: Answer | None) -> None:
        now = time.monotonic()
        if now - began > LONG_S:
            how = str(answer) if isinstance(answer, UNSURE) else "accepted"
            self.journal.write("tried", at=began, until=now, serials=serials, how=how)

    def accepted(self, serial: int, handle: Handle) -> None:
        self.journal.write(
            "accepted", serial=serial, id=handle.id, queue=handle.queue or "default", duplicate=handle.duplicate
        )
