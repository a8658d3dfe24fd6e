"""What a checker knows of generators as tasks: what they yield, and what they return. When they run they are tasks like
others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar
from uuid import UUID

from rsq.output import OutputStream
from rsq.result import AsyncResult
from rsq.task import AsyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")

if TYPE_CHECKING:

    class YieldingResult(AsyncResult[R], Generic[Y, R]):
        """The handle of a call that yields Y and returns R."""

        def stream(
            self, after: str | None = None, timeout: float | None = None, propagate: bool = True
        ) -> OutputStream[Y]: ...

    class _Sends(Generic[P, Y, R]):
        """Such calls."""

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> YieldingResult[Y, R]: ...

        def apply_async(
            self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
        ) -> YieldingResult[Y, R]: ...

        async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> YieldingResult[Y, R]: ...

        async def aapply_async(
            self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
        ) -> YieldingResult[Y, R]: ...

        def AsyncResult(self, task_id: str | UUID) -> YieldingResult[Y, R]: ...

    class GeneratorTask(_Sends[P, Y, R], Task[P, R]):
        """The task of a generator."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Generator[Y, None, R]: ...  # type: ignore[override]

    class AsyncGeneratorTask(_Sends[P, Y, None], AsyncTask[P, None], Generic[P, Y]):
        """The task of an asynchronous generator, which returns nothing."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Y, None]: ...  # type: ignore[override]
