"""Shared memory between a supervisor and its children: which call runs where since when, and until when leases last.

It tells the supervisor which entry a dead child was running, and the child, without asking the server, whether its
leases still hold. Times are of the monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass

_MOMENT = struct.Struct("<d")
_CHILD = struct.Struct("<Q?B")  # tasks done, ended, lanes
_LANE = struct.Struct("<dIIdd")  # lease_until, generation, fenced, beat, commit_beat
_SLOT = struct.Struct("<dHBB41p101p121p")  # started, queue index, priority, taken, entry id, task id, name of the task
_LIMIT = struct.Struct("<dd")  # deadline, limit in seconds
_RUNNING_SIZE = 1  # one byte before each slot: RUNS or TIMED while it runs; written last at the start, first at the end
_RUNS, _TIMED = 1, 2

MOST_LANES = 64
"""There is room for so many on the board, which is made before it is known how many there are."""


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
        self._child_size = _CHILD.size + MOST_LANES * _LANE.size + slots * Slot.size
        self._memory = mmap.mmap(-1, children * self._child_size)

    def child(self, index: int) -> ChildBoard:
        """The part of one child."""
        return ChildBoard(self._memory, index * self._child_size, self._slots)


class ChildBoard:
    """One child's part of the board."""

    def __init__(self, memory: mmap.mmap, offset: int, slots: int) -> None:
        self._memory = memory
        self._offset = offset
        first_lane = offset + _CHILD.size
        first_slot = first_lane + MOST_LANES * _LANE.size
        self._lanes = [LaneBoard(memory, first_lane + number * _LANE.size) for number in range(MOST_LANES)]
        self.slots = [Slot(memory, first_slot + number * Slot.size) for number in range(slots)]

    def clear(self, lanes: int = 1) -> None:
        """Before a new child takes this place."""
        _CHILD.pack_into(self._memory, self._offset, 0, False, lanes)
        for lane in self._lanes:
            lane.clear()
        for slot in self.slots:
            slot.end()

    @property
    def lanes(self) -> list[LaneBoard]:
        """One for each lane that the child has."""
        return self._lanes[: max(1, self._memory[self._offset + 9])]

    def divide(self, lanes: int) -> None:
        """It has so many lanes. Said before it begins."""
        self._memory[self._offset + 9] = lanes

    @property
    def done(self) -> int:
        """Bodies that this child has run to their end."""
        return int(struct.unpack_from("<Q", self._memory, self._offset)[0])

    @done.setter
    def done(self, number: int) -> None:
        struct.pack_into("<Q", self._memory, self._offset, number)

    @property
    def ended(self) -> bool:
        """Whether the child has said that it ends in good order: any other end is a crash, whatever its exit code."""
        return self._memory[self._offset + 8] == 1

    def end(self) -> None:
        """The child ends, and nothing runs there any more."""
        self._memory[self._offset + 8] = 1

    @property
    def beat(self) -> float:
        """When that fetcher last took a step that has waited for longest; 0.0 before the first step of all."""
        return min((lane.beat for lane in self.lanes if lane.beat), default=0.0)

    @property
    def commit_beat(self) -> float:
        """The same of the committers, as long as they have outcomes to write; 0.0 = none has any."""
        return min((lane.commit_beat for lane in self.lanes if lane.commit_beat), default=0.0)

    def running(self) -> list[Running]:
        """The calls that run now, or ran when the child died."""
        return [entry for slot in self.slots if (entry := slot.read()) is not None]


class LaneBoard:
    """What is told of one lane of a child: its lease, and the last steps of its threads."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset

    def clear(self) -> None:
        """As it is before its child begins."""
        _LANE.pack_into(self._memory, self._offset, 0.0, 0, 0, 0.0, 0.0)

    @property
    def lease_until(self) -> float:
        """When the lease ends if nobody renews it. Written by whoever keeps the leases."""
        return self._moment(0)

    @lease_until.setter
    def lease_until(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, self._offset, moment)

    @property
    def generation(self) -> int:
        """Rises each time the lane lost its lease and took a new consumer name."""
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
    def beat(self) -> float:
        """When the fetcher last took a step, as it does often, unless a body holds the GIL; 0.0 before the first."""
        return self._moment(16)

    @beat.setter
    def beat(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, self._offset + 16, moment)

    @property
    def commit_beat(self) -> float:
        """When the committer last took a step, as long as it has outcomes to write; 0.0 = it has none.

        It takes one at least each few seconds, also while the server is away or refuses, unless a body holds the GIL.
        """
        return self._moment(24)

    @commit_beat.setter
    def commit_beat(self, moment: float) -> None:
        _MOMENT.pack_into(self._memory, self._offset + 24, moment)

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
