"""The last step of a plan: drafts, in the order in which they came up, become numbered nodes.

They are numbered by levels: first all that waits for nothing, then what waits for these alone, errbacks last. So the
members of a group stand in a row, whatever each of them begins, and lists of them are a few runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsq.calls.plan import FAIL, Call, Node, in_runs


@dataclass
class Draft:
    """A node that may yet get edges; `outs`, `takes` and `errbacks` name drafts by their places.

    takes   the shape of what it takes, without runs
    beside  as of a `Node`; with it errbacks may be numbered as there, too
    """

    call: Call | None
    waits: int = 0
    takes: Any = None
    outs: list[int] = field(default_factory=list)
    errbacks: list[tuple[int, str]] = field(default_factory=list)
    errback: bool = False
    sink: bool = False
    policy: str = FAIL
    name: str = ""
    beside: Sequence[int] = ()


def numbered(drafts: Sequence[Draft], base: int = 0) -> tuple[list[Node], list[int]]:
    """The nodes of a plan, and for each draft its number. What waits stands behind what it waits for.

    base  number of the first one
    """
    levels = [0] * len(drafts)
    for place, draft in enumerate(drafts):
        for out in draft.outs:
            levels[out] = max(levels[out], levels[place] + 1)
    order = sorted(range(len(drafts)), key=lambda place: (drafts[place].errback, levels[place]))
    numbers = [0] * len(drafts)
    for number, place in enumerate(order, base):
        numbers[place] = number
    fails = _fails(drafts)
    shapes: dict[int, Any] = {}  # many may take the same one
    nodes = []
    for place in order:
        draft = drafts[place]
        if id(draft.takes) not in shapes:
            shapes[id(draft.takes)] = _in_runs(draft.takes, numbers)
        fallen = fails[place]
        node = Node(
            draft.call,
            in_runs(sorted(numbers[out] for out in draft.outs)),
            draft.waits,
            shapes[id(draft.takes)],
            draft.policy,
            errbacks=[(errback if errback < 0 else numbers[errback], told) for errback, told in draft.errbacks],
            errback=draft.errback,
            fails=None if fallen is None else numbers[fallen],
            sink=draft.sink,
            name=draft.name,
            beside=draft.beside,
        )
        nodes.append(node)
    return nodes, numbers


def _fails(drafts: Sequence[Draft]) -> list[int | None]:
    """For each draft the sink that fails with it, or None where there are several."""
    fails: list[int | None] = [None] * len(drafts)
    for place in reversed(range(len(drafts))):
        waiting = [out for out in drafts[place].outs if drafts[out].policy == FAIL]
        behind = {out if drafts[out].sink else fails[out] for out in waiting} - {None}
        fails[place] = behind.pop() if len(behind) == 1 else None
    return fails


def _in_runs(shape: Any, numbers: Sequence[int]) -> Any:
    """A shape of places as one of numbers, those in a row as runs."""
    if shape is None or isinstance(shape, int):
        return None if shape is None else numbers[shape]
    if isinstance(shape, Mapping):
        return {name: _in_runs(part, numbers) for name, part in shape.items()}
    parts: list[Any] = []
    row: list[int] = []
    for part in shape:
        if isinstance(part, int):
            row.append(numbers[part])
        else:
            parts += [*in_runs(row), _in_runs(part, numbers)]
            row = []
    return [*parts, *in_runs(row)]
