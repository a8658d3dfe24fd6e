"""What all batches have: an id that tells it, and callbacks, calls of one task each, which are told nothing."""

from __future__ import annotations

from typing import Any

from rsq.calls.message import new_id
from rsq.calls.plan import Node
from rsq.canvas.signature import Canvas, Signature, check_signature
from rsq.errors import SettingsError
from rsq.flow.planner import Planner

BATCH_ID = "batch-"
"""So begin the ids of batches, so that a call that is part of one knows it."""


def new_batch_id() -> str:
    return BATCH_ID + new_id()


class Callbacks(Planner):
    """Plans them."""

    def node(self, callback: Signature[Any]) -> Node:
        return Node(self._made(callback, None, False, errback=True), errback=True)


def checked(name: str, given: Any) -> Signature[Any]:
    """A callback as it can be planned. Raises SettingsError."""
    callback = check_signature(given, f"on_{name}")
    if isinstance(callback, Canvas) or callback.links or callback.errbacks:
        raise SettingsError(
            f"on_{name} is the signature of one task without callbacks, not {callback!r}: let that task start the rest"
        )
    return callback.clone().set(immutable=True)
