"""A page of calls that are added to a flow: to a batch by who fills it, or by a call that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rsq.broker.adding import Adding
from rsq.broker.flow_pages import PAGE_NODES
from rsq.calls.message import Delivery, new_id
from rsq.calls.plan import Node
from rsq.canvas.signature import Group, Signature, check_signature
from rsq.errors import SettingsError
from rsq.flow.numbering import numbered
from rsq.flow.planner import After, Planner, nothing_before
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
                    f"a canvas of {size:,} calls cannot be added to a batch or chord in one piece, which has "
                    f"{PAGE_NODES:,} at most: add its parts, or a task that starts it ({signature!r})"
                )
            return None
        self._placed(after)
        return unplaced(after.handle)

    def _placed(self, after: After) -> None:
        """What has just been added has come to this."""
        for place in after.ends:
            self._drafts[place].sink = True

    def nodes(self, base: int = 0) -> list[Node]:
        """As `Plan` has them; their edges count from `base`."""
        return numbered(self._drafts, base)[0]


class Filling:
    """Fills pages, one after the other.

    new  makes one; default: for a batch
    """

    def __init__(self, app: Any, new: Callable[[Any], Page] = Page) -> None:
        self._app = app
        self._new = new
        self._page = new(app)
        self.full: list[Page] = []

    def take(self, signatures: Iterable[Any]) -> list[AsyncResult[Any]]:
        """Add these; a group without callbacks is as its members are, so it may be larger than a page."""
        return [self._taken(check_signature(signature, "add")) for signature in signatures]

    def close(self) -> None:
        """What there is of a page is one."""
        if len(self._page):
            self.full.append(self._page)
            self._page = self._new(self._app)

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
    """Have what a call that runs adds to a flow go with its success. Raises SettingsError, and what sending it raises.

    Of what could not be sent the rest goes with the next that is added, or with the outcome.
    """
    adding, queues = _added(delivery, flow_id, pages)
    app.client.flows.introduce(flow_id, queues)
    app.client.flows.keep(delivery, adding)


async def aadd_inside(app: Any, delivery: Delivery, flow_id: str, pages: Iterable[Page]) -> None:
    """`add_inside` for coroutines."""
    adding, queues = _added(delivery, flow_id, pages)
    await app.client.flows.aintroduce(flow_id, queues)
    await app.client.flows.akeep(delivery, adding)


def _added(delivery: Delivery, flow_id: str, pages: Iterable[Page]) -> tuple[Adding, set[str]]:
    """With what is added now; and where that goes, as far as it may be unknown there."""
    if not hasattr(delivery, "added"):
        delivery.added = {}
    adding = delivery.added.setdefault(flow_id, Adding(flow_id))
    fresh = [node for page in pages for node in adding.add(len(page), page.nodes)]
    told_before(fresh, flow_id)
    return adding, queues_of(fresh) - {delivery.queue}


def unplaced(handle: AsyncResult[Any]) -> AsyncResult[Any]:
    """The same without its number, which nobody knows before it was added."""
    if isinstance(handle, GroupResult):
        return GroupResult(handle._client, handle.id, [unplaced(each) for each in handle])
    return AsyncResult(handle._client, handle.id, handle.queue, handle._ignored)
