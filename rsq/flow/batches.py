"""What `app.batches` is: it finds batches again."""

from __future__ import annotations

from rsq.app import BaseApp
from rsq.calls.message import check_id
from rsq.calls.request import Request, current
from rsq.errors import SettingsError
from rsq.flow.batch import Batch
from rsq.flow.callbacks import BATCH_ID


class Batches:
    """The batches of an app: ``app.batches[id]``, and inside of a member ``app.batches.current``."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app

    def __getitem__(self, batch_id: str) -> Batch:
        """The batch with this id; whether it is on the server is told by what asks for it. SettingsError for no id."""
        return Batch(self._app, check_id(batch_id))

    @property
    def current(self) -> Batch:
        """The batch of the running call, for its members and callbacks. SettingsError where it is part of none."""
        delivery = current.get()
        flow_id = Request(delivery).flow
        if flow_id is None or not flow_id.startswith(BATCH_ID):
            raise SettingsError("the running call is part of no batch, or none runs: take app.batches[id]")
        return Batch(self._app, flow_id)
