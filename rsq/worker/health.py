"""How a worker is, told to the host that it runs on: one small file a worker, which a probe reads without any server.

Two questions, answered apart. Live: does the worker's own process act? A server that is away does not make it dead, and
a restart would not help. Ready: does it consume? Not while it stops, while it has lost the server, or while a child's
fetching or committing stands still.

The worker holds a lock on its file, which ends with it however it ends: a file that nobody holds tells of nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

from rsq.errors import SettingsError

STALE_S = 5.0
"""A file this much older than its writer promised tells that the writer hangs."""

STANDSTILL_S = 15.0
"""A child whose fetcher took no step for so long, though no body runs, does not consume."""

SUFFIX = ".health"

TRIES = 10
"""A file is read again so often when it is just being written."""


@dataclass(frozen=True)
class ChildHealth:
    """One child. All moments are of this host's monotonic clock.

    beat         of its fetcher's last step; 0 before the first
    commit_beat  of its committer's last step, as long as that has outcomes to write, else 0
    """

    pid: int
    registered: bool
    beat: float
    commit_beat: float
    running: int


@dataclass(frozen=True)
class Health:
    """One worker, as it told at the moment `at`, promising to tell again within `every_s`.

    target   what -A or RSQ_APP named
    renewed  when the server last confirmed the leases
    """

    worker_id: str
    pid: int
    target: str
    app: str
    namespace: str
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
        working = [child for child in self.children if child.registered and child.beat]
        for child in working:
            if not child.running and now - child.beat > STANDSTILL_S:
                return f"child {child.pid} has fetched nothing for {now - child.beat:.0f} s"
            # While a body runs it may hold the interpreter; but not when the fetcher steps on.
            if child.commit_beat and (child.beat if child.running else now) - child.commit_beat > STANDSTILL_S:
                return f"child {child.pid} has committed nothing for {now - child.commit_beat:.0f} s"
        if working:
            return ""  # one that starts beside them, or is replaced, keeps nothing waiting
        return f"child {self.children[0].pid} is still starting" if self.children else "it has no children"

    def is_of(self, target: str | None, namespace: str | None) -> bool:
        """Whether it is what these name, as -A and --namespace do; None: whatever it is."""
        if namespace is not None and namespace != self.namespace:
            return False
        if target is None or target == self.target:
            return True
        module, _, attribute = target.partition(":")
        mine, _, my_attribute = self.target.partition(":")
        return module == mine and not (attribute and my_attribute)


def directory() -> Path:
    """RSQ_HEALTH_DIR, or a folder of this user in the system's folder for temporary files. Raises OSError."""
    named = os.environ.get("RSQ_HEALTH_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"rsq-health-{os.getuid()}"


def _checked_directory() -> Path:
    """The same, made where it is missing. Raises OSError, SettingsError: somebody else may have made it."""
    path = directory()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if "RSQ_HEALTH_DIR" not in os.environ:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise SettingsError(f"{path} is not a folder of this user alone: remove it, or set RSQ_HEALTH_DIR")
    return path


class HealthFile:
    """The file of one worker. It is made with the first `write`."""

    def __init__(self, worker_id: str) -> None:
        self._name = worker_id + SUFFIX
        self._path: Path | None = None
        self._fd = -1

    def write(self, health: Health) -> None:
        """Tell it. Raises OSError, SettingsError."""
        if self._fd < 0 or not os.fstat(self._fd).st_nlink:
            self._make()
        text = json.dumps(asdict(health)).encode()
        # One line with its checksum: who reads it while it is written sees that.
        os.pwrite(self._fd, b"%08x %s\n" % (crc32(text), text), 0)

    def remove(self) -> None:
        """The worker ends."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _make(self) -> None:
        path = _checked_directory() / self._name
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        else:
            for _ in _told(path.parent):
                pass  # leftovers go
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._path = path
        fcntl.flock(self._fd, fcntl.LOCK_EX)


def all_health() -> Iterator[Health]:
    """Every worker of this user on this host. The files of those that died without a word are cleared away."""
    try:
        folder = directory()
    except OSError:
        return
    for line in _told(folder):
        try:
            told = json.loads(line)
            yield Health(**{**told, "children": [ChildHealth(**child) for child in told["children"]]})
        except (ValueError, TypeError, KeyError):
            continue  # of another release


def _told(folder: Path) -> Iterator[bytes]:
    """What living workers have written."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                continue
        except OSError:
            continue
        with closing(os.fdopen(fd, "rb", buffering=0)) as file:
            for _ in range(TRIES):
                file.seek(0)
                checksum, _, text = file.readall().partition(b"\n")[0].partition(b" ")
                if checksum == b"%08x" % crc32(text):
                    break
                time.sleep(0.01)
            else:
                continue  # it has just been made; or it is none of ours
            if _is_held(file.fileno()):
                yield text
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _is_held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
