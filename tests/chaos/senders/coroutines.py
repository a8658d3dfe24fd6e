"""Coroutines of one event loop that send and wait, many at once, by `aapply_async` and `aget`."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

from rsq import AsyncResult
from tests.chaos import tasks
from tests.chaos.senders.crowd import tell_problem
from tests.chaos.senders.sender import Sender
from tests.chaos.senders.waiters import TIMEOUTS_S, draw_call, serial_of, tell, told

COROUTINES = 12
PAUSE_S = 0.5
CANCELLED_AFTER_S = (0.0, 0.01, 0.05, 0.5)


class Coroutines:
    """A thread with a loop; each of its coroutines sends, and some wait for it."""

    def __init__(self, sender: Sender, seed: int) -> None:
        self._sender = sender
        self._seed = seed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stop.set()

    def join(self, patience_s: float) -> None:
        """Let each end what it is at; who does not, within this time, is a problem."""
        self.stop()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._sender.journal.write("problem", text=f"coroutines are still at it after {patience_s:g} s")

    async def _run(self) -> None:
        await asyncio.gather(*(self._go_on(number) for number in range(COROUTINES)))
        await tasks.app.aclose()

    async def _go_on(self, number: int) -> None:
        rng = random.Random(f"{self._seed}-coroutine-{number}")
        while not self._stop.is_set():
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))
            try:
                await self._act(rng)
            except Exception as error:
                tell_problem(self._sender.journal, "coroutines", error)

    async def _act(self, rng: random.Random) -> None:
        kind = rng.choices(("short", "slow", "fails", "delayed"), weights=(20, 1, 2, 4))[0]
        task, arguments = draw_call(rng, kind)
        options: dict[str, Any] = {"countdown": rng.uniform(0.05, 1.0)} if kind == "delayed" else {}
        handle = await self._sender.asend(task, *arguments, **options)
        if handle is not None and rng.random() < 0.5:
            await self._wait(handle, rng)

    async def _wait(self, handle: AsyncResult[Any], rng: random.Random) -> None:
        """One in four changes its mind on the way."""
        patience_s = rng.choice(CANCELLED_AFTER_S) if rng.random() < 0.25 else None
        timeout = rng.choice(TIMEOUTS_S)
        began, value, how = time.monotonic(), None, "error"
        try:
            waiting = asyncio.ensure_future(handle.aget(timeout=timeout))
            value = serial_of(await asyncio.wait_for(waiting, patience_s))
            how = "value"
        except Exception as error:
            # Of its class alone: what rsq raises is one of its children.
            how = "cancelled" if type(error) is asyncio.TimeoutError else told(error)
        finally:
            tell(self._sender, handle, began, timeout, how, value)
