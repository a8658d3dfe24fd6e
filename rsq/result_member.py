"""The handle of one call of a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rsq.calls.message import check_id
from rsq.handles import Handles, Linked, Numbers, checked_place
from rsq.home import Home
from rsq.result import AsyncResult

if TYPE_CHECKING:
    from typing_extensions import Self

    from rsq.broker.client import Client
    from rsq.broker.waiting import InFlow

T = TypeVar("T")


class MemberResult(Linked, AsyncResult[T]):
    """The handle of one call of a flow.

    links   the handles of what `link` has follow it
    next    that of the next step of its chain, or None; it is not among what travels
    flow    id of the flow
    number  of the call in it
    last    it has a result of its own whatever happens, since its caller waits for it
    whole   it is the handle of the whole canvas, whose last call this is
    """

    __slots__ = ("flow", "last", "links", "next", "number", "parent", "whole")
    kind = "member"

    def __init__(self, client: Client, task_id: str, queue: str | None, ignored: bool = False) -> None:
        super().__init__(client, task_id, queue, ignored)
        self.flow = ""
        self.number = 0
        self.last = self.whole = False
        self.parent: AsyncResult[Any] | None = None
        self.links: Sequence[AsyncResult[Any]] = ()
        self.next: AsyncResult[Any] | None = None

    @property
    def children(self) -> Sequence[AsyncResult[Any]]:  # type: ignore[override]
        """The handles of what follows it: by `link`, and then as the next step of its chain."""
        return self.links if self.next is None else [*self.links, self.next]

    def _row(self, number_of: Numbers) -> list[Any]:
        place = [self.flow, self.number, self.last, self.whole]
        return [self.id, self.queue, self._ignored, *place, *self._leads(number_of)]

    @classmethod
    def _of_row(cls, app: Home, row: Sequence[Any], handle_of: Handles) -> Self:
        task_id, queue, ignored, flow, number, last, whole, _, _ = row
        made = cls(app.client, *checked_place(task_id, queue), bool(ignored))
        made.flow, made.number, made.last, made.whole = check_id(flow), int(number), bool(last), bool(whole)
        return made

    def revoke(self, terminate: bool = False) -> None:
        """Have the call not run; the handle of a whole canvas cancels it, with all that has not ended.

        terminate  raise TaskRevoked in what runs
        """
        if self.whole:
            self._client.cancel_flow(self.flow, terminate)
        elif not self._client.flows.revoke(self.flow, self.number):
            super().revoke(terminate)

    async def arevoke(self, terminate: bool = False) -> None:
        """`revoke` for coroutines."""
        await self._aside(lambda: self.revoke(terminate))

    def _read(self) -> bytes | None:
        data = super()._read()
        return data if data is not None or self.last else self._client.flows.outcome(self.flow, self.number)

    def _place(self) -> InFlow | None:
        return None if self.last else self._client.flows.place(self.flow, self.number)
