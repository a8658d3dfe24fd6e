"""Signatures: calls as data, and what is made of them, chains, groups and chords.

    add.s(2, 2) | mul.s(4)                       a chain: each step gets the value of the one before
    group(add.s(i, i) for i in range(10))        a group: side by side, with a list of values
    group(...) | total.s()                       a chord: a chain that begins with a group

Data alone: how a canvas becomes numbered calls is told by `rsq.flow.planner`, what `dict(sig)` is and how a signature
travels by `rsq.canvas.data`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from rsq.calls.message import new_id
from rsq.calls.options import check_call_option
from rsq.canvas.data import SignatureData
from rsq.canvas.stamping import NAMES, Stamper, StampingVisitor
from rsq.canvas.starting import Startable
from rsq.errors import SettingsError
from rsq.hints import hinted
from rsq.home import Home
from rsq.result_group import GroupResult

if TYPE_CHECKING:
    from typing_extensions import Self

R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T_co = TypeVar("T_co", covariant=True)


@hinted("Signature")
class Signature(SignatureData, Startable[R_co], Generic[R_co]):
    """One call of a task, unsent: made by `task.s()`, `task.si()`, `task.signature()` and `rsq.signature()`.

    A value given to `set`, `link` and `on_error` changes it in place, as in Celery; a canvas holds the signatures that
    it was made of, and no copies.

    task       registered name
    args, kwargs  of the call; what comes before it in a chain stands in front of the args
    options    as `Task.apply_async` takes them
    immutable  takes no further arguments: neither a value nor those of `apply_async`
    links      what is called with its value when it has succeeded
    errbacks   what is called when it has failed for good
    id         the task id that `freeze` has fixed for its next start, or None
    app        whose task it is; None: the project's
    """

    __slots__ = ("app", "args", "errbacks", "id", "immutable", "kwargs", "links", "options", "task")
    kind: ClassVar[str | None] = None

    if TYPE_CHECKING:

        @classmethod
        def from_dict(cls, given: Mapping[str, Any]) -> Signature[Any]: ...

    def __init__(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        immutable: bool = False,
        app: Home | None = None,
    ) -> None:
        self.task = task
        self.args = tuple(args)
        self.kwargs = dict(kwargs or ())
        self.options: dict[str, Any] = {}
        self.immutable = False
        self.links: tuple[Signature[Any], ...] = ()
        self.errbacks: tuple[Signature[Any], ...] = ()
        self.id: str | None = None
        self.app = app
        if options or immutable:
            self.set(immutable, **(options or {}))

    # -- to change one, or derive another

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Change options, and give the signature back. Raises SettingsError for a name that is no option."""
        for name, value in options.items():
            if name == "link":
                for callback in several(name, value):
                    self.link(callback)
            elif name == "link_error":
                for errback in several(name, value):
                    self.link_error(errback)
            else:
                check_call_option(name)
        self._set({name: options[name] for name in options.keys() - {"link", "link_error"}})
        if immutable is not None:
            self._set_immutable(immutable)
        return self

    def _set(self, options: Mapping[str, Any]) -> None:
        self.options.update(options)

    def _set_immutable(self, immutable: bool) -> None:
        self.immutable = immutable

    def clone(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Another one of the same, with further arguments in front and options changed; an immutable one only these."""
        twin = self._copy()
        if args or kwargs:
            twin._give(tuple(args or ()), kwargs or {})
        if options:
            twin.set(**options)
        return twin

    def _copy(self) -> Self:
        twin = type(self).__new__(type(self))
        for cls in type(self).__mro__:
            for name in getattr(cls, "__slots__", ()):
                setattr(twin, name, getattr(self, name))
        twin.kwargs, twin.options = dict(self.kwargs), dict(self.options)
        return twin

    def _give(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self.immutable:
            self.args = args + self.args
            self.kwargs.update(kwargs)

    def link(self, callback: Signature[Any]) -> Signature[Any]:
        """Have `callback` called with the value once this has succeeded. Gives the callback back; twice is once."""
        self.links = _with(self.links, check_signature(callback, "link"))
        return callback

    def link_error(self, errback: Signature[Any]) -> Signature[Any]:
        """Have `errback` called once this has failed for good. Gives the errback back; twice is once.

        It gets the id of the call that failed, in front of its own arguments; a task that takes three or more arguments
        by position gets the request, the exception and the traceback.
        """
        self.errbacks = _with(self.errbacks, check_signature(errback, "link_error"))
        return errback

    def on_error(self, errback: Signature[Any]) -> Self:
        """`link_error`, but gives this signature back."""
        self.link_error(errback)
        return self

    def stamp(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any) -> Self:
        """Put stamps on all calls in it, callbacks among them, and give it back: see `rsq.StampingVisitor`.

        append_stamps  a name that is stamped already gets a list of both values; else the one from further out counts,
                       and of two on one call the later one
        headers        the stamps
        Raises         SettingsError
        """
        Stamper(visitor, append_stamps).stamp(self, {NAMES: list(headers), **headers})
        return self

    def __or__(self, other: Signature[S]) -> Signature[S]:
        return Chain.of((self, check_signature(other, "what follows |")))

    # -- as data

    def parts(self) -> Iterator[Signature[Any]]:
        """The calls of which it consists, in the order of their steps; callbacks are not among them."""
        yield self

    def fix_ids(self) -> None:
        """Give an id to all in it that has none, and its parts to it alone, since one may stand in it twice."""
        if self.id is None and "task_id" not in self.options:
            self.id = new_id()
        self.links = tuple(link.clone() for link in self.links)
        for link in self.links:
            link.fix_ids()

    def thaw(self) -> None:
        """Forget the ids that were fixed."""
        self.id = None
        for link in self.links:
            link.thaw()

    def __repr__(self) -> str:
        if "each" in self.options:
            stars = "*" if self.options["each"] == "starmap" else ""
            return f"[{self.task}({stars}x) for x in {', '.join(map(reprlib.repr, self.args))}]"
        given = [repr(arg) for arg in self.args] + [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.task}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and (other is self or self._key() == other._key())

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def _key(self) -> tuple[Any, ...]:
        return (self.task, self.args, self.kwargs, self.options, self.immutable, self.links, self.errbacks)


class Canvas(Signature[R_co]):
    """What chains and groups have in common: they consist of signatures, to which arguments and options are handed."""

    __slots__ = ("tasks",)

    def __init__(self, tasks: Sequence[Signature[Any]], app: Home | None = None) -> None:
        super().__init__("", app=app)
        self.tasks = tuple(tasks)

    def parts(self) -> Iterator[Signature[Any]]:
        for task in self.tasks:
            yield from task.parts()

    def fix_ids(self) -> None:
        super().fix_ids()
        self.tasks = tuple(task.clone() for task in self.tasks)
        for task in self.tasks:
            task.fix_ids()

    def thaw(self) -> None:
        super().thaw()
        for task in self.tasks:
            task.thaw()

    def _key(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.tasks, self.options, self.links, self.errbacks)

    def own_tasks(self) -> list[Signature[Any]]:
        """Its parts, as copies that stand in it alone, to be changed."""
        return list(self._change(range(len(self.tasks))))

    def _change(self, numbers: Iterable[int]) -> Iterator[Signature[Any]]:
        """Copies of these parts, which now stand in their places, to be changed: others may hold the old ones."""
        tasks = list(self.tasks)
        for number in numbers:
            tasks[number] = tasks[number]._copy()
            yield tasks[number]
        self.tasks = tuple(tasks)


class Chain(Canvas[R_co]):
    """Steps one after the other: each gets the value of the one before in front of its arguments.

    What follows a group waits for all its members, and gets the list of their values. Its id is that of its last step.
    """

    __slots__ = ()
    kind = "chain"

    def __init__(self, tasks: Sequence[Signature[Any]], app: Home | None = None) -> None:
        if not tasks:
            raise SettingsError("a chain needs a step: chain(a.s(), b.s())")
        super().__init__(tasks, app)

    @classmethod
    def of(cls, tasks: Iterable[Signature[Any]]) -> Chain[Any]:
        """The chain of these: chains among them become part of it, and what begins with a group is a chord."""
        steps: list[Signature[Any]] = []
        for task in tasks:
            if isinstance(task, Chain) and not task.errbacks:
                steps += task.tasks
            else:
                steps.append(task)
        return Chord(steps) if steps and isinstance(steps[0], Group) and len(steps) > 1 else Chain(steps)

    def _set(self, options: Mapping[str, Any]) -> None:
        named = {name: value for name, value in options.items() if name == "task_id"}
        first = {name: value for name, value in options.items() if name != "task_id"}
        if first:
            for step in self._change([0]):
                step._set(first)
        if named:
            for step in self._change([len(self.tasks) - 1]):
                step._set(named)

    def _set_immutable(self, immutable: bool) -> None:
        for step in self._change([0]):
            step._set_immutable(immutable)

    def _give(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for step in self._change([0]):
            step._give(args, kwargs)

    def link(self, callback: Signature[Any]) -> Signature[Any]:
        """Have `callback` called with the value of the last step; see `Signature.link`."""
        for step in self._change([len(self.tasks) - 1]):
            step.link(callback)
        return callback

    def __repr__(self) -> str:
        return _listed(self.tasks, " | ")


class Chord(Chain[R_co]):
    """A chain that begins with a group, its header; what follows is its body."""

    __slots__ = ()
    kind = "chord"

    def __init__(self, tasks: Sequence[Signature[Any]], app: Home | None = None) -> None:
        if not tasks or not isinstance(tasks[0], Group):
            raise SettingsError("a chord begins with a group, its header: chord([a.s(), b.s()], total.s())")
        super().__init__(tasks, app)

    @property
    def header(self) -> Group[Any]:
        """The group that is waited for."""
        return cast("Group[Any]", self.tasks[0])

    @property
    def body(self) -> Signature[Any] | None:
        """What gets the list of the header's values; None as long as there is none."""
        rest = self.tasks[1:]
        return (rest[0] if len(rest) == 1 else Chain(rest, self.app)) if rest else None

    def __call__(self, body: Signature[Any] | None = None, **options: Any) -> Any:
        """Start it, as in Celery: ``chord(header)(body)``."""
        return (self if body is None else self | body).apply_async(**options)


class Group(Canvas[list[T_co]], Generic[T_co]):
    """Calls side by side. Its value is the list of their values, in this order; a group in a group lies flat in it."""

    __slots__ = ()
    kind = "group"

    if TYPE_CHECKING:

        def delay(self, *args: Any, **kwargs: Any) -> GroupResult[T_co]: ...

        def apply_async(self, *given: Any, **options: Any) -> GroupResult[T_co]: ...

        async def adelay(self, *args: Any, **kwargs: Any) -> GroupResult[T_co]: ...

        async def aapply_async(self, *given: Any, **options: Any) -> GroupResult[T_co]: ...

        def apply(self, *given: Any, **options: Any) -> GroupResult[T_co]: ...

        def freeze(self, task_id: str | None = None) -> GroupResult[T_co]: ...

    def _set(self, options: Mapping[str, Any]) -> None:
        each = {name: value for name, value in options.items() if name != "task_id"}
        if each:
            for member in self._change(range(len(self.tasks))):
                member._set(each)
        if "task_id" in options:
            self.options["task_id"] = options["task_id"]

    def _set_immutable(self, immutable: bool) -> None:
        for member in self._change(range(len(self.tasks))):
            member._set_immutable(immutable)

    def _give(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for member in self._change(range(len(self.tasks))):
            member._give(args, kwargs)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Self:
        """Have the members start one after the other: countdowns of `start`, `start + step`, ... seconds.

        stop  from here on it begins at `start` again
        """
        wait_s = start
        for member in self._change(range(len(self.tasks))):
            member._set({"countdown": wait_s})
            wait_s += step
            if stop is not None and wait_s >= stop:
                wait_s = start
        return self

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Signature[Any]]:
        return iter(self.tasks)

    def __repr__(self) -> str:
        return f"group({_listed(self.tasks, ', ')})"


def check_signature(given: Any, where: str) -> Signature[Any]:
    """Give a signature back, or raise SettingsError that says what to write."""
    if isinstance(given, Signature):
        return given
    if isinstance(given, Mapping):
        raise SettingsError(f"{where} takes signatures; of a dict make one by Signature.from_dict(...)")
    name = getattr(given, "__name__", None)
    hint = f"write {name}.s(...)" if name and hasattr(given, "s") else "such as add.s(2, 2)"
    raise SettingsError(f"{where} takes signatures, {hint}, not {given!r}")


def several(where: str, given: Any) -> list[Signature[Any]]:
    if isinstance(given, (Signature, Mapping, str)) or not isinstance(given, Iterable):
        given = [given]
    return [check_signature(task, where) for task in given]


def _with(those: tuple[Signature[Any], ...], one: Signature[Any]) -> tuple[Signature[Any], ...]:
    return those if one in those else (*those, one)


def _listed(tasks: Sequence[Signature[Any]], between: str) -> str:
    shown = [repr(task) for task in tasks[:10]]
    return between.join(shown if len(tasks) <= 10 else [*shown, f"... {len(tasks) - 10} more"])
