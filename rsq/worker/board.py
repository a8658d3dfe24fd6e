"""Shared memory between a supervisor and its children: which call runs where since when, and until when leases last.

It tells the supervisor which entry a dead child was running, and the child, without asking the server, whether its
lease still holds. Times are of the monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass

_MOMENT = struct.Struct("<d")
_CHILD = struct.Struct("<dIIQdd?")  # lease_until, generation, fenced, tasks done, beat, commit_beat, ended
_SLOT = struct.Struct("<dHBB41p101p121p")  # started, queue index, priority, taken, entry id, task id, name of the task
_LIMIT = struct.Struct("<dd")  # deadline, limit in seconds
_RUNNING_SIZE = 1  # one byte before each slot: RUNS or TIMED while it runs; written last at the start, first at the end
_RUNS, _TIMED = 1, 2


@dataclass(frozen=True)
class Running:
    """A call that runs, as the board tells it.

    taken  it was acknowledged early
    task  name of the task, cut off after 120 bytes
    deadline  when its process is to be killed, or None
    limit_s   the time limit that is behind the deadline
    """

    started: float
    queue: int
    priority: int
    taken: bool
    entry_id: bytes
    task_id: str
    task: str
    deadline: float | None = None
    limit_s: float = 0.0


class Board:
    """The memory of all children of one worker. Made before they are forked, for as many as there may ever be."""

    def __init__(self, children: int, slots: int) -> None:
        self._slots = slots
        self._child_size = _CHILD.size + slots * Slot.size
        self._memory = mmap.mmap(-1, children * self._child_size)

    def child(self, index: int) -> ChildBoard:
        """The part of one child."""
        return ChildBoard(self._memory, index * self._child_size, self._slots)


class ChildBoard:
    """One child's part of the board."""

    def __init__(self, memory: mmap.mmap, offset: int, slots: int) -> None:
        self._memory = memory
        self._offset = offset
        self.slots = [Slot(memory, offset + _CHILD.size + number * Slot.size) for number in range(slots)]

    def clear(self) -> None:
        """Before a new child takes this place."""
        _CHILD.pack_into(self._memory, self._offset, 0.0, 0, 0, 0, 0.0, 0.0, False)
        for slot in self.slots:
            slot.end()

    @property
    def lease_until(self) -> float:
        """When the lease ends if nobody renews it. Written by whoever keeps the leases."""
        return self._moment(0)

    @lease_until.setter
    def lease_until(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, self._offset, moment)

    @property
    def generation(self) -> int:
        """Rises each time the child lost its lease and took a new consumer name."""
        return int(struct.unpack_from("<I", self._memory, self._offset + 8)[0])

    @generation.setter
    def generation(self, number: int) -> None:
        struct.pack_into("<I", self._memory, self._offset + 8, number)

    @property
    def is_fenced(self) -> bool:
        """Whether the keeper of the leases has found that the present generation's lease is lost."""
        return bool(struct.unpack_from("<I", self._memory, self._offset + 12)[0] > self.generation)

    def fence(self, generation: int) -> None:
        """Tell the child that the lease of this generation is lost. It may have another by now."""
        struct.pack_into("<I", self._memory, self._offset + 12, generation + 1)

    @property
    def done(self) -> int:
        """Bodies that this child has run to their end."""
        return int(struct.unpack_from("<Q", self._memory, self._offset + 16)[0])

    @done.setter
    def done(self, number: int) -> None:
        struct.pack_into("<Q", self._memory, self._offset + 16, number)

    @property
    def beat(self) -> float:
        """When the fetcher last took a step, as it does often, unless a body holds the GIL; 0.0 before the first."""
        return self._moment(24)

    @beat.setter
    def beat(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, self._offset + 24, moment)

    @property
    def commit_beat(self) -> float:
        """When the committer last took a step, as long as it has outcomes to write; 0.0 = it has none.

        It takes one at least each few seconds, also while the server is away or refuses, unless a body holds the GIL.
        """
        return self._moment(32)

    @commit_beat.setter
    def commit_beat(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, self._offset + 32, moment)

    @property
    def ended(self) -> bool:
        """Whether the child has said that it ends in good order: any other end is a crash, whatever its exit code."""
        return self._memory[self._offset + 40] == 1

    def end(self) -> None:
        """The child ends, and nothing runs there any more."""
        self._memory[self._offset + 40] = 1

    def running(self) -> list[Running]:
        """The calls that run now, or ran when the child died."""
        return [entry for slot in self.slots if (entry := slot.read()) is not None]

    def _moment(self, at: int) -> float:
        moment: float = _MOMENT.unpack_from(self._memory, self._offset + at)[0]
        return moment


class Slot:
    """Where one executor slot of a child writes what it runs."""

    size = _RUNNING_SIZE + _SLOT.size + _LIMIT.size

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._flag = offset
        self._body = offset + _RUNNING_SIZE
        self._limit = self._body + _SLOT.size

    def start(
        self, started: float, queue: int, priority: int, taken: bool, entry_id: bytes, task_id: bytes, task: bytes
    ) -> None:
        """Tell what runs from now on. The flag comes last, so a torn write is never read."""
        _SLOT.pack_into(self._memory, self._body, started, queue, priority, taken, entry_id, task_id, task)
        self._memory[self._flag] = _RUNS

    def limit(self, deadline: float, limit_s: float) -> None:
        """What runs is to be killed at this moment. The flag comes last here, too."""
        _LIMIT.pack_into(self._memory, self._limit, deadline, limit_s)
        self._memory[self._flag] = _TIMED

    def unlimit(self) -> None:
        """Its body has ended, in time."""
        self._memory[self._flag] = _RUNS

    def end(self) -> None:
        """Nothing runs here any more."""
        self._memory[self._flag] = 0

    def read(self) -> Running | None:
        """What runs here, or None. Also where stray code of the child has written over it: it raises nothing."""
        flag = self._memory[self._flag]
        if flag not in (_RUNS, _TIMED):
            return None
        started, queue, priority, taken, entry_id, task_id, task = _SLOT.unpack_from(self._memory, self._body)
        limit = _LIMIT.unpack_from(self._memory, self._limit) if flag == _TIMED else ()
        if not all(map(math.isfinite, (started, *limit))):
            return None
        texts = task_id.decode(errors="replace"), task.decode(errors="ignore")
        return Running(started, queue, priority, bool(taken), entry_id, *texts, *limit)
