"""The names by which the processes of a fleet know a function or a class: its module and its own name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsq.errors import InvalidTask

LONGEST_NAME = 500
"""Characters of a task's name."""


def module_of(thing: Any) -> str:
    """The module of a function or a class; of the program that runs, the name by which another process imports it."""
    module: str = thing.__module__
    return program() if module == "__main__" else module


def program() -> str:
    """What was started as ``__main__``, as others import it: ``jobs`` after ``python jobs.py``."""
    main = sys.modules["__main__"]
    if spec := getattr(main, "__spec__", None):
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def name_of(function: Callable[..., Any]) -> str:
    """The name under which workers know a function.

    Raises InvalidTask for a lambda or a nested function: a worker could not find it.
    """
    if "<lambda>" in function.__qualname__:
        raise InvalidTask("a lambda has no name that a worker could find: use def, or give the task a name=...")
    if "<locals>" in function.__qualname__:
        raise InvalidTask(
            f"{function.__qualname__} is defined inside a function, where a worker cannot find it: "
            "move it to the module's top level, or give the task a name=... and define it in the worker too; "
            "a decorator below @task needs functools.wraps"
        )
    return f"{module_of(function)}.{function.__qualname__}"


def check_name(name: str) -> str:
    """Give `name` back if a task may be called so, else raise InvalidTask."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or " " in name:
        raise InvalidTask(
            f"a task cannot be named {name[:50]!r}: take 1 to {LONGEST_NAME} printable characters without spaces"
        )
    return name
