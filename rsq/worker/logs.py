"""The log of a worker or a beat: lines on standard error, for whose reader nobody waits long."""

from __future__ import annotations

import logging
import os
import select
import sys

from rsq.worker.process import can_write

FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(message)s"

PATIENCE_S = 1.0
"""So long the first line waits for a reader that does not read; the next ones are dropped until it does."""


def log_to_stderr(level: str) -> None:
    """Write what is logged from this level on, unless logging is set up already."""
    logging.basicConfig(level=level.upper(), format=FORMAT, handlers=[StandardErrorHandler()])


class StandardErrorHandler(logging.Handler):
    """Writes in pieces for which there is room, so that no process stands still behind a terminal or pipe that does.

    A worker that waited there would renew no lease and commit nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
        except Exception:
            self.handleError(record)

    def _write(self, text: str) -> None:
        try:
            fd = sys.stderr.fileno()
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):
            return  # it is closed, or no file
        if not can_write(fd, 0.0 if self._dropped else PATIENCE_S):
            self._dropped += 1
            return
        if self._dropped:
            text = f"({self._dropped} lines of the log were dropped: nobody read them)\n{text}"
            self._dropped = 0
        data = f"{text}\n".encode(errors="backslashreplace")
        for start in range(0, len(data), select.PIPE_BUF):
            if start and not can_write(fd, PATIENCE_S):
                self._dropped += 1
                return
            os.write(fd, data[start : start + select.PIPE_BUF])
