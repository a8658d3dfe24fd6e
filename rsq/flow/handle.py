"""What is done with a flow that was started, whatever kind it is: it is watched, waited for, and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, ClassVar

from rsq.app import BaseApp
from rsq.broker.flow_looks import Flow
from rsq.errors import FlowGone
from rsq.flow.progress import FlowProgress, looks


class FlowHandle:
    """A flow by its id.

    id    of the flow, also the `self.request.flow` of its calls
    what  it is called in errors
    """

    what: ClassVar[str] = "flow"

    def __init__(self, app: BaseApp, flow_id: str) -> None:
        self.id = flow_id
        self._app = app

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    @property
    def progress(self) -> FlowProgress:
        """Done, failed, open, total: one read. Raises FlowGone when it is not on the server any more."""
        return FlowProgress.of(self._look())

    @property
    def description(self) -> str:
        """What was said of it when it was made. Raises FlowGone."""
        return self._look().description

    def wait(self, timeout: float | None = None) -> FlowProgress:
        """Wait until all of it has ended, callbacks too, however that was. Raises ResultTimeout, FlowGone."""
        client = self._app.client
        for listen_s in looks(self.id, timeout):
            progress = self.progress
            if progress.ended:
                return progress
            if listen_s:
                client.listener.wait([client.flows.channel(self.id)], listen_s)
        raise AssertionError("its looks end with an error")

    def __await__(self) -> Generator[Any, None, FlowProgress]:
        """To await it is `wait` for coroutines; for a timeout there is `asyncio.wait_for`."""
        return self._awaited().__await__()

    async def _awaited(self) -> FlowProgress:
        client, loop = self._app.client, asyncio.get_running_loop()
        for listen_s in looks(self.id, None):
            progress = await loop.run_in_executor(None, lambda: self.progress)
            if progress.ended:
                return progress
            await client.alistener.wait([client.flows.channel(self.id)], listen_s)
        raise AssertionError("it waits without a timeout")

    def cancel(self, terminate: bool = False) -> bool:
        """End it: what waits never starts, and no callback runs. False: it had ended, or is gone.

        terminate  raise TaskRevoked in what runs
        """
        return self._app.client.cancel_flow(self.id, terminate)

    async def acancel(self, terminate: bool = False) -> bool:
        """`cancel` for coroutines."""
        return await asyncio.get_running_loop().run_in_executor(None, self.cancel, terminate)

    def _look(self) -> Flow:
        flow = self._app.client.flows.look(self.id)
        if flow is None:
            raise FlowGone(f"{self.what} {self.id} is not on the server: it has ended long ago, or never began")
        return flow
