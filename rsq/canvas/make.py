"""What canvases are made with: `signature`, `chain`, `group`, `chord`, `xmap`, `xstarmap`, `chunks`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rsq.canvas.many import Chunks, each, in_chunks
from rsq.canvas.signature import Chain, Chord, Group, Signature, check_signature, several
from rsq.errors import SettingsError
from rsq.home import Home

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R")


def signature(
    task: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    immutable: bool = False,
    app: Home | None = None,
    **options: Any,
) -> Signature[Any]:
    """The signature of a task by its name, which this process need not know.

    task     a name; of a task its signature is made, of a signature a clone
    app      whose task it is; default: the project's
    Raises   SettingsError; a dict is made one by `Signature.from_dict`, and never by itself
    """
    if isinstance(task, Signature):
        return task.clone(args, kwargs, **options)
    if isinstance(task, Mapping):
        raise SettingsError("a dict is no signature by itself: write Signature.from_dict(...), if you trust its source")
    if hasattr(task, "signature"):
        made: Signature[Any] = task.signature(args, kwargs, immutable=immutable, **options)
        return made
    if not isinstance(task, str):
        raise SettingsError(f"a signature is made of a task or its name, not of {task!r}")
    return Signature(task, args, kwargs, options, immutable, app)


@overload
def chain(
    *tasks: Unpack[tuple[Unpack[tuple[Signature[Any], ...]], Signature[R]]],
) -> Chain[R]: ...


@overload
def chain(*tasks: Signature[Any]) -> Chain[Any]: ...


@overload
def chain(tasks: Iterable[Signature[R]], /) -> Chain[R]: ...


def chain(*tasks: Any) -> Any:  # type: ignore[misc]
    """Steps one after the other, each with the value of the one before: ``chain(a.s(1), b.s(), c.s())``.

    Chains in it become part of it, and one that begins with a group is a chord. Raises SettingsError for no step.
    """
    return Chain.of(several("chain", tasks[0] if len(tasks) == 1 else tasks))


@overload
def group(tasks: Iterable[Signature[R]], /) -> Group[R]: ...


@overload
def group(*tasks: Signature[R]) -> Group[R]: ...


def group(*tasks: Any) -> Any:
    """Calls side by side: ``group(a.s(1), b.s(2))`` or ``group(a.s(i) for i in range(10))``."""
    return Group(several("group", tasks[0] if len(tasks) == 1 else tasks))


@overload
def chord(header: Iterable[Signature[Any]], body: Signature[R]) -> Chain[R]: ...


@overload
def chord(header: Iterable[Signature[Any]], body: None = None) -> Chord[Any]: ...


def chord(header: Any, body: Any = None) -> Any:
    """A group, and what gets the list of its values: ``chord([a.s(1), b.s(2)], total.s())``.

    Without a body, it is given when the chord is called: ``chord(header)(body)``.
    """
    first = header if isinstance(header, Group) else Group(several("the header of a chord", header))
    return Chord([first]) if body is None else Chain.of((first, check_signature(body, "the body of a chord")))


def xmap(task: Any, it: Iterable[Any]) -> Signature[list[Any]]:
    """``task.map(it)``; also of a signature without arguments, or a task's name."""
    return each("map", signature(task), it)


def xstarmap(task: Any, it: Iterable[Iterable[Any]]) -> Signature[list[Any]]:
    """``task.starmap(it)``; also of a signature without arguments, or a task's name."""
    return each("starmap", signature(task), it)


def chunks(task: Any, it: Iterable[Iterable[Any]], n: int) -> Chunks[Any]:
    """``task.chunks(it, n)``; also of a signature without arguments, or a task's name."""
    return in_chunks(signature(task), it, n)
