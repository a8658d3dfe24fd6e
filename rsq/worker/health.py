"""How a worker is, told to the host that it runs on: one small file a worker, which a probe reads without any server.

Two questions, answered apart. Live: does the worker's own process act? A server that is away does not make it dead, and
a restart would not help. Ready: does it consume? Not while it stops, while it has lost the server, or while a child's
fetching stands still.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

STALE_S = 5.0
"""A file this much older than its writer promised tells that the writer hangs."""

STANDSTILL_S = 15.0
"""A child whose fetcher took no step for so long, though no body runs, does not consume."""


@dataclass(frozen=True)
class ChildHealth:
    """One child. `beat` is the moment of its fetcher's last step; all moments are of this host's monotonic clock."""

    pid: int
    registered: bool
    beat: float
    running: int


@dataclass(frozen=True)
class Health:
    """One worker, as it told at the moment `at`, promising to tell again within `every_s`.

    renewed  when the server last confirmed the leases
    """

    worker_id: str
    pid: int
    at: float
    every_s: float
    renewed: float
    lease_s: float
    stopping: bool
    children: list[ChildHealth]

    def why_dead(self, now: float) -> str:
        """Why the worker does not live, or ''."""
        late_s = now - self.at - self.every_s
        return f"the supervisor is silent for {late_s:.0f} s too long" if late_s > STALE_S else ""

    def why_not_ready(self, now: float) -> str:
        """Why it does not consume, or ''."""
        if dead := self.why_dead(now):
            return dead
        if self.stopping:
            return "it is stopping"
        if now - self.renewed > self.lease_s:
            return f"the server has not answered for {now - self.renewed:.0f} s"
        for child in self.children:
            if not child.registered:
                return f"child {child.pid} is still starting"
            if not child.running and now - child.beat > STANDSTILL_S:
                return f"child {child.pid} has fetched nothing for {now - child.beat:.0f} s"
        return "" if self.children else "it has no children"


def directory() -> Path:
    """RSQ_HEALTH_DIR, or a folder of this user in the system's folder for temporary files."""
    named = os.environ.get("RSQ_HEALTH_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"rsq-health-{os.getuid()}"


class HealthFile:
    """The file of one worker."""

    def __init__(self) -> None:
        self._path = directory() / f"{os.getpid()}.json"

    def write(self, health: Health) -> None:
        """Replace the file in one step. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(health)))
        draft.replace(self._path)

    def remove(self) -> None:
        """The worker ends."""
        self._path.unlink(missing_ok=True)


def all_health() -> Iterator[Health]:
    """Every worker of this user on this host. The files of those that died without a word are cleared away."""
    for path in sorted(directory().glob("*.json")):
        try:
            told = json.loads(path.read_text())
            health = Health(**{**told, "children": [ChildHealth(**child) for child in told["children"]]})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # it went away while we looked, or belongs to another release
        if not _exists(health.pid):
            path.unlink(missing_ok=True)
            continue
        yield health


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
