"""Exceptions as they travel: type, message, arguments and traceback text, never the object.

An exception is rebuilt as its own class only where that class is loaded already; nothing is imported for it.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from rsq.codec import encode
from rsq.errors import MaxRetriesExceededError, Reject, Rejected, RemoteError, Retry, Signal
from rsq.texts import cut_text, text_of

#: Packed size above which the arguments of an exception stay behind, and length of the text that it may bring.
MAX_ERROR_BYTES = 16 * 1024

_STEERING = (Signal, StopIteration, StopAsyncIteration)
"""What is no error to the code that it passes through: a task would be retried by it, a loop would end."""


class RemoteTraceback(Exception):
    """Cause of a decoded exception: prints the traceback of the process where it was raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def encode_error(exc: BaseException, traceback_limit_bytes: int = 64 * 1024) -> dict[str, Any]:
    """Describe an exception in plain values, whatever its class does. It can be packed, inside a result, too.

    What steered its task (a `Signal`) must not steer who reads of it: of a Retry it describes the error that it was
    given, or MaxRetriesExceededError, of a Reject Rejected.

    Returns  type       module and qualified name of the class
             message    str() of it
             args       its arguments, or None: they cannot be carried, or pack to more than MAX_ERROR_BYTES
             traceback  as Python prints it; a long one lacks its middle
    """
    while isinstance(exc, Retry) and isinstance(exc.exc, BaseException):
        exc = exc.exc
    cls = type(exc)
    # BaseException: of any class, even when it is made to text, and here that concerns nobody else.
    try:
        trace = "".join(traceback.format_exception(cls, exc, exc.__traceback__))
    except BaseException as error:
        trace = f"{cls.__qualname__} (its traceback cannot be printed: {type(error).__name__})\n"
    if isinstance(exc, (Retry, Reject)):
        told = text_of(exc)
        if isinstance(exc, Retry):
            exc = MaxRetriesExceededError(f"{told or 'it asked for a retry'}, and none is left")
        else:
            exc = Rejected(told)
        cls = type(exc)
    try:
        # The args of an OSError lack the name of the file, which its constructor takes.
        args = list(OSError.__reduce__(exc)[1] if isinstance(exc, OSError) else exc.args)
        # As deep as they will stand in a result.
        encode([{"args": args}], max_bytes=MAX_ERROR_BYTES)
    except BaseException:
        args = None
    return {
        "type": f"{cls.__module__}.{cls.__qualname__}",
        "message": cut_text(text_of(exc), MAX_ERROR_BYTES),
        "args": args,
        "traceback": cut_text(trace, traceback_limit_bytes),
    }


def decode_error(record: Mapping[str, Any]) -> Exception:
    """Rebuild what `encode_error` described, with the remote traceback as its cause.

    The class is used only where its module is loaded already and it is an Exception that steers nobody; in every other
    case, also when it does not take its own arguments, a RemoteError tells what happened.
    """
    name, message = str(record.get("type")), str(record.get("message", ""))
    args, trace = record.get("args"), record.get("traceback")
    error: Exception | None = None
    if args is not None:
        try:
            rebuilt = _loaded_exception(name)(*args)
            if str(rebuilt) != message:  # a class that makes its text of its arguments would make it twice
                rebuilt.args = tuple(args)
            error = rebuilt
        except KeyboardInterrupt:
            raise
        except BaseException:
            pass  # such a class is told of, and not used
    if not isinstance(error, Exception):
        error = RemoteError(message, name)
    if trace:
        error.__cause__ = RemoteTraceback(str(trace))
    return error


def _loaded_exception(name: str) -> type[Exception]:
    module, *path = name.split(".")
    while path and f"{module}.{path[0]}" in sys.modules:
        module = f"{module}.{path.pop(0)}"
    found: object = sys.modules[module]
    for attribute in path:
        found = inspect.getattr_static(found, attribute)  # static: a lazy module would import something
    if not (isinstance(found, type) and issubclass(found, Exception)) or issubclass(found, _STEERING):
        raise LookupError(f"{name} is no Exception, or one that steers")
    return found
