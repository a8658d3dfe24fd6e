"""A flow and its nodes as people see them, read from what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange, asking
from rsq.broker.flow_rows import BAD, ERRBACK, JOIN, OK, STATES, Stored, read_counts
from rsq.broker.wire import packed
from rsq.calls.inputs import FAILED, origin_of

HEAD = ("head", "description", "created", "ended", "abandoned", "error")


@dataclass(frozen=True)
class Flow:
    """A flow as a whole, from one read.

    state    starting, started, succeeded, failed (a dead letter that is redriven carries it on), cancelled or expired
    size     nodes
    total    calls, but for errbacks; `ok` of them have succeeded, `bad` have ended in another way, or never can run
    open     nodes that have not ended
    failed   number of the first node that failed, or None
    sealed   False = it is a batch, and still open
    abandoned  it is a batch, and was sealed since nobody kept it open
    created_ms, ended_ms  ms since the epoch; 0 = not yet
    """

    id: str
    state: str
    size: int
    total: int
    ok: int
    bad: int
    open: int
    failed: int | None
    description: str
    created_ms: int
    ended_ms: int
    sealed: bool
    abandoned: bool


@dataclass(frozen=True)
class NodeState:
    """One node. `state` is waiting, released (to be run, or running), ok or bad; of a join `id` and `task` are ''.

    errback  it runs where another one has failed, or is a callback of a batch
    """

    number: int
    id: str
    queue: str
    task: str
    name: str
    state: str
    outs: Sequence[int]
    waits: int
    errback: bool = False


def unpack_head(flow_id: str, values: Sequence[bytes | None]) -> Flow | None:
    """A flow from the fields `HEAD` of it; None where it is gone, or has not started yet."""
    head, description, created, ended, abandoned, error = values
    if head is None:
        return None
    counts = read_counts(head)
    return Flow(
        flow_id,
        "failed" if error else STATES[counts.state],
        counts.size,
        counts.calls,
        counts.ok,
        counts.bad,
        counts.open,
        None if counts.failed < 0 else counts.failed,
        (description or b"").decode("utf-8", "replace"),
        int(created or 0),
        int(ended or 0),
        not counts.unsealed,
        bool(abandoned),
    )


def state_of(number: int, node: Stored) -> NodeState:
    """A node as people see it."""
    if node.state == OK:
        state = "ok"
    elif node.state >= BAD:
        state = "bad"
    else:
        state = "waiting" if node.waiting or node.kind == JOIN else "released"
    names = (node.id, node.queue, node.task, node.name)
    return NodeState(number, *names, state, node.outs, node.waits, node.kind == ERRBACK)


def outcomes_of(key: str, numbers: Sequence[int], deadline: Deadline) -> Exchange[list[bytes | None]]:
    """The packed results of nodes that ended without one of their own, in one question or two.

    key  of their flow
    """
    if not numbers:
        return []
    names = [f"{number}v" for number in numbers]
    ((head, result, *values),) = yield from asking([packed("HMGET", key, "head", "result", *names)], deadline)
    ended = head is not None and STATES[read_counts(head).state] in ("cancelled", "expired")
    failed = [value if value is not None and value[:1] == FAILED else None for value in values]
    others = sorted({origin for value in failed if value and (origin := origin_of(value)) is not None})
    origins: dict[int, bytes | None] = {}
    if others:
        (found,) = yield from asking([packed("HMGET", key, *(f"{number}v" for number in others))], deadline)
        origins = dict(zip(others, found, strict=True))
    outcomes: list[bytes | None] = []
    for value in failed:
        origin = None if value is None else origin_of(value)
        value = value if origin is None else origins[origin]
        if value is not None and value[:1] == FAILED:  # what it fell with may have succeeded since
            outcomes.append(value[1:])
        else:
            outcomes.append(result if ended else None)
    return outcomes
