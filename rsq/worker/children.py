"""The child processes of one worker, as its supervisor sees them: forked, let go, told, signalled, reaped.

They import the app after the fork, so the supervisor stays free of user code.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rsq.worker import child as child_module
from rsq.worker.board import Board, ChildBoard
from rsq.worker.child import ChildPlace
from rsq.worker.identity import consumer_name
from rsq.worker.process import fork, open_descriptors
from rsq.worker.stop import BEGIN, REPLACED, STOP, framed

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

    hello       pipe on which it says hello, not blocking; None once it has, or has died without
    go          pipe by which it is told what to do, and learns by its closing that the supervisor is gone
    board       its part of the shared memory
    heard       what has come of its hello
    registered  its consumers have leases
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
    heard: bytearray = field(default_factory=bytearray)
    registered: bool = False
    cut_off: bool = False
    cut_for_limit_at: float | None = None

    @property
    def consumers(self) -> list[str]:
        """The names under which its lanes consume at present."""
        lanes = self.board.lanes
        return [consumer_name(self.worker_id, self.index, self.incarnation, lane.generation) for lane in lanes]

    def let_go(self, leases_until: Sequence[float], partitions: Mapping[str, int]) -> None:
        """The consumers of its lanes are registered, with leases until then: it may work.

        partitions  of its queues
        """
        for lane, until in zip(self.board.lanes, leases_until, strict=True):
            lane.lease_until = until
        self.registered = True
        self._tell(BEGIN + framed(partitions))

    def dismiss(self, for_good: bool = False) -> None:
        """Have it end: what runs in it ends in its own time, what has not begun goes to others.

        for_good  the worker ends, too
        """
        if self.registered:
            self._tell(STOP if for_good else REPLACED)
        else:
            self.cut()

    def cut(self) -> None:
        """End it at once. What it runs is handed back with no attempt counted."""
        self.cut_off = True
        with suppress(ProcessLookupError):  # one that is gone already is left to `reap`
            os.kill(self.pid, signal.SIGKILL)

    def _tell(self, word: bytes) -> None:
        """One that is gone already is left to `reap`; one that has not heard so many words will not hear this one."""
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(self.go, word)


class Children:
    """All of them, by place. A place keeps its part of the board through all its incarnations.

    Made before anything else of the supervisor's: what descriptors are open then its processes may inherit.

    places  those in which a child is to be; the first one always is
    done    bodies run by children that are gone
    """

    def __init__(self, options: WorkerOptions, worker_id: str) -> None:
        self.inherited = open_descriptors()
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
        """Fork a child into a place. Raises OSError: there is no room for another process, or for its pipes."""
        board = self._board.child(index)
        board.clear()
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            hello, hello_write, go_read, go = pipes
            options, incarnation = self._options, self._incarnations[index] + 1
            place = ChildPlace(
                app=options.app,
                overrides=options.overrides,
                queues=options.queues,
                weights=options.weights,
                worker_id=self._worker_id,
                index=index,
                incarnation=incarnation,
                board=board,
                hello=hello_write,
                go=go_read,
                pool=options.pool,
                max_tasks=options.max_tasks,
                max_memory_mib=options.max_memory_mib,
            )
            pid = fork(lambda: child_module.run(place), keep=(hello_write, go_read, *self.inherited))
        except OSError:
            for fd in pipes:
                os.close(fd)
            raise
        os.close(hello_write)
        os.close(go_read)
        for fd in (hello, go):
            os.set_blocking(fd, False)  # the supervisor waits for no child
        self._incarnations[index] = incarnation
        child = Child(index, pid, self._worker_id, incarnation, time.monotonic(), hello, go, board)
        self._living[pid] = child
        return child

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Those that have died, with their exit codes (negative: the signal)."""
        for child in self:
            code = exit_code(child.pid)
            if code is not None:
                del self._living[child.pid]
                os.close(child.go)
                self.done += child.board.done
                yield child, code


def exit_code(pid: int) -> int | None:
    """Of a child process of ours that has died (negative: the signal), or None. Asked again once it has told."""
    try:
        dead, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0  # whoever started us has SIGCHLD ignored: the system keeps no codes
    return os.waitstatus_to_exitcode(status) if dead else None


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
