"""Many coroutines at once on one loop, and plain functions in threads beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from rsq.calls.message import Delivery
from rsq.worker.executors.runner import Executor, Runner, Surroundings
from rsq.worker.interrupt import InThread
from rsq.worker.loops import RunnerTask, run_to_end


class AsyncioExecutor(Executor):
    """The loop runs in the thread that serves. A runner is taken for each body and given back after it."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings, len(surroundings.board.slots), InThread)
        self._hand_back = surroundings.hand_back
        self._free = self._runners[::-1]
        self._begun = 0
        self._failure: BaseException | None = None
        self._pool = ThreadPoolExecutor(self.slots, "rsq-task")
        self._loop = asyncio.new_event_loop()
        self._bell = asyncio.Event()
        self._tasks: set[RunnerTask] = set()
        self._inbox.ring = self._ring

    def serve(self) -> None:
        """Run what the inbox gives, until it is closed or the child has done enough."""
        asyncio.set_event_loop(self._loop)
        try:
            run_to_end(self._loop, self._serve())
        finally:
            self._pool.shutdown()
            self._runners[0].attempts.close_loop(self._loop)
            self._links.close()

    async def _serve(self) -> None:
        inbox, free, bell = self._inbox, self._free, self._bell
        while not inbox.closed and not (self._wear.limited and self._wear.is_reached(self._begun)):
            delivery = inbox.poll() if free else None
            if delivery is None:
                await bell.wait()
                bell.clear()
                continue
            runner = free.pop()
            # Marked as running before it leaves the inbox: a reader who looks at both never misses it.
            runner.running = (delivery, time.monotonic())
            if inbox.remove(delivery):
                self._begun += 1
                task = RunnerTask(self._run(runner, *runner.running), loop=self._loop)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                runner.running = None
                free.append(runner)
        await self._loop.run_in_executor(None, self._hand_back)
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._failure is not None:
            raise self._failure

    async def _run(self, runner: Runner, delivery: Delivery, now: float) -> None:
        done = runner.done
        try:
            await runner.arun(delivery, now, self._pool)
        except BaseException as error:
            # What it ran is on the board still and in nobody's hands: only the end of the process frees it.
            self._failure = error
            self._inbox.close()
            return
        if runner.done == done:
            self._begun -= 1  # it was not begun after all
        runner.running = None
        self._free.append(runner)
        self._bell.set()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nothing is begun any more
            self._loop.call_soon_threadsafe(self._bell.set)
