"""More tasks of the same app: those that add to their flows, and replace themselves."""

from __future__ import annotations

from typing import Any

from rsq import Signature, Task
from tests.integration.tasks import add, app

__all__ = ["app"]


@app.task(bind=True)
def doubles(self: Task[..., Any], number: int) -> Any:
    self.replace(add.s(number, number))


@app.task(bind=True)
async def adoubles(self: Task[..., Any], number: int) -> Any:
    self.replace(add.s(number, number) | add.s(0))


@app.task(bind=True)
def becomes(self: Task[..., Any], sig: Signature[Any]) -> Any:
    self.replace(sig)
