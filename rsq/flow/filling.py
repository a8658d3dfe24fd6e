"""A batch while it is filled: by a block of code, which keeps it open and seals it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rsq.app import BaseApp
from rsq.calls.message import new_id
from rsq.calls.plan import Node, Plan
from rsq.canvas.signature import Signature, check_signature
from rsq.errors import BatchClosed, BrokerError, SettingsError
from rsq.flow.batch import Batch
from rsq.flow.batch_step import batch_step
from rsq.flow.callbacks import Callbacks, checked, new_batch_id
from rsq.flow.page import Filling
from rsq.flow.telling import told_after, told_before
from rsq.result import AsyncResult

if TYPE_CHECKING:
    from typing_extensions import Self

LEASE_MS = 30_000
"""A batch whose block was not heard of for so long is sealed as abandoned."""


class NewBatch(Batch):
    """A batch that is made by a block: ``with app.batch(on_success=done.s()) as batch: batch.add(work.s(1))``.

    id  of the batch, also the `self.request.flow` of its members and callbacks
    """

    def __init__(self, app: BaseApp, callbacks: Mapping[str, Signature[Any] | None], description: str) -> None:
        super().__init__(app, new_batch_id())
        if not isinstance(description, str):
            raise SettingsError(f"the description of a batch is a text, not {description!r}")
        self._callbacks = {name: checked(name, given) for name, given in callbacks.items() if given is not None}
        self._text = description
        self._size = 0
        self._filling: Filling | None = None
        self._unsent: deque[tuple[str, list[Node]]] = deque()
        self._lock = threading.Lock()  # guards both
        self._ended = threading.Event()
        self._keeper: asyncio.Task[None] | None = None

    # -- the block

    def __enter__(self) -> Self:
        self._app.client.flows.start(self._plan())
        self._filling = Filling(self._app)
        threading.Thread(target=self._keep, name="rsq-batch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if kind is not None:
            with contextlib.suppress(BrokerError):  # else it is sealed as abandoned
                self.cancel()
            return
        self.flush()
        self._app.client.flows.seal(self.id)

    async def __aenter__(self) -> Self:
        await self._app.client.flows.astart(self._plan())
        self._filling = Filling(self._app)
        self._keeper = asyncio.create_task(self._akeep(), name="rsq-batch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._keeper is not None:
            self._keeper.cancel()
        if kind is not None:
            with contextlib.suppress(BrokerError):
                await self.acancel()
            return
        await self.aflush()
        await self._app.client.flows.aseal(self.id)

    # -- as a step of a canvas

    def s(self, *signatures: Signature[Any]) -> Signature[dict[str, Any]]:
        """This batch of these calls as a signature, to stand in a canvas. What comes before it goes to each member.

        Its value is the summary, a map with id, total, done and failed; it never fails because of a member.
        """
        members = [check_signature(each, "a batch") for each in signatures]
        return batch_step(self._app, members, self._callbacks, self._text)

    # -- to fill it

    def _plan(self) -> Plan:
        if self._filling is not None:
            raise SettingsError("a batch is filled by one block: make another one by app.batch()")
        planner = Callbacks(self._app)
        nodes = [planner.node(self._callbacks[name]) for name in self._callbacks]
        numbers = {name: number for number, name in enumerate(self._callbacks)}
        told_before(nodes, self.id)
        expires_ms = self._app.client.settings.flow_expires_ms
        return Plan(self.id, nodes, self._text, expires_ms=expires_ms, grows=True, lease_ms=LEASE_MS, callbacks=numbers)

    def add(self, *signatures: Any) -> Any:
        """Add calls, or whole canvases; gives the handle of each, alone where it is one. They are sent in thousands.

        Raises  BatchClosed; SettingsError, and what sending them raises
        """
        handles = self._buffered(signatures)
        if self._unsent:
            self._send()
        return handles

    async def aadd(self, *signatures: Any) -> Any:
        """`add` for coroutines."""
        handles = self._buffered(signatures)
        if self._unsent:
            await self._asend()
        return handles

    def _buffered(self, signatures: Sequence[Any]) -> Any:
        if self._filling is None or self._ended.is_set():
            raise BatchClosed(
                f"batch {self.id} is filled inside of its block, and by its members: with app.batch() as batch: ..."
            )
        with self._lock:
            handles: list[AsyncResult[Any]] = self._filling.take(signatures)
            self._collect()
        return handles[0] if len(signatures) == 1 else handles

    def _collect(self, rest: bool = False) -> None:
        """Pages that are full are to be sent. `rest`: the one that is not, too."""
        assert self._filling is not None
        if rest:
            self._filling.close()
        full, self._filling.full = self._filling.full, []
        for page in full:
            nodes = page.nodes()
            self._size += len(nodes)
            if self._size > (most := self._app.client.settings.max_flow_calls):
                raise SettingsError(
                    f"a batch has {most:,} calls at most (max_flow_calls), and batch {self.id} would have "
                    f"{self._size:,}: make several of it"
                )
            told_before(nodes, self.id)
            self._unsent.append((new_id(), nodes))

    def _send(self) -> None:
        while (page := self._first()) is not None:
            self._app.client.flows.add(self.id, *page)
            self._sent(page)

    async def _asend(self) -> None:
        while (page := self._first()) is not None:
            await self._app.client.flows.aadd(self.id, *page)
            self._sent(page)

    def _first(self) -> tuple[str, list[Node]] | None:
        """What is to be sent next. Another thread may send the same one: by its key it is added once."""
        with self._lock:
            return self._unsent[0] if self._unsent else None

    def _sent(self, page: tuple[str, list[Node]]) -> None:
        with self._lock:
            if not self._unsent or self._unsent[0] is not page:
                return
            self._unsent.popleft()
        told_after(page[1], self.id)

    def flush(self) -> None:
        """Send what was added and has not been yet, less than a thousand calls. Raises what `add` raises."""
        with self._lock:
            self._collect(rest=True)
        self._send()

    async def aflush(self) -> None:
        """`flush` for coroutines."""
        with self._lock:
            self._collect(rest=True)
        await self._asend()

    # -- to keep it open

    def _keep(self) -> None:
        while not self._ended.wait(LEASE_MS / 3000):
            try:
                self.flush()
                if not self._app.client.flows.keep_open(self.id):
                    return
            except BatchClosed:
                return  # whoever adds next is told
            except BrokerError:
                continue

    async def _akeep(self) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            try:
                await self.aflush()
                if not await self._app.client.flows.akeep_open(self.id):
                    return
            except BatchClosed:
                return
            except BrokerError:
                continue
