"""A flow in eager mode: its calls one after the other, each as soon as what it waits for is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from rsq.broker.answers import Accepted
from rsq.calls.inputs import FAILED
from rsq.calls.message import Message
from rsq.calls.outcome import (
    REVOKED_TTL_MS,
    Buried,
    Completed,
    Replaced,
    pack_failure,
    report_of,
    unpack_result,
)
from rsq.calls.placement import Placement
from rsq.calls.plan import CONTINUE, SKIP, Call, Node, Plan, numbers_in, numbers_of
from rsq.states import State


class Runner(Protocol):
    """What runs the calls of a flow."""

    def accept(self, message: Message, placement: Placement) -> Accepted: ...

    def follow(self, message: Message, placement: Placement, inputs: Mapping[int, bytes]) -> Completed | Buried: ...

    def keep(self, message: Message, result: bytes) -> None: ...


class EagerFlow:
    """One flow, from its start to its end. A loop: a chain of any length needs no more of Python's stack."""

    def __init__(self, runner: Runner, plan: Plan) -> None:
        self._runner = runner
        self._id = plan.id
        self._nodes: list[Node] = list(plan.nodes)
        self._waits = [node.waits for node in self._nodes]
        self._values: dict[int, bytes] = {}
        self._over: set[int] = set()
        self._tail: int | None = None
        self._tail_verdict: Completed | Buried | None = None
        self._released: deque[tuple[int, str, Any]] = deque()  # number, id of its parent, what it takes
        self._buried: Buried | None = None

    def run(self) -> Buried | None:
        """Run it to its end. Gives the first failure, if there is one."""
        for number, node in enumerate(self._nodes):
            if not node.waits and not node.errback:
                self._release(number, "")
        while self._released:
            self._run(*self._released.popleft())
        return self._buried

    def stand_in(self, replaced: Replaced) -> Completed | Buried:
        """Run it in the place of a call; gives what becomes of that one."""
        self._tail = replaced.tail
        self.run()
        if self._tail_verdict is not None:
            return self._tail_verdict
        packed = self._values[self._tail][len(FAILED) :]
        error = unpack_result(packed).error
        if error is None:
            return Completed(replaced.delivery, "revoked", packed, REVOKED_TTL_MS)
        return Buried(replaced.delivery, "upstream", error, packed, REVOKED_TTL_MS)

    def _release(self, number: int, parent: str) -> None:
        node = self._nodes[number]
        if node.call is None:
            self._succeed(number, b"", parent)
        else:
            self._released.append((number, parent, node.takes))

    def _run(self, number: int, parent: str, takes: Any) -> None:
        call = self._nodes[number].call
        assert call is not None, "a join is never run"
        message, inputs = self._message(number, call, parent, takes)
        accepted = self._runner.accept(message, call.placement)
        if accepted.duplicate:
            self._fail(number, pack_failure(State.REVOKED, 1, 0.0, f"duplicate of {accepted.task_id}"), keep=True)
            return
        verdict = self._runner.follow(message, call.placement, inputs)
        if number == self._tail:
            self._tail_verdict = verdict
        skip, value = report_of(verdict)
        if isinstance(verdict, Completed) and verdict.counter in ("succeeded", "ignored"):
            self._succeed(number, verdict.result[skip:] if skip else value, message.id)
            return
        if isinstance(verdict, Buried) and self._buried is None:
            self._buried = verdict
        result = verdict.result or value
        if isinstance(verdict, Buried):
            self._tell(number, message, result)
        self._fail(number, result)

    def _message(self, number: int, call: Call, parent: str, takes: Any) -> tuple[Message, Mapping[int, bytes]]:
        message = call.message
        place = [self._id, number] if takes is None else [self._id, number, takes]
        wanted = (int(takes.split(" ", 1)[0]),) if isinstance(takes, str) else numbers_of(takes)
        meta = {"flow": place, **message.meta, **({"parent": parent} if parent else {})}
        bound = Message(message.id, message.task, message.body, message.queue, message.priority, meta)
        return bound, {each: self._values[each] for each in wanted}

    def _succeed(self, number: int, value: bytes, parent: str) -> None:
        self._over.add(number)
        self._values[number] = value
        for out in numbers_in(self._nodes[number].outs):
            self._arrive(out, parent)

    def _arrive(self, number: int, parent: str) -> None:
        self._waits[number] -= 1
        if not self._waits[number] and number not in self._over:
            self._release(number, parent)

    def _tell(self, number: int, message: Message, result: bytes) -> None:
        """Release the errbacks that have not been yet."""
        self._values[number] = FAILED + result
        for errback, told in self._nodes[number].errbacks:
            if errback not in self._over:
                self._over.add(errback)
                about = f"{number} {told} {message.queue} {message.task}" if told else None
                self._released.append((errback, message.id, about))

    def _fail(self, number: int, result: bytes, keep: bool = False) -> None:
        """It did not succeed; what cannot run without it ends with the same result.

        keep  also its own result, which nobody has written
        """
        ended = [(number, result, keep)]
        while ended:
            number, result, keep = ended.pop()
            if number in self._over and not self._nodes[number].errback:
                continue
            node = self._nodes[number]
            self._over.add(number)
            self._values[number] = FAILED + result
            if keep and node.call is not None:
                self._runner.keep(node.call.message, result)
            for out in numbers_in(node.outs):
                policy = self._nodes[out].policy
                if policy == CONTINUE:
                    self._arrive(out, "")
                else:
                    skipped = pack_failure(State.REVOKED, 1, 0.0, "upstream")
                    ended.append((out, skipped if policy == SKIP else result, True))
