"""What a signal means, once, for whoever stands alone: a supervisor, a solo worker, a beat. And how a supervisor tells
its children, who hear by a pipe, since apps and tasks may take signals over.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from typing import Any

from rsq import codec
from rsq.worker import process

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

TWIN_S = 0.5
"""What comes so soon after the first signal is the same one: shells, `timeout` and terminals send it twice."""

BEGIN, REPLACED, STOP = b"g", b"r", b"s"
"""What a supervisor tells a child: its leases stand (behind that comes a `framed` map: the partitions of its queues);
make room for a successor; the worker ends.
"""

LENGTH_BYTES = 4
"""Before what is framed stands how long it is: the end of a pipe tells nothing, since forks of the app hold it open."""

LOOK_S = 5.0
"""How often a child asks whose it is, should it have lost the pipe that tells."""

_WISH = 0


def framed(value: object) -> bytes:
    """A value as it is written into a pipe between a supervisor and a child."""
    text = codec.encode(value)
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


class StopSignals:
    """Notes signals; readable when there is something to `read`. Made in the main thread, before the app is imported.

    A signal that is ignored when the process starts stays so, as `nohup` wants it. Until `hold` each ends the process
    on the spot, with exit code 0: it has nothing to lose yet.

    numbers  those that mean a stop
    also     others that only make it readable
    alone    nobody reads while it ends: a second signal ends the process on the spot

    why      name of what said stop first, or ''
    second   somebody has sent another signal
    """

    def __init__(self, *numbers: int, also: int | None = None, alone: bool = False) -> None:
        self.why = ""
        self.second = False
        self._alone = alone
        self._first_at = math.inf
        self._came_at: list[float] = []
        self._heard = 0
        self._ends_from = -math.inf
        self._read_fd, self._write_fd = os.pipe()
        for fd in (self._read_fd, self._write_fd):
            os.set_blocking(fd, False)
        process.keep_private(self._read_fd, self._write_fd)
        wanted = [number for number in numbers or STOPS if signal.getsignal(number) is not signal.SIG_IGN]
        self._stops = frozenset(wanted)
        self._before = {number: signal.getsignal(number) for number in (*wanted, *(() if also is None else (also,)))}
        self.install()

    def install(self) -> None:
        """Hear them (again, after user code that may have taken them over). In the main thread."""
        # By the wakeup descriptor a signal is heard even while a body is in C code that runs no handler.
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, self._caught)

    def hold(self) -> None:
        """From now on signals are noted, not obeyed on the spot. In the main thread."""
        self._ends_from = math.inf
        self.install()

    def __enter__(self) -> StopSignals:
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        """The process ends in good order, and no further signal changes that; or it could not begin."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            done = error is None and number in self._stops
            signal.signal(number, signal.SIG_IGN if done or handler is None else handler)

    def fileno(self) -> int:
        return self._read_fd

    def wish(self) -> None:
        """The same stop, wished by other means: no signal, so that the next one is not the second. From anywhere."""
        self._tell(_WISH)

    def read(self) -> None:
        """Take in what has come."""
        try:
            numbers = os.read(self._read_fd, 4096)
        except BlockingIOError:
            return
        now = time.monotonic()
        for number in numbers:
            if number == _WISH:
                self.why = self.why or "rsq control shutdown"
            elif number in self._stops:
                self.why = self.why or signal.Signals(number).name
                # Who reads may have waited for the server meanwhile; the handler has not, unless a body is in C code.
                at = self._came_at[self._heard] if self._heard < len(self._came_at) else now
                self._heard += 1
                self.second = self.second or at - self._first_at >= TWIN_S
                self._first_at = min(self._first_at, at)

    @property
    def since(self) -> float:
        """When the first signal came (monotonic); now, where none has."""
        return min(self._first_at, time.monotonic())

    def wait(self, seconds: float | None = None) -> bool:
        """Until something comes, for so long at most. True: the process is to stop."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        poll.poll(None if seconds is None else max(0.0, seconds) * 1000)
        self.read()
        return bool(self.why)

    def _caught(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number in self._stops:
            if now >= self._ends_from:
                process.flush_standard()
                os._exit(0)
            self._came_at.append(now)
            if self._alone:
                self._ends_from = min(self._ends_from, now + TWIN_S)
        taken = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        if taken != self._write_fd:  # user code has put its own there
            signal.set_wakeup_fd(taken)
            self._tell(number)

    def _tell(self, number: int) -> None:
        try:
            os.write(self._write_fd, bytes((number,)))
        except BlockingIOError:
            pass  # it is full of others


class SupervisorGone(Exception):
    """Nobody keeps this process any more."""


class Lifeline:
    """A child's end of the pipe on which its supervisor tells it what to do, and by whose end it learns of its death.

    signals  sent to this process alone: one of them replaces it
    """

    def __init__(self, fd: int, signals: StopSignals) -> None:
        self._fd = fd
        self._signals = signals
        self._parent = os.getppid()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(signals, select.POLLIN)
        process.keep_private(fd)

    def read(self) -> Any:
        """What was told `framed` behind the last word, in one write with it."""
        return codec.decode(os.read(self._fd, int.from_bytes(os.read(self._fd, LENGTH_BYTES), "big")))

    def hear(self, seconds: float | None = None) -> bytes:
        """What was told first of what has not been heard yet, within so many seconds; b'' for nothing.

        Raises SupervisorGone; OSError when user code has closed the pipe.
        """
        until = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            left_s = max(0.0, min(LOOK_S, until - time.monotonic()))
            for fd, events in self._poll.poll(left_s * 1000):
                if events & select.POLLNVAL:
                    raise OSError(
                        f"descriptor {fd}, by which rsq hears of its end, has been closed by the app or a task"
                    )
                if fd == self._fd:
                    word = os.read(fd, 1)
                    if not word:
                        raise SupervisorGone
                    return word
                self._signals.read()
                if self._signals.why:
                    self._poll.unregister(fd)  # once is enough
                    return REPLACED
            if os.getppid() != self._parent:
                raise SupervisorGone
            if time.monotonic() >= until:
                return b""
