"""What a running call adds to the chord of which it is a member: calls whose values the body gets, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from msgpack import unpackb  # type: ignore[import-untyped, unused-ignore]

from rsq.broker.flow_rows import JOIN, Stored
from rsq.broker.flows import NODES_PAGE, Flows
from rsq.calls.message import Delivery
from rsq.calls.plan import numbers_in
from rsq.canvas.signature import Signature
from rsq.errors import FlowGone, SettingsError
from rsq.flow.page import Filling, Page, add_inside
from rsq.flow.planner import After
from rsq.result import AsyncResult


@dataclass(frozen=True)
class _Place:
    """Where a call stands that takes part in a chord.

    flow_id   of the chord; not that of the call where it stands for another one
    waiting   the nodes that wait for it and take the list of which it is a member
    errbacks  number and told id of those that hear of it since what waits fails with it
    """

    flow_id: str
    waiting: list[int]
    errbacks: list[tuple[int, str]]


def add_beside(app: Any, signature: Signature[Any], delivery: Delivery) -> AsyncResult[Any]:
    """Plan it; it goes with the success of the call. Gives its handle. Raises SettingsError, FlowGone."""
    place = _place_of(app.client.flows, delivery)
    filling = Filling(app, partial(_Beside, place))
    (handle,) = filling.take([signature])
    filling.close()
    add_inside(app, delivery, place.flow_id, filling.full)
    return handle


class _Beside(Page):
    """Calls whose ends stand beside another one."""

    def __init__(self, place: _Place, app: Any) -> None:
        super().__init__(app)
        self._place = place

    def _placed(self, after: After) -> None:
        for end in after.ends:
            self._drafts[end].beside = self._place.waiting
        for number, _ in after.told:
            self._drafts[number].errbacks += [(~errback, told) for errback, told in self._place.errbacks]


def _place_of(flows: Flows, delivery: Delivery) -> _Place:
    flow_id, number = delivery.meta.get("flow", ("", 0))[:2]
    while flow_id and (above := flows.above(flow_id)) is not None and above[0] == number:
        _, flow_id, number = above
    row = flows.rows(flow_id, [number]).get(number) if flow_id else None
    if flow_id and row is None:
        raise FlowGone(f"flow {flow_id}, in which {delivery.task}[{delivery.id}] ran, is gone")
    waiting = {} if row is None else _lists_with(flows, flow_id, number, row)
    if row is None or not waiting:
        raise SettingsError(
            f"{delivery.task}[{delivery.id}] is in no chord whose body waits for it: self.add_to_chord() is for "
            "calls in the header of a chord"
        )
    return _Place(flow_id, [*waiting], _shared_errbacks(flows, flow_id, row, waiting))


def _lists_with(flows: Flows, flow_id: str, number: int, row: Stored) -> dict[int, Stored]:
    """What waits for this node and takes a list of which it is a member."""
    found = {}
    for out, node in flows.rows(flow_id, row.beside or [*islice(numbers_in(row.outs), NODES_PAGE)]).items():
        takers = _behind(flows, flow_id, node) if node.kind == JOIN else iter([node])
        taker = next(takers, None)
        if taker is not None and taker.waiting and taker.takes:
            takes = unpackb(taker.takes)
            if isinstance(takes, list) and (row.beside or number - taker.base in _members(takes)):
                found[out] = node
    return found


def _members(takes: list[Any]) -> Iterator[int]:
    """The nodes whose values stand in a list itself, and not in one inside of it."""
    return numbers_in(part for part in takes if isinstance(part, int))


def _shared_errbacks(flows: Flows, flow_id: str, row: Stored, waiting: dict[int, Stored]) -> list[tuple[int, str]]:
    """Those of its errbacks that are told that something else has failed; one that is told nothing is known by that."""
    pairs = [*zip(_numbers(row), row.errbacks[1::2], strict=True)]
    if not all(told for _, told in pairs):
        theirs = {
            number
            for node in waiting.values()
            for taker in (_behind(flows, flow_id, node) if node.kind == JOIN else [node])
            for number in _numbers(taker)
        }
    return [(number, told) for number, told in pairs if (number in theirs if told == "" else told != row.id)]


def _numbers(row: Stored) -> list[int]:
    """Its errbacks, as they are numbered in the flow."""
    return [~number if number < 0 else number + row.base for number in row.errbacks[::2]]


def _behind(flows: Flows, flow_id: str, join: Stored) -> Iterator[Stored]:
    """The nodes that wait for a join."""
    numbers = numbers_in(join.outs)
    while some := [*islice(numbers, NODES_PAGE)]:
        yield from flows.rows(flow_id, some).values()
