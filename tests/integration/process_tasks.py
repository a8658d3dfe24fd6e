"""Tasks that do to their process, its signals and its forks what ordinary code does; the rest is that of `tasks`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time

from tests.integration import tasks
from tests.integration.tasks import app, journal

FORK = multiprocessing.get_context("fork")

add = tasks.add


def _sleep(seconds: float) -> None:
    """Of a Python program: nothing of its signals is changed here."""
    time.sleep(seconds)


@app.task
def terminate_process() -> int | None:
    process = FORK.Process(target=_sleep, args=(600,))
    process.start()
    process.terminate()
    process.join(60)
    return process.exitcode


@app.task
def use_pool() -> str:
    with FORK.Pool(2) as pool:
        pool.apply_async(_sleep, (600,))
        return str(pool.apply_async(str, ("done",)).get(timeout=60))


@app.task
def leave_daemon() -> int:
    process = FORK.Process(target=_sleep, args=(600,), daemon=True)
    process.start()
    assert process.pid is not None
    return process.pid


@app.task
def leave_helper() -> int:
    """A process of its own that outlives everything."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return pid


@app.task
def interrupt_program() -> int:
    with subprocess.Popen(["sleep", "600"]) as program:
        # Until it is that program: a signal that comes before would meet the handlers of Python.
        while not os.readlink(f"/proc/{program.pid}/exe").endswith(("sleep", "coreutils", "busybox")):
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        return program.wait(60)


@app.task
def fork_and_leave(how: str) -> list[int]:
    """What the copy of this body ends with, and who the parent is."""
    pid = os.fork()
    if pid == 0:
        if how == "raise":
            raise RuntimeError("in the copy")
        if how == "exit":
            sys.exit(7)
        return []
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.getpid()]


@app.task
async def fork_and_leave_async() -> list[int]:
    pid = os.fork()
    if pid == 0:
        return []
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.getpid()]  # noqa: ASYNC222 - it ends at once


@app.task
def own_descriptors() -> list[str]:
    """What stands open in a fork of this body beside the files."""
    read, write = os.pipe()
    if os.fork() == 0:
        own = {read, write}
        found = [
            os.readlink(f"/proc/self/fd/{fd}") for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd, own)
        ]
        os.write(write, "\n".join(found).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read().splitlines()


def _is_open(fd: int, own: set[int]) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return fd > 2 and fd not in own


@app.task
def handle_sigterm_by_asyncio() -> None:
    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)

    asyncio.run(main())


@app.task
def stay(path: str) -> None:
    """Runs until the file is there."""
    journal("stays", os.getpid())
    while not os.path.exists(path):
        time.sleep(0.01)
    journal("has stayed")


@app.task(max_crashes=1)
def close_all(path: str) -> None:
    journal("began close_all", os.getpid())
    os.closerange(3, 4096)
    while not os.path.exists(path):
        time.sleep(0.01)


@app.task
def leave_at_once(code: int) -> None:
    journal("leaves", code)
    os._exit(code)


@app.task
def lose_stdout() -> None:
    sys.stdout = None
