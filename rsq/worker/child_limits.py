"""When a child has done enough: after so many bodies, or grown beyond so much memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


class Wear:
    """The limits of one child.

    max_tasks      bodies that it runs; None = any number
    max_memory_mib  resident memory with which it still begins another body; None = any
    """

    def __init__(self, max_tasks: int | None = None, max_memory_mib: int | None = None) -> None:
        self.max_tasks = max_tasks
        self._max_bytes = None if max_memory_mib is None else max_memory_mib * 1024 * 1024
        self.limited = max_tasks is not None or max_memory_mib is not None

    def is_reached(self, bodies: int) -> bool:
        """Whether a child that has begun so many bodies is to begin no more."""
        if self.max_tasks is not None and bodies >= self.max_tasks:
            return True
        return self._max_bytes is not None and bodies > 0 and memory_bytes() > self._max_bytes


def memory_bytes() -> int:
    """Resident memory of this process; where there is no /proc, the most that it ever was."""
    size = memory_bytes_of("self")
    if size is not None:
        return size
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def memory_bytes_of(pid: int | str) -> int | None:
    """Resident memory of a process; None where there is no /proc, or no such process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
