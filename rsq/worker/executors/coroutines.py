"""Many coroutines at once on one loop, and plain functions in threads beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from rsq.calls.message import Delivery
from rsq.worker.executors.lane import Executor, Lane, Surroundings
from rsq.worker.interrupt import InThread
from rsq.worker.loops import LaneTask, run_to_end


class AsyncioExecutor(Executor):
    """The loop runs in the thread that serves. A lane is taken for each body and given back after it."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings, len(surroundings.board.slots), InThread)
        self._hand_back = surroundings.hand_back
        self._free = self._lanes[::-1]
        self._begun = 0
        self._failure: BaseException | None = None
        self._pool = ThreadPoolExecutor(self.slots, "rsq-task")
        self._loop = asyncio.new_event_loop()
        self._bell = asyncio.Event()
        self._tasks: set[LaneTask] = set()
        self._inbox.ring = self._ring

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough."""
        asyncio.set_event_loop(self._loop)
        try:
            run_to_end(self._loop, self._serve())
        finally:
            self._pool.shutdown()
            self._lanes[0].attempts.close_loop(self._loop)
            self._links.close()

    async def _serve(self) -> None:
        inbox, free, bell = self._inbox, self._free, self._bell
        while not inbox.closed and not (self._wear.limited and self._wear.is_reached(self._begun)):
            delivery = inbox.poll() if free else None
            if delivery is None:
                await bell.wait()
                bell.clear()
                continue
            lane = free.pop()
            # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
            lane.running = (delivery, time.monotonic())
            if inbox.remove(delivery):
                self._begun += 1
                task = LaneTask(self._run(lane, *lane.running), loop=self._loop)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                lane.running = None
                free.append(lane)
        await self._loop.run_in_executor(None, self._hand_back)
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._failure is not None:
            raise self._failure

    async def _run(self, lane: Lane, delivery: Delivery, now: float) -> None:
        done = lane.done
        try:
            await lane.arun(delivery, now, self._pool)
        except BaseException as error:
            # What it ran is on the board still and in nobody's hands: only the end of the process frees it.
            self._failure = error
            self._inbox.close()
            return
        if lane.done == done:
            self._begun -= 1  # it was not begun after all
        lane.running = None
        self._free.append(lane)
        self._bell.set()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nothing is begun any more
            self._loop.call_soon_threadsafe(self._bell.set)
