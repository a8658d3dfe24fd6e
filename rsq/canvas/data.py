"""The dict of a signature: plain data, from which an equal one can be made; packed, it is how a signature travels.

    task          registered name; '' of a canvas
    args, kwargs, immutable
    options       as `apply_async` takes them; under link and link_error the dicts of callbacks
    subtask_type  None of a task; "chain", "chord" or "group"
    tasks         of a canvas: the dicts of its parts

What comes from outside is data and stays that: names and options are checked, and a task is looked up at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rsq import codec
from rsq.calls.options import check_call_option
from rsq.errors import DecodeError, InvalidTask, SettingsError
from rsq.home import home
from rsq.keys import check_queue
from rsq.naming import check_name

DEEPEST = 100
"""Canvases inside each other, callbacks of callbacks included. A chain counts once, however long it is."""

_FIELDS: dict[str, type[Any]] = {
    "task": str,
    "args": Sequence,
    "kwargs": Mapping,
    "options": Mapping,
    "immutable": bool,
    "subtask_type": object,
    "tasks": Sequence,
}

_CALLBACKS = (("link", "links"), ("link_error", "errbacks"))


class SignatureData:
    """What makes ``dict(sig)`` work, and `from_dict`. Its subclasses are all that a dict can become."""

    __slots__ = ()

    _kinds: ClassVar[dict[str | None, type[Any]]] = {}
    kind: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            cls._kinds[cls.kind] = cls

    def keys(self) -> Iterable[str]:
        """The names of its dict: ``dict(sig)`` is plain data, of which `from_dict` makes an equal one."""
        return tuple(_FIELDS)

    def __getitem__(self, name: str) -> Any:
        return self._fields(0)[name]

    def _fields(self: Any, depth: int) -> dict[str, Any]:
        _check_depth(depth)
        options = dict(self.options)
        if self.id is not None:
            options["task_id"] = self.id
        for option, slot in _CALLBACKS:
            if callbacks := getattr(self, slot):
                options[option] = [callback._fields(depth + 1) for callback in callbacks]
        return {
            "task": self.task,
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "options": options,
            "immutable": self.immutable,
            "subtask_type": self.kind,
            "tasks": [task._fields(depth + 1) for task in getattr(self, "tasks", ())],
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Any:
        """The signature of which `given` is the dict. Raises SettingsError for what is none."""
        return _made(given, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        return SignatureData.from_dict, (self._fields(0),)


def _made(given: Any, depth: int) -> Any:
    _check_depth(depth)
    if not isinstance(given, Mapping):
        raise SettingsError(f"the dict of a signature is a map with task, args, kwargs, options, not {given!r}")
    for name, value in given.items():
        if name not in _FIELDS:
            raise SettingsError(f"the dict of a signature has no {name!r}; there are: {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[name]) or (_FIELDS[name] is Sequence and isinstance(value, (str, bytes))):
            raise SettingsError(f"{name} of a signature cannot be {value!r}")
    kind = given.get("subtask_type")
    if kind not in SignatureData._kinds:
        raise SettingsError(f"subtask_type of a signature is None, 'chain', 'chord' or 'group', not {kind!r}")
    if kind is None:
        made = SignatureData._kinds[None](_checked_name(given), given.get("args", ()), _checked_kwargs(given))
    else:
        made = SignatureData._kinds[kind]([_made(task, depth + 1) for task in given.get("tasks", ())])
    options = dict(given.get("options", {}))
    for option, slot in _CALLBACKS:
        callbacks = options.pop(option, ())
        if isinstance(callbacks, (str, bytes, Mapping)) or not isinstance(callbacks, Sequence):
            raise SettingsError(f"{option} in the dict of a signature is a list of dicts, not {callbacks!r}")
        setattr(made, slot, tuple(_made(callback, depth + 1) for callback in callbacks))
    made.options = _checked_options(options)
    made.immutable = given.get("immutable", False)
    return made


def _checked_name(given: Mapping[str, Any]) -> str:
    try:
        return check_name(given.get("task", ""))
    except InvalidTask as error:
        raise SettingsError(str(error)) from None


def _checked_kwargs(given: Mapping[str, Any]) -> Mapping[str, Any]:
    kwargs: Mapping[str, Any] = given.get("kwargs", {})
    if not all(isinstance(name, str) for name in kwargs):
        raise SettingsError(f"kwargs of a signature are named by texts, not as in {kwargs!r}")
    return kwargs


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        check_call_option(name)
        if name == "queue" and value is not None:
            check_queue(value)
    return options


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise SettingsError(f"more than {DEEPEST} canvases and callbacks stand inside each other")


def _unpacked(given: Any) -> Any:
    try:
        made = _made(given, 0)
        made.app = home()
        return made
    except SettingsError as error:
        raise DecodeError(str(error)) from None


codec.add_extension(13, SignatureData, lambda signature: signature._fields(0), _unpacked)
