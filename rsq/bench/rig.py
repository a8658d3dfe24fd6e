"""What a benchmark stands on: a server of its own, workers, the bare programs beside them, and readings of each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, TypeVar

from rsq.bench import floor, tasks
from rsq.bench.tasks import app
from rsq.broker.embedded import find_server
from rsq.errors import BrokerUnavailable, WorkerLost
from rsq.keys import BeatKeys

Ours = TypeVar("Ours")
Bare = TypeVar("Bare")

LOOK_EVERY_S = 0.005
PATIENCE_S = 60.0
"""What takes longer hangs."""

SLOWEST_PER_S = 500
"""So many tasks a second a worker does in any case."""

STOP_S = 15.0


@dataclass(frozen=True)
class Readings:
    """What the server counts: commands (a script, and each one inside it), reads of sockets, seconds of processor."""

    commands: int
    reads: int
    cpu_s: float

    def __sub__(self, earlier: Readings) -> Readings:
        return Readings(self.commands - earlier.commands, self.reads - earlier.reads, self.cpu_s - earlier.cpu_s)


class Rig:
    """One run's server and processes. A context manager.

    The server is one of our own, on TCP as most are, and keeps nothing on disk: how fast a disk is does not tell how
    fast rsq is, and the floor writes as much.

    server  path of its program; None takes the one that `embedded://` would take
    scale   share of the usual number of tasks
    turn    number of the repetition: in odd ones the floor goes first
    """

    def __init__(self, server: Path | None = None, scale: float = 1.0) -> None:
        self.binary = server or find_server()
        self.scale = scale
        self.turn = 0
        self._module = tasks.__name__
        self._stack = ExitStack()

    def __enter__(self) -> Rig:
        with ExitStack() as stack:
            self.home = Path(stack.enter_context(TemporaryDirectory(prefix="rsq-bench-")))
            self.url = stack.enter_context(self._server())
            stack.callback(app.close)
            context = multiprocessing.get_context("spawn")
            self._pool = stack.enter_context(
                ProcessPoolExecutor(2, context, initializer=floor.connect, initargs=(self.url,))
            )
            wait([self._pool.submit(time.sleep, 0.2) for _ in range(2)])  # two at once, so that both are there
            self.keys = app.client.queue(None).keys
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def size(self, tasks: int) -> int:
        """How many tasks to take where a full run takes so many."""
        return max(20, int(tasks * self.scale))

    def take_turns(self, ours: Callable[[], Ours], bare: Callable[[], Bare]) -> tuple[Ours, Bare]:
        """Measure rsq and its floor one right after the other, each on an empty server."""
        self.empty()
        if self.turn % 2 == 0:
            measured = ours()
            self.empty()
            return measured, bare()
        floor_measured = bare()
        self.empty()
        return ours(), floor_measured

    def empty(self) -> None:
        """Delete everything, and forget which queues the server was told of.

        At once: what a server frees behind the scenes takes processor and memory from what is measured next.
        """
        self.call("FLUSHALL", "SYNC")
        app.configure()

    def beside(self, program: Callable[..., Bare], *arguments: object) -> Future[Bare]:
        """Run a bare program in a process of its own, which has started already."""
        return self._pool.submit(program, *arguments)

    # -- the server

    def call(self, *command: str | bytes | int) -> Any:
        with app.client.link() as link:
            return link.call(*command)

    def info(self, section: str) -> dict[str, str]:
        text: str = self.call("INFO", section).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def readings(self) -> Readings:
        info = self.info("all")
        calls = [int(text.split("calls=")[1].split(",")[0]) for name, text in info.items() if name[:8] == "cmdstat_"]
        cpu_s = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        return Readings(sum(calls), int(info["total_reads_processed"]), cpu_s)

    def calls_of(self, command: str) -> int:
        """How often the server has carried out a command, in scripts too."""
        row = self.info("commandstats").get(f"cmdstat_{command.lower()}", "calls=0,")
        return int(row.split("calls=")[1].split(",")[0])

    def data_bytes(self) -> int:
        """Memory without the buffers of clients."""
        info = self.info("memory")
        return int(info["used_memory"]) - int(info["mem_clients_normal"])

    @contextmanager
    def _server(self) -> Iterator[str]:
        (port,) = free_ports(1)
        options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.home}
        command = [str(self.binary), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        log = self.home / "server.log"
        url = f"redis://127.0.0.1:{port}/0"
        app.configure(url=url)
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
            try:
                self._wait_for(self._answers, server, log)
                yield url
            finally:
                server.terminate()

    def _answers(self) -> bool:
        try:
            return bool(self.call("PING"))
        except BrokerUnavailable:
            return False

    # -- workers and beats

    @contextmanager
    def worker(self, children: int = 1, *arguments: str) -> Iterator[int]:
        """`rsq worker` with all its children at work, and more arguments; gives its process id."""
        command = ("worker", "-c", str(children), *arguments)
        with self._program(lambda: self.call("ZCARD", self.keys.consumers) >= children, *command) as pid:
            yield pid

    @contextmanager
    def loading(self, module: str) -> Iterator[None]:
        """Workers load this module in place of that of the usual tasks."""
        before, self._module = self._module, module
        try:
            yield
        finally:
            self._module = before

    @contextmanager
    def beat(self) -> Iterator[int]:
        """`rsq beat`, once it has begun; gives its process id."""
        beats = BeatKeys(app.settings.namespace).beats
        with self._program(lambda: self.call("ZCARD", beats) > 0, "beat") as pid:
            yield pid

    @contextmanager
    def _program(self, begun: Callable[[], bool], *command: str) -> Iterator[int]:
        log = self.home / f"{command[0]}.log"
        environment = os.environ | {"RSQ_URL": self.url, "RSQ_HEALTH_DIR": str(self.home)}
        program = [sys.executable, "-m", "rsq", "-A", f"{self._module}:app", *command, "-l", "warning"]
        with log.open("wb") as out:
            process = subprocess.Popen(program, env=environment, stdout=out, stderr=out)
        try:
            self._wait_for(begun, process, log)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its children notice and end
                process.wait()

    def wait_until_succeeded(self, calls: int) -> None:
        """Wait for so many successes since the server was emptied."""
        log = self.home / "worker.log"
        patience_s = max(PATIENCE_S, calls / SLOWEST_PER_S)
        done = partial(self.call, "HGET", self.keys.stats, "succeeded")
        self._wait_for(lambda: int(done() or 0) >= calls, None, log, patience_s)

    def _wait_for(
        self,
        holds: Callable[[], bool],
        process: subprocess.Popen[bytes] | None,
        log: Path,
        patience_s: float = PATIENCE_S,
    ) -> None:
        deadline = time.monotonic() + patience_s
        while not holds():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline:
                lines = "\n  ".join(log.read_text(errors="replace").splitlines()[-20:])
                raise WorkerLost(f"a process {'ended' if ended else 'hangs'}; the end of its log:\n  {lines}")
            time.sleep(LOOK_EVERY_S)


def free_ports(count: int, above: int = 0) -> list[int]:
    """So many TCP ports of 127.0.0.1 that are free now, and so is the one `above` each."""
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            probe, other = (stack.enter_context(socket.socket()) for _ in range(2))
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + above if above else 0))
            except (OSError, OverflowError):
                continue
            found.append(port)
        return found


def run_apart(program: Callable[..., Bare], *arguments: object) -> Bare:
    """Run a program in a fresh process, which has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(program, *arguments).result()


def cpu_s(pid: int) -> float:
    """Seconds of processor time of all threads of a process. Linux only."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and how much of it is shared with no other. Linux only."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    size = {name: int(value.split()[0]) * 1024 for name, value in rows.items()}
    return size["Rss"], size["Private_Clean"] + size["Private_Dirty"]
