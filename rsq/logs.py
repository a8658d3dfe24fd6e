"""Loggers whose handlers and filters are no business of the code that logs.

Python lets a filter raise, and a handler that is no subclass of its own ones. In a thread that writes outcomes or reads
messages that would be the end of it.
"""

from __future__ import annotations

import logging


class Guarded(logging.Logger):
    """A logger that lets nothing out of what an app has put on it, or above it."""

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            where = (type(error), error, error.__traceback__)
            text = "a log handler or filter failed at %r"
            told = logging.LogRecord(self.name, logging.ERROR, __file__, 0, text, (record.msg,), where)
            if logging.lastResort is not None:
                logging.lastResort.handle(told)  # to stderr, whatever that is by now


def guarded(name: str) -> logging.Logger:
    """`logging.getLogger`, guarded for everybody who uses this name."""
    logger = logging.getLogger(name)
    if type(logger) is logging.Logger:  # an app's own class stays what it is
        logger.__class__ = Guarded
    return logger
