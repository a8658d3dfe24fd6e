"""A flow as data: numbered nodes, and what each waits for, takes, and releases. Made by canvas, batches and graphs.

What starts, carries on and ends a flow is in `rsq.broker`; a plan knows no server.

Runs are lists of numbers in which a negative one repeats: ``[7, 20, -3]`` is 7, 20, 21, 22, 23. The shape of what a
node takes is the number of one node, whose value it takes, or a list of shapes in which runs stand for their numbers:
``[0, -99999]`` is the list of the values of nodes 0 to 99,999, ``[0, [1, -1], 3]`` has a list inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rsq.calls.message import Message
from rsq.calls.placement import PLAIN, Placement

FAIL, SKIP, CONTINUE = "fail", "skip", "continue"
"""What becomes of a node when one that it waits for does not succeed: it ends as FAILURE or as REVOKED, or it runs all
the same, with a `Failed` for each value that there is not."""

POLICIES = (FAIL, SKIP, CONTINUE)

CALLBACKS = ("success", "complete", "death")
"""What a batch tells of: all has succeeded; each of its calls has ended, in whatever way; one has not succeeded."""

Runs: TypeAlias = "Sequence[int]"
Shape: TypeAlias = "int | Sequence[Shape]"
Takes: TypeAlias = "Shape | Mapping[str, Shape] | None"


@dataclass(frozen=True, slots=True)
class Call:
    """The call of a node, as it is to be sent once nothing is waited for.

    message       its meta lacks `flow`, `parent` and what counts from the release
    placement     `delay_ms` and the TTL of a dedupe key count from the release; `max_length` is asked at the start
    expires_ms    it is not started later than so long after its release, by the server's clock; None = no bound, or an
                  `expires` in the meta, which is a moment
    """

    message: Message
    placement: Placement = PLAIN
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a plan; its number is its place in it.

    call      None = a join: it has ended as soon as all that it waits for has. It stands between many and many, so that
              they have as many edges as nodes
    outs      runs of the nodes that wait for this one
    waits     how many nodes it waits for: in the `outs` of so many it stands. 0 = it is released at the start
    takes     whose values it gets: a shape in front of its arguments, or a map of shapes as keyword arguments
    policy    FAIL, SKIP or CONTINUE, where one that it waits for does not succeed
    errbacks  (node, task id) for each errback that is released when this one dies, or is lost: once, whichever node
              releases it first. It is told that the call with this id has failed, with the error of this node; with ''
              it is told nothing. Of a node with `beside`, ~number is one of the flow to which it is added
    errback   it is one: in no `outs`, and 0 `waits`
    fails     the sink that can never run once this one has failed: it hears of that first. None = no single one
    sink      its result belongs to the flow: nobody waits for it, and where it can never run it ends, with the error of
              the one that failed, before all others
    name      of a node of a graph, or ''
    beside    it is added by a call that runs, to a list of which that one is a member: numbers, in the flow, of the
              nodes that wait for that one and take the list; they wait for this one, too, and take its value at the end
    """

    call: Call | None
    outs: Runs = ()
    waits: int = 0
    takes: Takes = None
    policy: str = FAIL
    errbacks: Sequence[tuple[int, str]] = ()
    errback: bool = False
    fails: int | None = None
    sink: bool = False
    name: str = ""
    beside: Sequence[int] = ()


@dataclass(frozen=True)
class Plan:
    """A flow that can be started.

    id             of the flow; any task id will do
    nodes          in their order; gone through once, so that a large one need never be in memory as a whole
    description    for people
    result_ttl_ms  how long it is known after its end
    expires_ms     so long after its last progress it is ended; 30 days
    grows          it is a batch: nodes may be added until it is sealed
    lease_ms       a batch whose block was not heard of for so long is sealed as abandoned
    callbacks      one of CALLBACKS -> the node that is released then, once: it is an errback that nobody names
    """

    id: str
    nodes: Iterable[Node]
    description: str = ""
    result_ttl_ms: int = 86_400_000
    expires_ms: int = 30 * 86_400_000
    grows: bool = False
    lease_ms: int = 10_000
    callbacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """What a node with the policy CONTINUE gets in place of a value that there is not.

    error  the exception; of a call that was revoked, expired, superseded, purged or a duplicate: TaskRevoked
    """

    error: Exception


def in_runs(numbers: Iterable[int]) -> list[int]:
    """Numbers, in their order, as runs."""
    runs: list[int] = []
    last = None
    for number in numbers:
        if last is not None and number == last + 1:
            if runs[-1] < 0:
                runs[-1] -= 1
            else:
                runs.append(-1)
        else:
            runs.append(number)
        last = number
    return runs


def shifted(runs: Runs, base: int) -> list[int]:
    """Runs of numbers that are all greater by `base`."""
    return [number if number < 0 else number + base for number in runs]


def numbers_in(runs: Iterable[int]) -> Iterator[int]:
    """The inverse of `in_runs`."""
    last = 0
    for number in runs:
        if number < 0:
            yield from range(last + 1, last - number + 1)
            last -= number
        else:
            yield number
            last = number


def numbers_of(takes: Takes | Any) -> Iterator[int]:
    """All nodes whose values are taken, in the order in which they are bound."""
    if isinstance(takes, int):
        yield takes
    elif isinstance(takes, Mapping):
        for shape in takes.values():
            yield from numbers_of(shape)
    elif takes is not None:
        last = 0
        for part in takes:
            if not isinstance(part, int):
                yield from numbers_of(part)
            elif part < 0:
                yield from range(last + 1, last - part + 1)
                last -= part
            else:
                yield part
                last = part
