"""A flow in eager mode: its calls one after the other, each as soon as what it waits for is over."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from rsq.broker.adding import Adding
from rsq.broker.answers import Accepted
from rsq.broker.flow_looks import Flow, NodeState
from rsq.broker.flow_rows import Stored, read_node, row_of
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
from rsq.calls.plan import CONTINUE, SKIP, Call, Node, Plan, numbers_in, numbers_of, shifted
from rsq.states import State


class Runner(Protocol):
    """What runs the calls of a flow."""

    def accept(self, message: Message, placement: Placement) -> Accepted: ...

    def follow(self, message: Message, placement: Placement, inputs: Mapping[int, bytes]) -> Completed | Buried: ...

    def keep(self, message: Message, result: bytes) -> None: ...


class EagerFlow:
    """One flow, from its start to its end. A loop: a chain of any length needs no more of Python's stack.

    flows  all of them, by their ids
    above  it stands for a call: by which node; of which flow, and its number there
    """

    def __init__(
        self, runner: Runner, plan: Plan, flows: Mapping[str, EagerFlow], above: tuple[int, str, int] | None = None
    ) -> None:
        self._runner = runner
        self._flows = flows
        self.above = above
        self.plan = plan
        self._nodes: list[Node] = []
        self._bases: list[int] = []
        self._waits: list[int] = []
        self._lists: defaultdict[int, list[int]] = defaultdict(list)
        self._values: dict[int, bytes] = {}
        self._over: set[int] = set()
        self._ok: set[int] = set()
        self._total = self._good = self._bad = self._sunk = 0  # calls, but for errbacks; and results that will not come
        self._failed: int | None = None
        self._released: deque[tuple[int, str, Any]] = deque()  # number, id of its parent, what it takes
        self._callbacks = dict(plan.callbacks)
        self._sealed = not plan.grows
        self._cancelled = self._runs = self._mourns = False
        self._buried: Buried | None = None
        self._tail: int | None = None
        self._tail_verdict: Completed | Buried | None = None
        self.add(plan.nodes)

    def add(self, nodes: Iterable[Node]) -> None:
        """More nodes, which count their edges from 0; those that wait for nothing are to be run."""
        base, nodes = len(self._nodes), [*nodes]
        waiting = {target for node in nodes for target in node.beside}
        if not all(self._waits[target] and target not in self._ok for target in waiting):
            return
        self._nodes += nodes
        self._bases += [base] * (len(self._nodes) - base)
        self._waits += [node.waits for node in self._nodes[base:]]
        self._total += sum(map(_counts, self._nodes[base:]))
        for number, node in enumerate(self._nodes[base:], base):
            for target in node.beside:
                self._waits[target] += 1
                for taker in [target] if self._nodes[target].call is not None else self._outs(target):
                    self._lists[taker].append(number)
            if not node.waits and not node.errback:
                self._release(number, "")

    def seal(self) -> bool:
        """Nothing more is added from without. False: so it was before."""
        was, self._sealed = self._sealed, True
        return not was

    @property
    def is_open(self) -> bool:
        return not self._sealed and not self._cancelled

    def run(self) -> Buried | None:
        """Run what is to be run. Gives the first failure in that, if there is one."""
        if self._runs:
            return None  # whoever does goes on with it
        self._runs, self._buried = True, None
        try:
            self._call_back()
            while self._released:
                self._run(*self._released.popleft())
                self._call_back()
        finally:
            self._runs = False
        return self._buried

    def cancel(self, result: bytes) -> bool:
        """End what waits with this result. False: it had ended."""
        if self.head().state != "started":
            return False
        self._cancelled = True
        self._released.clear()
        for number in range(len(self._nodes)):
            if not self._nodes[number].errback and number not in self._over:
                self._fail(number, result, keep=True)
        return True

    def head(self) -> Flow:
        """It as a whole."""
        left = self._total - self._good - self._bad
        state = "failed" if self._sunk else "succeeded"
        if self._cancelled:
            state = "cancelled"
        elif not self._sealed or left or self._released or self._runs:
            state = "started"
        size, text = len(self._nodes), self.plan.description
        counts = (self._total, self._good, self._bad, left, self._failed)
        return Flow(self.plan.id, state, size, *counts, text, 0, 0, self._sealed, False)

    def states(self, first: int, count: int) -> list[NodeState]:
        """Some of its nodes."""
        found = []
        for number in range(first, min(first + count, len(self._nodes))):
            node = self._nodes[number]
            message = None if node.call is None else node.call.message
            state = "ok" if number in self._ok else "bad" if number in self._over else "waiting"
            texts = ("", "", "") if message is None else (message.id, message.queue, message.task)
            outs = shifted(node.outs, self._bases[number])
            found.append(NodeState(number, *texts, node.name, state, outs, node.waits, node.errback))
        return found

    def row(self, number: int) -> Stored:
        """One of its nodes, as a server would have it."""
        node, base = self._nodes[number], self._bases[number]
        told = [part for pair in node.errbacks for part in pair]
        row = read_node(row_of(replace(node, outs=(), errbacks=(), beside=())))
        waiting = number not in self._ok and bool(self._waits[number])
        outs, takes = [*self._outs(number)], row.takes if isinstance(node.takes, list) else b""
        return row._replace(outs=outs, waiting=waiting, base=base, errbacks=told, takes=takes, beside=node.beside)

    def mourn(self) -> None:
        """A call has not succeeded, here or in what stands for one of these: flows around it hear of that, too."""
        flow: EagerFlow | None = self
        while flow is not None and not (flow._mourns or flow._cancelled):
            flow._mourns = True
            flow = self._flows.get(flow.above[1]) if flow.above is not None else None

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

    def _call_back(self) -> None:
        """The callbacks of a batch, each once."""
        if not self._callbacks or self._cancelled:
            return
        if self._mourns:
            self._release_once("death")
        if self._sealed and self._good + self._bad == self._total:
            self._release_once("complete")
            if not self._bad:
                self._release_once("success")

    def _release_once(self, callback: str) -> None:
        if (number := self._callbacks.pop(callback, None)) is not None:
            self._release(number, "")

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
            if verdict.counter == "succeeded":
                added: dict[str, Adding] = getattr(verdict.delivery, "added", {})
                while added:  # once, where it stands for another call, too
                    flow_id, adding = added.popitem()
                    for nodes in (*adding.unsent.values(), adding.nodes):
                        self._flows[flow_id].add(nodes)
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
        base = self._bases[number]
        place = [self.plan.id, number, *([] if takes is None else [takes] if isinstance(takes, str) else [takes, base])]
        wanted = [int(takes.split(" ", 1)[0])] if isinstance(takes, str) else [n + base for n in numbers_of(takes)]
        if added := self._lists.get(number):
            place.append([number, len(added)])
            wanted += added
        meta = {"flow": place, **message.meta, **({"parent": parent} if parent else {})}
        bound = Message(message.id, message.task, message.body, message.queue, message.priority, meta)
        return bound, {each: self._values[each] for each in wanted}

    def _succeed(self, number: int, value: bytes, parent: str) -> None:
        self._over.add(number)
        self._ok.add(number)
        self._good += _counts(self._nodes[number])
        self._values[number] = value
        for out in self._outs(number):
            self._arrive(out, parent)

    def _outs(self, number: int) -> Iterator[int]:
        node = self._nodes[number]
        return numbers_in([*shifted(node.outs, self._bases[number]), *node.beside])

    def _arrive(self, number: int, parent: str) -> None:
        self._waits[number] -= 1
        if not self._waits[number] and number not in self._over:
            self._release(number, parent)

    def _tell(self, number: int, message: Message, result: bytes) -> None:
        """Release the errbacks that have not been yet."""
        self._values[number] = FAILED + result
        for place, told in self._nodes[number].errbacks:
            errback = ~place if place < 0 else place + self._bases[number]
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
            self._sunk += node.sink
            if _counts(node):
                self._bad += 1
                self._failed = number if self._failed is None else self._failed
                self.mourn()
            if keep and node.call is not None:
                self._runner.keep(node.call.message, result)
            for out in self._outs(number):
                policy = self._nodes[out].policy
                if policy == CONTINUE:
                    self._arrive(out, "")
                else:
                    skipped = pack_failure(State.REVOKED, 1, 0.0, "upstream")
                    ended.append((out, skipped if policy == SKIP else result, True))


def _counts(node: Node) -> bool:
    """Whether it is one of the calls that are counted."""
    return node.call is not None and not node.errback
