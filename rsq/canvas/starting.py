"""How a signature is started: now, later, here, and with which ids. What does it is `app.flows`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rsq.home import Home, home
from rsq.result import AsyncResult

if TYPE_CHECKING:
    from typing_extensions import Self

    from rsq.calls.message import Delivery
    from rsq.calls.plan import Plan

R_co = TypeVar("R_co", covariant=True)


class Starter(Protocol):
    """What starts signatures."""

    def start(self, signature: Any) -> AsyncResult[Any]: ...

    async def astart(self, signature: Any) -> AsyncResult[Any]: ...

    def freeze(self, signature: Any) -> AsyncResult[Any]: ...

    def apply(self, signature: Any, propagate: bool) -> AsyncResult[Any]: ...

    def call_here(self, signature: Any) -> Any: ...

    def stand_in(self, signature: Any, delivery: Delivery) -> Plan: ...


class Startable(Generic[R_co]):
    """The part of a signature that leaves this process, or runs in it."""

    __slots__ = ()

    app: Home | None

    if TYPE_CHECKING:

        def clone(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, **options: Any) -> Self: ...

        def set(self, **options: Any) -> Self: ...

        def parts(self) -> Iterator[Any]: ...

        def thaw(self) -> None: ...

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Start it, with further arguments in front; raises what `Task.delay` raises."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R_co]:
        """Start it, with further arguments in front and options changed; raises what `Task.apply_async` raises.

        Of a chain they go to its first step, of a group to each member. Started again, a frozen one has new ids.
        """
        started = self._with(args, kwargs, options)
        result = self._flows.start(started)
        self._started(started)
        return result

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """`delay` for coroutines."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R_co]:
        """`apply_async` for coroutines."""
        started = self._with(args, kwargs, options)
        result = await self._flows.astart(started)
        self._started(started)
        return result

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        throw: bool = False,
        **options: Any,
    ) -> AsyncResult[R_co]:
        """Run it here and now, as eager mode does, and give the handle of what came out.

        throw  raise what fails, and do not only keep it in the handle
        """
        started = self._with(args, kwargs, options)
        result = self._flows.apply(started, throw)
        self._started(started)
        return result

    def freeze(self, task_id: str | None = None) -> AsyncResult[R_co]:
        """Fix the ids of the next start, and give the handle that it will give."""
        if task_id is not None:
            self.set(task_id=task_id)
        return self._flows.freeze(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function here and now, with further arguments in front; a canvas is started."""
        return self._flows.call_here(self._with(args, kwargs, {}))

    def __invert__(self) -> R_co:
        return self.delay().get()

    def _with(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Self:
        return self.clone(args, kwargs, **options) if args or kwargs or options else self

    def _started(self, started: Self) -> None:
        """The next start, of this or of what was started for it, has new ids."""
        started.thaw()
        if started is not self:
            self.thaw()

    @property
    def _flows(self) -> Starter:
        app = next((part.app for part in self.parts() if part.app is not None), None) or home()
        flows: Starter = app.flows
        return flows
