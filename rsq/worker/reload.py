"""`rsq worker --reload`: a process beside the children that watches the code, as the supervisor sees it.

The watching has threads of its own, which have no place in a process that forks: so it is a program, started anew.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

from rsq.errors import SettingsError
from rsq.worker.part import Part

log = logging.getLogger("rsq.worker")

LOOK_MS = 500
"""How often the watching process looks whether its supervisor is still there."""


class CodeWatch(Part):
    """Watches the Python files below a directory. Raises SettingsError.

    changed  is told the names of files that have changed
    """

    def __init__(
        self, selector: selectors.BaseSelector, changed: Callable[[list[str]], None], directory: str = "."
    ) -> None:
        if find_spec("watchfiles") is None:
            raise SettingsError("--reload needs the package watchfiles: pip install 'rsq[reload]'")
        command = [sys.executable, "-m", "rsq.worker.reload", directory]
        # In a session of its own: Ctrl-C, which a terminal sends to all its processes, ends it with the worker alone.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        self._selector, self._changed, self._directory = selector, changed, os.path.abspath(directory)
        selector.register(self._process.stdout, selectors.EVENT_READ, self)

    def on_readable(self, fd: int) -> None:
        """Names have come, one a line: an empty one when it begins; nothing at all when it has ended."""
        lines = os.read(fd, 1 << 16).decode(errors="replace").splitlines()
        if not lines:
            log.error("nobody watches the code any more: it is not loaded anew when it changes")
            self._selector.unregister(fd)
        elif not lines[0]:
            log.info("watching the code in %s", self._directory)
        if names := [line for line in lines if line]:
            self._changed(names)

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
