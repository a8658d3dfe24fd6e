"""The workers of `rsq demo`: real processes, looked after until they are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rsq.broker.client import Client
from rsq.broker.status import workers as live_workers
from rsq.errors import WorkerLost

WORKERS = 2
CHILDREN = 2
"""Of each worker."""

KILL_AT = 0.4
"""Share of the work that is done when one child is killed."""

LOOK_EVERY_S = 0.05
SILENCE_S = 30.0
"""With no news for this long, something hangs."""

STOP_S = 10.0
LOG_LINES = 20


def follow(
    look: Callable[[], tuple[int, bool]],
    most: int,
    workers: Sequence[subprocess.Popen[bytes]],
    advance: Callable[[int, str], None],
    log: Path,
) -> int:
    """Until all is done; kills one child of the first worker on the way and gives its pid.

    look     how much is done, and whether that is all
    most     how much there is to do
    advance  is told how much is done, with a note
    Raises   WorkerLost
    """
    victim = done = 0
    changed = time.monotonic()
    while True:
        now_done, ended = look()
        if now_done > done:
            done, changed = now_done, time.monotonic()
        if not victim and done >= KILL_AT * most and (children := children_of(workers[0].pid)):
            victim = children[0]
            os.kill(victim, signal.SIGKILL)
        advance(done, f"kill -9 {victim}" if victim else "")
        if ended:
            return victim
        check(workers, changed, log)
        time.sleep(LOOK_EVERY_S)


@contextmanager
def run_workers(client: Client, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two `rsq worker` processes, all of whose children are at work."""
    # By the environment: other users can read command lines, and a URL may hold a password.
    environment = os.environ | {
        "RSQ_URL": client.settings.url,
        "RSQ_NAMESPACE": client.settings.namespace,
        "RSQ_HEALTH_DIR": str(log.parent / "health"),
    }
    rsq = [sys.executable, "-W", "ignore", "-m", "rsq"]
    command = [*rsq, "-A", "rsq.demo.tasks:app", "worker", "-c", str(CHILDREN), "-l", "warning"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("ab") as out:
            while len(workers) < WORKERS:
                worker = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
                workers.append(worker)
        begun = time.monotonic()
        while not {worker.pid for worker in workers} <= _reporting(client):
            check(workers, begun, log)
            time.sleep(LOOK_EVERY_S)
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()  # its children notice and end
                worker.wait()


def _reporting(client: Client) -> set[int]:
    return {worker.pid for worker in live_workers(client)}


def check(workers: Sequence[subprocess.Popen[bytes]], changed: float, log: Path) -> None:
    """Raise WorkerLost when a worker has ended, or when nothing has changed for too long."""
    for worker in workers:
        if worker.poll() is not None:
            raise WorkerLost(f"worker {worker.pid} ended with exit code {worker.returncode}\n{end_of(log)}")
    if time.monotonic() - changed > SILENCE_S:
        raise WorkerLost(f"the workers have done nothing for {SILENCE_S:g} s\n{end_of(log)}")


def children_of(pid: int) -> list[int]:
    """The child processes of a worker; none where it has ended."""
    if sys.platform == "linux":
        try:
            listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:
            return []
    else:
        listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(child) for child in listed.split()]


def is_replaced(victim: int, worker: subprocess.Popen[bytes]) -> bool:
    """Whether the worker has all its children again, the killed one not among them."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        children = children_of(worker.pid)
        if victim not in children and len(children) == CHILDREN:
            return True
        time.sleep(LOOK_EVERY_S)
    return False


def end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(["the end of the workers' log:", *(f"  {line}" for line in lines)])
