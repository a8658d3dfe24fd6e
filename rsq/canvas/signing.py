"""What a task has of signatures: `s`, `si`, `signature`, and `apply`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rsq.canvas.many import Chunks, each, in_chunks
from rsq.canvas.signature import Signature
from rsq.home import Home
from rsq.result import AsyncResult

R = TypeVar("R")


class Signing(Generic[R]):
    """The calls of a task as data."""

    if TYPE_CHECKING:
        name: str

        app: Home

        def given(self, args: Any, kwargs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]: ...

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call with these arguments, unsent: to be combined, passed on, or started later."""
        return Signature(self.name, args, kwargs, app=self.app)

    def si(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """`s`, immutable: it takes no further arguments, such as the value of what comes before it in a chain."""
        return Signature(self.name, args, kwargs, immutable=True, app=self.app)

    def signature(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature[R]:
        """`s` with options, as `apply_async` takes them. Raises SettingsError for a name that is no option."""
        return Signature(self.name, *self.given(args, kwargs), options, immutable, self.app)

    def map(self, it: Iterable[Any]) -> Signature[list[R]]:
        """One call of ``[f(x) for x in it]``: in one worker, one after the other, and retried as one."""
        return each("map", self.s(), it)

    def starmap(self, it: Iterable[Iterable[Any]]) -> Signature[list[R]]:
        """One call of ``[f(*x) for x in it]``."""
        return each("starmap", self.s(), it)

    def chunks(self, it: Iterable[Iterable[Any]], n: int) -> Chunks[R]:
        """`starmap` in parts of `n` items, side by side: a group, with a list of lists. Raises SettingsError."""
        return in_chunks(self.s(), it, n)

    def apply(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Run it here and now as eager mode does, retries and all; see `Signature.apply`."""
        return self.signature(args, kwargs).apply(**options)
