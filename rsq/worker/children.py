"""The child processes of one worker, as its supervisor sees them: forked, heard, let go, signalled, reaped.

They import the app after the fork, so the supervisor stays free of user code.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rsq import codec
from rsq.errors import DecodeError
from rsq.worker import child as child_module
from rsq.worker.board import Board, ChildBoard
from rsq.worker.child import ChildPlace
from rsq.worker.identity import consumer_name

LEAST_ROOM = 16
"""A worker has room for four times the children that it begins with, and for so many at least."""


@dataclass(frozen=True)
class WorkerOptions:
    """What the command line gives.

    app          what -A named, or None for RSQ_APP
    queues       in order; empty: all that the app's tasks name
    weights      of the queues; empty: their order is strict
    concurrency  bodies at once: each in a child of its own (prefork), or all in one child
    overrides    settings that the command line changes
    max_tasks    a child is replaced after this many; None = never
    beat         run a beat beside the children
    pool         how bodies run: prefork, threads, asyncio or solo
    max_memory_mib  a child that has grown beyond this is replaced; None = never
    reload       replace the children when a file of Python code in the current directory changes
    """

    app: str | None = None
    queues: Sequence[str] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    concurrency: int = 1
    overrides: dict[str, object] = field(default_factory=dict)
    max_tasks: int | None = None
    beat: bool = False
    pool: str = "prefork"
    max_memory_mib: int | None = None
    reload: bool = False

    @property
    def children(self) -> int:
        """Number of child processes."""
        return self.concurrency if self.pool == "prefork" else 1

    @property
    def most_children(self) -> int:
        """Children that there is room for, when more are asked for while the worker runs."""
        return max(LEAST_ROOM, 4 * self.children)

    @property
    def slots(self) -> int:
        """Bodies at once in each of them."""
        return 1 if self.pool == "prefork" else self.concurrency

    def __str__(self) -> str:
        """As the worker says it when it begins."""
        return f"{self.children} ({self.pool}{f', {self.slots} tasks at once' if self.pool != 'prefork' else ''})"


@dataclass(eq=False)
class Child:
    """One child process.

    hello       pipe on which it says hello; None once it has, or has died without
    go          pipe by which it is let go, and learns by its closing that the supervisor is gone
    board       its part of the shared memory
    registered  its consumer has a lease
    cut_off     we killed it ourselves: what it ran is no suspect
    cut_for_limit_at  when we did for the time limit of what it ran, else None
    """

    index: int
    pid: int
    worker_id: str
    incarnation: int
    started: float
    hello: int | None
    go: int
    board: ChildBoard
    heard: bytes = b""
    registered: bool = False
    cut_off: bool = False
    cut_for_limit_at: float | None = None

    @property
    def consumer(self) -> str:
        """The name under which it consumes at present."""
        return consumer_name(self.worker_id, self.index, self.incarnation, self.board.generation)

    def listen(self) -> dict[str, Any] | None:
        """Read what it says: None as long as there is more to come, {} when it died before it could speak."""
        assert self.hello is not None
        data = os.read(self.hello, 1 << 16)
        if data:
            self.heard += data
            return None
        try:
            return dict(codec.decode(self.heard))
        except DecodeError:
            return {}

    def hang_up(self) -> None:
        """Close the pipe of the hello. Stop polling it before: a younger child may hold a copy of it."""
        assert self.hello is not None
        os.close(self.hello)
        self.hello = None

    def let_go(self, lease_s: float) -> None:
        """Its consumer is registered: it may work."""
        self.board.beat = time.monotonic()
        self.board.lease_until = self.board.beat + lease_s
        self.registered = True
        self._tell(b"g")

    def dismiss(self) -> None:
        """Have it end: what runs in it ends in its own time, what has not begun goes to others."""
        if self.registered:
            self._tell(b"r")
        else:
            self.cut()

    def _tell(self, word: bytes) -> None:
        """One that is gone already is left to `reap`."""
        with suppress(BrokenPipeError):
            os.write(self.go, word)

    def signal(self, number: int) -> None:
        """Send a signal; one that is gone already is left to `reap`."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def cut(self) -> None:
        """End it at once. What it runs is handed back with no attempt counted."""
        self.cut_off = True
        self.signal(signal.SIGKILL)


class Children:
    """All of them, by place. A place keeps its part of the board through all its incarnations.

    places  those in which a child is to be; the first one always is
    done    bodies run by children that are gone
    """

    def __init__(self, options: WorkerOptions, worker_id: str) -> None:
        self._options = options
        self._worker_id = worker_id
        self._room = options.most_children
        self._board = Board(self._room, options.slots)
        self._living: dict[int, Child] = {}
        self._incarnations = [0] * self._room
        self.places = set(range(options.children))
        self.done = 0

    def __len__(self) -> int:
        return len(self._living)

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._living.values()))

    def resize(self, wanted: int) -> list[int]:
        """Have so many places, as far as there is room; gives those that were added, to be filled by the caller.

        A child in a place that is given up is dismissed: those that run nothing first, then the youngest place.
        """
        occupants = {child.index: child for child in self}
        while len(self.places) > max(1, wanted):
            idle = {index for index in self.places if index not in occupants or not occupants[index].board.running()}
            index = max((self.places & idle) - {0} or self.places)
            self.places.discard(index)
            if index in occupants:
                occupants[index].dismiss()
        # Where one that was dismissed is still at work its place is not free.
        free = sorted(set(range(self._room)) - self.places - set(occupants))
        added = free[: max(0, min(wanted, self._room) - len(self.places))]
        self.places.update(added)
        return added

    def spawn(self, index: int) -> Child:
        """Fork a child into a place."""
        self._incarnations[index] += 1
        board = self._board.child(index)
        board.clear()
        hello_read, hello_write = os.pipe()
        go_read, go_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for fd in (hello_read, go_write, *self.own_pipes()):
                os.close(fd)
            child_module.run(
                ChildPlace(
                    app=self._options.app,
                    overrides=self._options.overrides,
                    queues=self._options.queues,
                    weights=self._options.weights,
                    worker_id=self._worker_id,
                    index=index,
                    incarnation=self._incarnations[index],
                    board=board,
                    hello=hello_write,
                    go=go_read,
                    pool=self._options.pool,
                    max_tasks=self._options.max_tasks,
                    max_memory_mib=self._options.max_memory_mib,
                )
            )
        os.close(hello_write)
        os.close(go_read)
        child = Child(
            index, pid, self._worker_id, self._incarnations[index], time.monotonic(), hello_read, go_write, board
        )
        self._living[pid] = child
        return child

    def own_pipes(self) -> list[int]:
        """The supervisor's ends of all pipes: they tell by closing that it is gone, so nobody else may keep them."""
        return [fd for child in self for fd in (child.go, child.hello) if fd is not None]

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Those that have died, with their exit codes (negative: the signal)."""
        while self._living:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._living.pop(pid, None)
            if child is not None:
                os.close(child.go)
                self.done += child.board.done
                yield child, os.waitstatus_to_exitcode(status)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
