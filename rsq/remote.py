"""Exceptions as they travel: type, message, arguments and traceback text, never the object.

An exception is rebuilt as its own class only where that class is loaded already; nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from rsq.codec import cut_text, encode, text_of
from rsq.errors import RemoteError

#: Packed size above which the arguments of an exception stay behind, and length of the text that it may bring.
MAX_ERROR_BYTES = 16 * 1024


class RemoteTraceback(Exception):
    """Cause of a decoded exception: prints the traceback of the process where it was raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def encode_error(exc: BaseException, traceback_limit_bytes: int = 64 * 1024) -> dict[str, Any]:
    """Describe an exception in plain values, whatever its class does.

    Returns  type       module and qualified name of the class
             message    str() of it
             args       its arguments, or None: they cannot be carried, or pack to more than MAX_ERROR_BYTES
             traceback  as Python prints it; a long one lacks its middle
    """
    try:
        # The args of an OSError lack the name of the file, which its constructor takes.
        args = list(OSError.__reduce__(exc)[1] if isinstance(exc, OSError) else exc.args)
        encode(args, max_bytes=MAX_ERROR_BYTES)
    except Exception:
        args = None
    try:
        trace = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except Exception as error:
        trace = f"{type(exc)!r} (its traceback cannot be printed: {type(error).__name__})\n"
    return {
        "type": f"{type(exc).__module__}.{type(exc).__qualname__}",
        "message": cut_text(text_of(exc), MAX_ERROR_BYTES),
        "args": args,
        "traceback": cut_text(trace, traceback_limit_bytes),
    }


def decode_error(record: Mapping[str, Any]) -> Exception:
    """Rebuild what `encode_error` described, with the remote traceback as its cause.

    The class is used only where its module is loaded already and it is an Exception; in every other case, also when
    it does not take its own arguments, a RemoteError tells what happened.
    """
    name, message = str(record.get("type")), str(record.get("message", ""))
    args, trace = record.get("args"), record.get("traceback")
    error: Exception | None = None
    if args is not None:
        with contextlib.suppress(Exception):
            error = _loaded_exception(name)(*args)
            if str(error) != message:  # a class that makes its text of its arguments would make it twice
                error.args = tuple(args)
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
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise LookupError(f"{name} is no Exception")
    return found
