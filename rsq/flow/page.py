"""A page of calls that are added to a flow: to a batch by who fills it, or by a call that runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rsq.broker.flow_pages import PAGE_NODES
from rsq.calls.message import Delivery, new_id
from rsq.calls.plan import Node
from rsq.canvas.signature import Group, Signature, check_signature
from rsq.errors import SettingsError
from rsq.flow.numbering import numbered
from rsq.flow.planner import Planner, nothing_before
from rsq.flow.telling import queues_of, told_before
from rsq.result import AsyncResult
from rsq.result_group import GroupResult


class Page(Planner):
    """Calls that are added in one step, PAGE_NODES at most, callbacks and all."""

    def __len__(self) -> int:
        return len(self._drafts)

    def take(self, signature: Signature[Any]) -> AsyncResult[Any] | None:
        """One more member; its handle. None where there is no room for all of it: then the page is as it was.

        Raises what planning it raises.
        """
        before = len(self._drafts)
        self._root = None
        try:
            after = self._part(signature, nothing_before, 0)
        except BaseException:
            del self._drafts[before:]
            raise
        if len(self._drafts) > PAGE_NODES:
            size = len(self._drafts) - before
            del self._drafts[before:]
            if not before:
                raise SettingsError(
                    f"a canvas of {size:,} calls cannot be added to a batch in one piece, which has {PAGE_NODES:,} at "
                    f"most: add its parts, or a task that starts it ({signature!r})"
                )
            return None
        for place in after.ends:
            self._drafts[place].sink = True
        return unplaced(after.handle)

    def nodes(self, base: int = 0) -> list[Node]:
        """As `Plan` has them; their edges count from `base`."""
        return numbered(self._drafts, base)[0]


class Filling:
    """Fills pages, one after the other."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._page = Page(app)
        self.full: list[Page] = []

    def take(self, signatures: Iterable[Any]) -> list[AsyncResult[Any]]:
        """Add these; a group without callbacks is as its members are, so it may be larger than a page."""
        return [self._taken(check_signature(signature, "add")) for signature in signatures]

    def close(self) -> None:
        """What there is of a page is one."""
        if len(self._page):
            self.full.append(self._page)
            self._page = Page(self._app)

    def _taken(self, signature: Signature[Any]) -> AsyncResult[Any]:
        if isinstance(signature, Group) and not (signature.links or signature.errbacks):
            results = [self._taken(member) for member in signature]
            return GroupResult(self._app.client, signature.id or new_id(), results)
        handle = self._page.take(signature)
        if handle is None:
            self.close()
            handle = self._page.take(signature)
            assert handle is not None
        return handle


def add_inside(app: Any, delivery: Delivery, flow_id: str, pages: Iterable[Page]) -> None:
    """Have what a call that runs adds to a flow go with its success. Raises SettingsError."""
    added: dict[str, list[Node]] = getattr(delivery, "added", {})
    known = added.get(flow_id, [])
    nodes = [*known]
    for page in pages:
        nodes += page.nodes(len(nodes))
    if len(nodes) > PAGE_NODES:
        raise SettingsError(
            f"{delivery.task}[{delivery.id}] adds {len(nodes):,} calls to its batch or chord, and one call adds "
            f"{PAGE_NODES:,} at most: add calls of a task that adds the rest"
        )
    fresh = nodes[len(known) :]
    told_before(fresh, flow_id)
    app.client.flows.introduce(flow_id, queues_of(fresh) - {delivery.queue})
    delivery.added = {**added, flow_id: nodes}


def unplaced(handle: AsyncResult[Any]) -> AsyncResult[Any]:
    """The same without its number, which nobody knows before it was added."""
    if isinstance(handle, GroupResult):
        return GroupResult(handle._client, handle.id, [unplaced(each) for each in handle])
    return AsyncResult(handle._client, handle.id, handle.queue, handle._ignored)
