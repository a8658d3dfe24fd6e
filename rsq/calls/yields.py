"""Generators as tasks: each value that is yielded is emitted, and the one that is returned is the result."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any


def is_generator(function: object) -> bool:
    """Whether a function yields, as a coroutine or not."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def emitting(
    run: Callable[..., Any], emit: Callable[[Any], None], aemit: Callable[[Any], Awaitable[None]]
) -> Callable[..., Any]:
    """The function that goes through what `run` yields. What emitting a value raises is raised at its `yield`."""

    @wraps(run)
    def plain(*args: Any, **kwargs: Any) -> Any:
        values = run(*args, **kwargs)
        try:
            value = next(values)
            while True:
                try:
                    emit(value)
                except BaseException as error:
                    value = values.throw(error)
                else:
                    value = next(values)
        except StopIteration as end:
            return end.value

    @wraps(run)
    async def coroutine(*args: Any, **kwargs: Any) -> None:
        values = run(*args, **kwargs)
        try:
            value = await anext(values)
            while True:
                try:
                    await aemit(value)
                except BaseException as error:
                    value = await values.athrow(error)
                else:
                    value = await anext(values)
        except StopAsyncIteration:
            pass

    return coroutine if inspect.isasyncgenfunction(run) else plain
