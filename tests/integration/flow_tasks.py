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


@app.task
def grows(depth: int, width: int) -> None:
    """A tree of calls: each adds `width` of the next level to its batch."""
    if depth:
        app.batches.current.add(*(grows.s(depth - 1, width) for _ in range(width)))


@app.task
async def agrows(depth: int, width: int) -> None:
    """The same as coroutines."""
    if depth:
        await app.batches.current.aadd(*(agrows.s(depth - 1, width) for _ in range(width)))
