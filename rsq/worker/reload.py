"""`rsq worker --reload`: a process beside the children that watches the code, as the supervisor sees it.

The watching has threads of its own, which have no place in a process that forks: so it is a program, started anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

from rsq.errors import SettingsError

LOOK_MS = 500
"""How often the watching process looks whether its supervisor is still there."""


class CodeWatch:
    """Tells of changes of Python files below a directory through a file descriptor. Raises SettingsError."""

    def __init__(self, directory: str = ".") -> None:
        if find_spec("watchfiles") is None:
            raise SettingsError("--reload needs the package watchfiles: pip install 'rsq[reload]'")
        command = [sys.executable, "-m", "rsq.worker.reload", directory]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def fileno(self) -> int:
        """Becomes readable with each change, and when the watching ends."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def changed(self) -> list[str]:
        """The files that changed, once `fileno` is readable: '' when it begins, nothing when it has ended."""
        return os.read(self.fileno(), 1 << 16).decode(errors="replace").splitlines()

    def close(self) -> None:
        """Watch no more."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def watch(directory: str) -> None:
    """The program: write the names of changed files, one a line, until the process that started this is gone.

    A first line, which is empty, says that it watches.
    """
    from watchfiles import PythonFilter
    from watchfiles import watch as changes_of

    parent = os.getppid()
    rounds = changes_of(directory, watch_filter=PythonFilter(), rust_timeout=LOOK_MS, yield_on_timeout=True)
    for number, changes in enumerate(rounds):
        if os.getppid() != parent:
            return
        if number == 0:
            os.write(1, b"\n")
        if changes:
            names = "".join(f"{os.path.relpath(path, directory)}\n" for _, path in sorted(changes))
            os.write(1, names.encode(errors="replace")[:4096])


if __name__ == "__main__":
    try:
        watch(sys.argv[1])
    except (KeyboardInterrupt, BrokenPipeError):
        pass
