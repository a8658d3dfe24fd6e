"""How many processors this process may use: of the host's, those that it is given."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath


def processors(root: Path = Path("/")) -> int:
    """Those on which it may run; and not more than its containers' shares of time pay for. At least one.

    root  where the system's files are
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([usable, *_shares(root)])))


def _shares(root: Path) -> list[float]:
    """The limits of the control groups around this process, in processors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []  # another system
    shares = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        where = root / "sys/fs/cgroup"
        if controllers:
            if "cpu" not in controllers.split(","):
                continue
            where /= "cpu"
        path = PurePosixPath(group.lstrip("/"))
        for each in (path, *path.parents):
            share = _share(where / each)
            if share is not None:
                shares.append(share)
    return shares


def _share(group: Path) -> float | None:
    """Of one control group: v2 has one file for it, v1 two. None: no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None
