"""More tasks of the same app: those that run for longer than they may."""

from __future__ import annotations

import asyncio
import ctypes
import time
from typing import Any

from rsq import SoftTimeLimitExceeded, Task, TimeLimitExceeded
from tests.integration.tasks import app, journal

FOR_EVER_S = 600


def linger(how: str) -> None:
    """Until something ends it."""
    while how == "loop":
        pass
    if how == "sleep":
        time.sleep(FOR_EVER_S)
    if how == "hold the GIL":
        ctypes.PyDLL(None).sleep(FOR_EVER_S)


@app.task(bind=True, max_retries=1)
def lingers(self: Task[..., Any], how: str) -> None:
    journal("began", self.request.attempt)
    linger(how)


@app.task(bind=True, max_retries=1)
async def alingers(self: Task[..., Any], how: str) -> None:
    journal("began", self.request.attempt)
    if how == "await":
        await asyncio.sleep(FOR_EVER_S)
    linger(how)


@app.task(acks_late=False)
def lingers_once() -> None:
    journal("began")
    time.sleep(FOR_EVER_S)


@app.task(max_retries=0)
def cleans_up(how: str) -> str:
    journal("began")
    try:
        linger(how)
    except SoftTimeLimitExceeded:
        journal("cleaned up")
    return "partial"


@app.task(max_retries=0)
async def acleans_up(how: str) -> str:
    journal("began")
    try:
        if how == "two awaits":
            await asyncio.gather(asyncio.sleep(FOR_EVER_S), asyncio.sleep(FOR_EVER_S))
        await asyncio.wait_for(asyncio.sleep(FOR_EVER_S), 2 * FOR_EVER_S)
    except SoftTimeLimitExceeded:
        await asyncio.wait_for(asyncio.sleep(0.01), 60)  # it is not cancelled any more
        journal("cleaned up")
    return "partial"


@app.task(max_retries=0)
def does_not_listen(times: int) -> str:
    """Goes on after so many errors."""
    for _ in range(times):
        try:
            linger("loop")
        except TimeLimitExceeded:
            journal("caught")
    return "done all the same"


@app.task(bind=True, time_limit=50, soft_time_limit=40)
def tells_limits(self: Task[..., Any]) -> tuple[float | None, float | None]:
    return self.request.timelimit


@app.task(time_limit=0.5, dont_autoretry_for=(TimeLimitExceeded,))
def lingers_unforgiven() -> None:
    journal("began")
    time.sleep(FOR_EVER_S)


@app.task(max_retries=0)
def ignores_soft() -> None:
    try:
        linger("loop")
    except SoftTimeLimitExceeded:
        journal("soft")
    linger("loop")


@app.task(max_retries=0)
async def aignores_soft() -> None:
    try:
        await asyncio.sleep(FOR_EVER_S)
    except SoftTimeLimitExceeded:
        journal("soft")
    await asyncio.sleep(FOR_EVER_S)
