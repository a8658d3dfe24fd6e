"""The supervisor's parts one by one, with a clock that is set by hand. No server."""

from __future__ import annotations

import logging
import math
import os
import random
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rsq.errors import BrokerRefused, BrokerUnavailable
from rsq.worker import logs, stop
from rsq.worker.board import Board
from rsq.worker.children import Child, Children, WorkerOptions
from rsq.worker.leases import Retirement
from rsq.worker.part import Backoff, Part
from rsq.worker.portrait import Portrait
from rsq.worker.processors import processors
from rsq.worker.retirements import Retirements
from rsq.worker.stop import STOPS, StopSignals
from rsq.worker.supervisor import Supervisor, need_descriptors
from rsq.worker.watchdog import Watchdog

WATCHDOG_S = 30.0
NOBODY = 2**22 + 1


class Few(Children):
    """Those that are given, in place of processes."""

    def __init__(self, *children: Child) -> None:
        super().__init__(WorkerOptions(), "host-1")
        self._living = dict(enumerate(children))


@pytest.fixture
def child() -> Child:
    child = Child(0, NOBODY, "host-1", 1, 0.0, None, -1, Board(1, slots=1).child(0))
    child.registered = True
    return child


class Looks:
    """A watchdog that looks as often as it wants to."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.lane = child.board.lanes[0]
        self.now = 1000.0
        self.watchdog = Watchdog(Few(child))
        self.watchdog.begin(WATCHDOG_S)

    def go_on(self, seconds: float, fetches: bool = True, commits: bool = True) -> bool:
        """Time passes, and steps are taken; gives whether the child was killed."""
        end = self.now + seconds
        while self.now < end and not self.child.cut_off:
            if fetches:
                self.lane.beat = self.now
            if commits and self.lane.commit_beat:
                self.lane.commit_beat = self.now
            self.watchdog.tend(self.now)
            self.now = self.watchdog.due_at
        return self.child.cut_off

    def sleep(self, seconds: float) -> None:
        """Everything stands still, the watchdog too."""
        self.now += seconds


def test_a_child_that_takes_steps_is_left_alone(child: Child) -> None:
    assert not Looks(child).go_on(10 * WATCHDOG_S)


def test_a_fetcher_that_stands_still(child: Child) -> None:
    looks = Looks(child)
    looks.go_on(60)
    assert not looks.go_on(WATCHDOG_S * 0.9, fetches=False)
    assert looks.go_on(WATCHDOG_S * 0.5, fetches=False)


def test_but_not_while_a_body_may_hold_the_interpreter(child: Child) -> None:
    looks = Looks(child)
    looks.go_on(60)
    child.board.slots[0].start(1.0, 0, 0, False, b"1-1", b"x", b"task")
    assert not looks.go_on(10 * WATCHDOG_S, fetches=False, commits=False)


def test_nobody_counts_before_the_first_step_of_its_fetcher(child: Child) -> None:
    """A handler of worker_ready may take its time."""
    assert not Looks(child).go_on(10 * WATCHDOG_S, fetches=False)


@pytest.mark.parametrize("busy", [False, True])
def test_a_committer_that_stands_still(child: Child, busy: bool) -> None:
    looks = Looks(child)
    looks.lane.commit_beat = looks.now
    if busy:
        child.board.slots[0].start(1.0, 0, 0, False, b"1-1", b"x", b"task")
    assert not looks.go_on(2 * WATCHDOG_S)
    assert not looks.go_on(WATCHDOG_S * 0.9, commits=False)
    assert looks.go_on(WATCHDOG_S * 0.5, commits=False)


def test_what_happened_while_the_watchdog_stood_still_itself_counts_for_nobody(child: Child) -> None:
    """The whole group was stopped, or the host asleep."""
    looks = Looks(child)
    looks.go_on(60)
    looks.sleep(100 * WATCHDOG_S)
    assert not looks.go_on(WATCHDOG_S * 0.5, fetches=False)
    assert not looks.go_on(WATCHDOG_S)


def test_nobody_is_let_down_by_what_stray_code_writes_over_the_board() -> None:
    board = Board(1, slots=3)
    mine = board.child(0)
    portrait = Portrait("app", ["default"], [], "prefork", 1, 1, 1000)
    rng = random.Random(1)
    everywhere = len(board._memory)
    for pattern in [b"\xff" * everywhere, *(rng.randbytes(everywhere) for _ in range(500))]:
        board._memory[:] = pattern
        for slot in range(3):
            board._memory[mine.slots[slot]._flag] = rng.choice((1, 2))
        mine.running()
        portrait.report([(NOBODY, True, mine)], 1, False, 0, 0)


def test_an_id_is_told_as_it_is_whatever_it_ends_with() -> None:
    slot = Board(1, slots=1).child(0).slots[0]
    slot.start(1.0, 0, 0, False, b"1-1", b"foreign\0\0", b"task")
    running = slot.read()
    assert running is not None
    assert running.task_id == "foreign\0\0"


class Refusing:
    """Leases of three queues: on one all is well, one refuses, one is away for a time."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, set[str]]] = []
        self.away = self.answers = True

    def retire(self, retirement: Retirement, only: set[str]) -> dict[str, Exception]:
        self.asked.append((retirement.consumer, set(only)))
        names = only or {"well", "refuses", "away"}
        failed: dict[str, Exception] = {"refuses": BrokerRefused("WRONGTYPE")} if "refuses" in names else {}
        self.answers = not self.away
        return failed | ({"away": BrokerUnavailable("away")} if self.away and "away" in names else {})


class Keeper:
    def __init__(self) -> None:
        self.lanes = [Refusing()]

    def soon(self) -> None:
        """Have the leases renewed: the server answers again."""
        self.lanes[0].answers = True


def test_what_was_held_is_handed_on_queue_by_queue(caplog: pytest.LogCaptureFixture) -> None:
    keeper: Any = Keeper()
    part = Retirements(keeper)
    for consumer in ("a", "b"):
        part.add(Retirement(consumer, ""))
    part.tend(0.0)
    part.tend(1.0)
    assert keeper.lanes[0].asked == [("a", set()), ("b", set())]
    assert caplog.text.count("WRONGTYPE") == 2
    keeper.lanes[0].away = False
    part.tend(2.0)
    assert part.due_at == 0.0
    part.tend(2.0)
    assert keeper.lanes[0].asked[2:] == [("a", {"away"}), ("b", {"away"})]
    assert (bool(part), part.due_at) == (False, math.inf)


def test_nothing_is_handed_on_while_the_leases_of_the_living_cannot_be_renewed() -> None:
    keeper: Any = Keeper()
    keeper.lanes[0].answers = False
    part = Retirements(keeper)
    part.add(Retirement("a", ""))
    part.tend(10.0)
    assert keeper.lanes[0].asked == []
    assert 10.0 < part.due_at < 20.0


class Failing(Part):
    def __init__(self) -> None:
        self.due_at = 0.0
        self.tended = 0

    def tend(self, now: float) -> None:
        self.tended += 1
        raise RuntimeError("a fault of ours")


def test_the_supervisor_outlives_a_part_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGCHLD)}
    try:
        supervisor = Supervisor(WorkerOptions())
        part, other = Failing(), Failing()
        supervisor._parts = [part, other]
        for _ in range(3):
            supervisor._step()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (part.tended, other.tended) == (3, 3)
    assert caplog.text.count("a part of the supervisor failed: Failing") == 2, "said once in a while"
    supervisor._selector.close()


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_s() for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_a_signal_counts_from_when_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is to read it may wait for the server meanwhile."""
    clock = [1000.0]
    before = signal.getsignal(signal.SIGUSR2)
    signals = StopSignals(signal.SIGUSR2)
    try:
        signals.hold()
        monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        os.kill(os.getpid(), signal.SIGUSR2)
        clock[0] += stop.TWIN_S / 2
        signals.read()
        assert (signals.why, signals.since, signals.second) == ("SIGUSR2", 1000.0, False)
        os.kill(os.getpid(), signal.SIGUSR2)
        clock[0] += 2.0
        signals.read()
        assert not signals.second, "a twin, though it was read late"
        os.kill(os.getpid(), signal.SIGUSR2)
        signals.read()
        assert signals.second
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR2, before)


def test_two_signals_that_are_read_at_once_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    before = signal.getsignal(signal.SIGUSR2)
    signals = StopSignals(signal.SIGUSR2)
    try:
        signals.hold()
        monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        for clock[0] in (1000.0, 1001.0):
            os.kill(os.getpid(), signal.SIGUSR2)
        clock[0] = 1002.0
        signals.read()
        assert signals.second
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR2, before)


# -- the log


@contextmanager
def full_stderr() -> Iterator[int]:
    """Standard error is a pipe that nobody reads, and full; gives the end to read from."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write, b"x" * select.PIPE_BUF)
    os.set_blocking(write, True)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(write, "w") as stream:
        patch.setattr(logs, "PATIENCE_S", 0.05)
        patch.setattr("sys.stderr", stream)
        yield read
    os.close(read)


def test_a_line_that_nobody_reads_is_dropped_and_counted() -> None:
    handler = logs.StandardErrorHandler()
    record = logging.LogRecord("rsq", logging.INFO, "", 0, "a line", (), None)
    with full_stderr() as read:
        for _ in range(100):
            handler.emit(record)
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.read(read, 1 << 20)
        handler.emit(record)
        assert os.read(read, 1 << 20) == b"(100 lines of the log were dropped: nobody read them)\na line\n"


def test_a_line_that_is_longer_than_a_pipe_waits_for_no_reader() -> None:
    with full_stderr() as read:
        os.read(read, 2 * select.PIPE_BUF)
        logs.StandardErrorHandler().emit(logging.LogRecord("rsq", logging.INFO, "", 0, "y" * (1 << 20), (), None))


def test_without_standard_error_there_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logs.StandardErrorHandler().emit(logging.LogRecord("rsq", logging.INFO, "", 0, "a line", (), None))


# -- what the system gives


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 64),
    ],
)
def test_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], found: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processors(tmp_path) == found


def test_so_many_files_as_children_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (100, 100))
    need_descriptors(10, 3)
    with pytest.raises(Exception, match="ulimit -n 135"):
        need_descriptors(50, 3)
