"""Batches: calls that are told of as one, and may become more while they run. What users do with one; how it is kept
open while it is filled is in `rsq.flow.filling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

from rsq.calls.message import Delivery, new_id
from rsq.calls.plan import Node
from rsq.calls.request import current
from rsq.canvas.signature import Signature
from rsq.flow.handle import FlowHandle
from rsq.flow.page import Filling, aadd_inside, add_inside
from rsq.flow.telling import told_after, told_before
from rsq.result import AsyncResult

R = TypeVar("R")


class Batch(FlowHandle):
    """A batch by its id.

    id  of the batch, also the `self.request.flow` of its members and callbacks
    """

    what = "batch"

    @overload
    def add(self, signature: Signature[R], /) -> AsyncResult[R]: ...

    @overload
    def add(self, *signatures: Signature[Any]) -> list[AsyncResult[Any]]: ...

    def add(self, *signatures: Any) -> Any:
        """Add calls, or whole canvases; gives the handle of each, alone where it is one.

        In a member of the batch they go with its success: a run that fails adds nothing. Everybody
        else may add as long as the batch is open.

        Raises  BatchClosed: it is sealed, has ended, or is gone; SettingsError, and what sending them raises
        """
        filling, handles = self._filled(signatures)
        delivery = self._member()
        if delivery is not None:
            filling.close()
            add_inside(self._app, delivery, self.id, filling.full)
        else:
            for nodes in self._pages(filling):
                self._app.client.flows.add(self.id, new_id(), nodes)
                told_after(nodes, self.id)
        return handles[0] if len(signatures) == 1 else handles

    async def aadd(self, *signatures: Any) -> Any:
        """`add` for coroutines."""
        filling, handles = self._filled(signatures)
        delivery = self._member()
        if delivery is not None:
            filling.close()
            await aadd_inside(self._app, delivery, self.id, filling.full)
        else:
            for nodes in self._pages(filling):
                await self._app.client.flows.aadd(self.id, new_id(), nodes)
                told_after(nodes, self.id)
        return handles[0] if len(signatures) == 1 else handles

    def _pages(self, filling: Filling) -> list[list[Node]]:
        filling.close()
        pages = [page.nodes() for page in filling.full]
        for nodes in pages:
            told_before(nodes, self.id)
        return pages

    def _filled(self, signatures: Sequence[Any]) -> tuple[Filling, list[AsyncResult[Any]]]:
        filling = Filling(self._app)
        return filling, filling.take(signatures)

    def _member(self) -> Delivery | None:
        """The call that runs, where it is a member of this batch."""
        delivery = current.get()
        return delivery if delivery is not None and delivery.meta.get("flow", ("",))[0] == self.id else None
