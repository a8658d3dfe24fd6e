"""The handle of a group."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rsq import codec
from rsq.calls.checks import positive
from rsq.calls.message import check_id
from rsq.handles import Handles, Linked, Numbers
from rsq.home import Home, home, reading_for
from rsq.result import AsyncResult
from rsq.result_set import ResultSet

if TYPE_CHECKING:
    from typing_extensions import Self

    from rsq.broker.client import Client

T = TypeVar("T")

SAVED_S = 86_400.0
"""How long a handle is kept that is saved: as long as results are, where nothing else is said."""


class GroupResult(Linked, ResultSet[T]):
    """What starting a group gives: the handles of its members, and an id.

    A group in it lies flat in its results; a chain that ends with a group stands in them as a GroupResult.

    id         of the group
    results    the handles, in order
    parent     the handle of what comes before it in its canvas, or None
    links      the handles of what `link` has follow it
    flow, whole, queue, duplicate  where it belongs
    """

    __slots__ = ("flow", "links", "parent", "whole")
    kind = "group"

    def __init__(
        self, client: Client, group_id: str, results: Iterable[AsyncResult[Any]], parent: AsyncResult[Any] | None = None
    ) -> None:
        super().__init__(client, results)
        self.id = group_id
        self.parent = parent
        self.flow = ""
        self.whole = False
        self.links: Sequence[AsyncResult[Any]] = ()

    @classmethod
    def restore(cls, group_id: str, app: Home | None = None) -> GroupResult[Any] | None:
        """The handle that was saved under this id, or None. Raises BrokerError.

        app  default: that of the running call, else the project's
        """
        where = app or home()
        packed = where.client.saved_handle(check_id(group_id))
        if packed is None:
            return None
        with reading_for(where):
            restored: GroupResult[Any] = codec.decode(packed)
        return restored

    @classmethod
    async def arestore(cls, group_id: str, app: Home | None = None) -> GroupResult[Any] | None:
        """`restore` for coroutines."""
        where = app or home()
        return await asyncio.get_running_loop().run_in_executor(None, cls.restore, group_id, where)

    def save(self, expires: float | timedelta = SAVED_S) -> None:
        """Keep it on the server, to be found by `restore` with its id.

        expires  seconds, or a timedelta
        Raises   SettingsError, BrokerError
        """
        self._client.save_handle(self.id, codec.encode(self), int(positive("expires", expires) * 1000))

    async def asave(self, expires: float | timedelta = SAVED_S) -> None:
        """`save` for coroutines."""
        await self._aside(lambda: self.save(expires))

    def delete(self) -> None:
        """Take back `save`. The results stay."""
        self._client.forget_handle(self.id)

    async def adelete(self) -> None:
        """`delete` for coroutines."""
        await self._aside(self.delete)

    def _row(self, number_of: Numbers) -> list[Any]:
        results = [number_of(each) for each in self.results]
        return [self.id, results, self.flow, self.whole, *self._leads(number_of)]

    @classmethod
    def _of_row(cls, app: Home, row: Sequence[Any], handle_of: Handles) -> Self:
        group_id, results, flow, whole, _, _ = row
        made = cls(app.client, check_id(group_id), [handle_of(each) for each in results])
        made.flow, made.whole = check_id(flow) if flow else "", bool(whole)
        return made

    @property
    def children(self) -> Sequence[AsyncResult[Any]]:  # type: ignore[override]
        """The same as `results`."""
        return self.results

    def revoke(self, terminate: bool = False) -> None:
        """Have the members not run that have not ended; of a whole canvas that is all of it.

        terminate  raise TaskRevoked in what runs
        """
        if self.whole:
            self._client.cancel_flow(self.flow, terminate)
        else:
            super().revoke(terminate)
