"""What can be a task: functions, what they take, and where they are written."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from rsq.errors import InvalidTask


def check_function(function: object) -> None:
    """Raises InvalidTask for what cannot be a task."""
    if isinstance(function, str):
        raise InvalidTask(f"the name of a task is given as name={function!r}")
    if not callable(function) or isinstance(function, type) or not hasattr(function, "__qualname__"):
        raise InvalidTask(f"{function!r} is not a function: write one that calls it, and make that the task")


def signature_of(run: Callable[..., Any], function: Callable[..., Any], bound: bool) -> inspect.Signature:
    """What a task takes that is run by `run`; `bound` where that gives `function` the task itself. Or InvalidTask."""
    try:
        return inspect.signature(run)
    except ValueError:
        name = function.__qualname__
        raise InvalidTask(
            f"{name} takes no argument, and bind=True passes the task as the first one"
            if bound and not _takes_anything(function)
            else f"Python does not tell the parameters of {name}: write a function that calls it"
        ) from None


def _takes_anything(function: Callable[..., Any]) -> bool:
    """Whether it has parameters; also True for some functions written in C, which do not tell."""
    try:
        return bool(inspect.signature(function).parameters)
    except ValueError:
        return True


def arity_check(signature: inspect.Signature) -> Callable[[int], bool]:
    """Whether a number of positional arguments alone fits; spares the slow `bind` for most calls."""
    least = most = 0
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += parameter.default is parameter.empty
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = sys.maxsize
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            return lambda number: False
    return lambda number: least <= number <= most


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is written; of a decorated one, where it was decorated."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
