"""Loggers whose handlers and filters are no business of the code that logs.

Python lets a filter raise, and a handler that is no subclass of its own ones. In a thread that writes outcomes or reads
messages that would be the end of it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback


class Guarded(logging.Logger):
    """A logger that lets nothing out of what an app has put on it, or above it."""

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except KeyboardInterrupt:
            raise
        except BaseException:
            with contextlib.suppress(BaseException):  # stderr may be anything
                sys.stderr.write(f"a log handler or filter failed at {record.msg!r}:\n{traceback.format_exc()}")


def guarded(name: str) -> logging.Logger:
    """`logging.getLogger`, guarded for everybody who uses this name."""
    logger = logging.getLogger(name)
    if type(logger) is logging.Logger:  # an app's own class stays what it is
        logger.__class__ = Guarded
    return logger
