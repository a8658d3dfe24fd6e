"""msgpack with rsq's extension types: how arguments, results and errors become bytes and come back.

Extension types, part of the protocol. "Packed" is msgpack inside msgpack, by the same rules.

    code  type         payload
     -1   (datetime)   msgpack's own timestamp: read as a datetime in UTC, never written
      1   tuple        packed array
      2   set          packed array
      3   frozenset    packed array
      4   int          beyond 64 bit: two's complement, big endian
      5   Decimal      text: -12.50, 1E+9, NaN, -Infinity
      6   complex      two float64, big endian: real part, imaginary part
      7   datetime     text: 2024-10-27T02:30:00.000001+01:00[Europe/Berlin][_fold=1] (RFC 9557). Without an offset it
                       is naive; a zone in brackets outweighs the offset; _fold=1 is the second pass of a repeated hour
      8   date         text: 2024-10-27
      9   time         text: 02:30:00.000001+01:00, with the same brackets
     10   timedelta    packed array of ints: days, seconds, microseconds; their sum counts
     11   UUID         16 bytes
     12   registered   packed array: name, state. The state of an Enum is the member's name, of a Flag its value,
                       of a dataclass a map from field to value
     13   signature    packed map with task, args, kwargs, options, immutable, subtask_type and tasks
     14   handle       packed array: number of a row, rows; see `rsq.handles`

At most 16 extensions stand inside each other. Strings are UTF-8; a lone surrogate, as in names of files, travels as the
three bytes that UTF-8 would give it. Subclasses of the types that travel arrive as that type, members of an Enum of
texts or numbers and namedtuples among them. Nothing is ever pickled, and no class is imported to decode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import reprlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType, Packer, unpackb  # type: ignore[import-untyped, unused-ignore]

from rsq.errors import DecodeError, EncodeError, MessageTooLarge, SettingsError
from rsq.naming import module_of
from rsq.texts import cut_text, text_of

#: Extensions inside each other. Unpacking one takes some 50 kB of C stack, and a thread may have only 1 MB.
MAX_EXTENSION_DEPTH = 16

_EMPTY_CALL = b"\x92\x90\x80"  # [[], {}]
_NAMES_IN_ERRORS = reprlib.Repr()  # short, and safe with any class
_NAMES_IN_ERRORS.maxstring = 200

_Class = TypeVar("_Class", bound=type)


def encode(value: object, where: str = "value", max_bytes: int | None = None) -> bytes:
    """Pack a value.

    where   what to call the value in an error, the root of the path to the culprit
    Raises  EncodeError: ``where['rows'][3]: cannot serialise <class ...>``; MessageTooLarge: above max_bytes
    """
    try:
        data = _pack_value(value)
    except Exception as error:
        raise EncodeError(_explain(value, where, error)) from None
    return _bounded(data, where, max_bytes)


def encode_call(args: Sequence[object], kwargs: Mapping[str, object], max_bytes: int | None) -> bytes:
    """Pack the arguments of one call as ``[args, kwargs]``. Raises as `encode` does, with paths from args or kwargs."""
    if not args and not kwargs:
        return _EMPTY_CALL
    call = [list(args), dict(kwargs)]
    try:
        data = _pack_value(call)
    except Exception as error:
        encode(call[0], "args")
        encode(call[1], "kwargs")
        raise EncodeError(_explain(call, "call", error)) from None  # too deep by the one level of the call itself
    return _bounded(data, "arguments", max_bytes)


def decode(data: bytes) -> Any:
    """Unpack what `encode` packed. Raises DecodeError, and nothing else, whatever the bytes are."""
    try:
        return _unpack(data, 0)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"undecodable data: {type(error).__name__}: {cut_text(text_of(error), 300)}") from error


def decode_call(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Unpack what `encode_call` packed; or the call of an event, see `rsq.calls.event`, without what it is about.

    Raises DecodeError also for a value that is no call.
    """
    if data == _EMPTY_CALL:
        return [], {}
    call = decode(data)
    if type(call) is list and (len(call) == 2 or (len(call) == 3 and _is_about(call.pop()))):
        args, kwargs = call
        if type(args) is list and type(kwargs) is dict and (not kwargs or {*map(type, kwargs)} == {str}):
            return args, kwargs
    raise DecodeError("not a call: expected an array of arguments and a map of keyword arguments")


def _is_about(part: Any) -> bool:
    return type(part) is list and [type(text) for text in part] == [str, str]


def register_type(cls: _Class, name: str | None = None) -> _Class:
    """Let a dataclass or an Enum travel: a decorator (above ``@dataclass``), or a call in every process that meets it.

    name    what it is called in messages; by default its module and qualified name. A class may be registered again
            under an older name, to understand old messages; the last name is the one it is sent with
    Raises  SettingsError: another class has this name, or the class cannot be rebuilt from its fields
    """
    if not (isinstance(cls, type) and (issubclass(cls, Enum) or dataclasses.is_dataclass(cls))):
        raise SettingsError(f"register_type takes a dataclass or an Enum, not {cls!r}; put it above @dataclass")
    if not issubclass(cls, Enum):
        try:
            inspect.signature(cls).bind(**{field.name: None for field in dataclasses.fields(cls) if field.init})
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{cls!r} cannot be rebuilt from its fields alone: {error}") from None
    name = name or _qualified_name(cls)
    known = _TYPES.get(name)
    # A module that is loaded again, or a notebook cell that runs again, brings the same class anew.
    if known is not None and _qualified_name(known) != _qualified_name(cls):
        raise SettingsError(f"the type name {name!r} belongs to {known!r}; give {cls!r} another name")
    _TYPES[name] = cls
    _NAMES[cls] = name
    return cls


def add_extension(code: int, cls: type, plain: Callable[[Any], object], restored: Callable[[Any], object]) -> None:
    """Let a type of rsq's own travel, and its subclasses: as a plain value, from which it is restored."""
    extension = _Extension(
        code,
        cls,
        lambda value, depth: _pack(plain(value), depth),
        lambda payload, depth: restored(_unpack(payload, depth)),
    )
    _EXTENSION_OF[cls] = _EXTENSION_BY_CODE[code] = extension


# -- values to bytes -------------------------------------------------------------------------------------------------


def _pack_value(value: object) -> bytes:
    # A packer a call: one kept a thread saves 0.1 us, but keeps the buffer of the largest value for ever, and fails
    # when a signal handler or a destructor packs something in the middle of a call.
    try:
        data: bytes = Packer(default=_EXTENDERS[0], strict_types=True).pack(value)
    except UnicodeEncodeError:  # with surrogates: rare, and the handler for them would cost every string half again
        data = _pack(value, 0)
    return data


def _pack(value: object, depth: int) -> bytes:
    """Pack a value that stands inside `depth` extensions."""
    packer = Packer(default=_EXTENDERS[depth], strict_types=True, unicode_errors="surrogatepass")
    data: bytes = packer.pack(value)
    return data


def _extend(depth: int, value: Any) -> Any:
    """What a value that msgpack does not know travels as: an extension, or its nearest base type."""
    cls = type(value)
    extension = _REGISTERED if cls in _NAMES else _EXTENSION_OF.get(cls)
    if extension is None:
        return _extend_subclass(depth, value)
    return _extended(extension, depth, value)


def _extend_subclass(depth: int, value: Any) -> Any:
    cls = type(value)
    if dataclasses.is_dataclass(cls):
        raise EncodeError(f"cannot serialise {cls!r}; register it with rsq.register_type")
    for base in cls.__mro__:  # an Enum of texts or numbers, too, and a namedtuple
        if base in _PLAIN:
            plain = _PLAIN[base](value)
            return plain if base is not int or -(2**63) <= plain < 2**64 else _extend(depth, plain)
        if base in _EXTENSION_OF:
            return _extended(_EXTENSION_OF[base], depth, value)
    if issubclass(cls, Enum):
        raise EncodeError(f"cannot serialise {cls!r}; register it with rsq.register_type")
    raise EncodeError(
        f"cannot serialise {cls!r}; pass something simpler, or a dataclass registered with rsq.register_type"
    )


def _extended(extension: _Extension, depth: int, value: Any) -> ExtType:
    if depth >= MAX_EXTENSION_DEPTH:
        raise RecursionError(f"more than {MAX_EXTENSION_DEPTH} tuples, sets and dataclasses inside each other")
    return ExtType(extension.code, extension.pack(value, depth + 1))


def _bounded(data: bytes, where: str, max_bytes: int | None) -> bytes:
    if max_bytes is not None and len(data) > max_bytes:
        raise MessageTooLarge(
            f"{where}: {len(data)} bytes packed, the limit is {max_bytes}; "
            "pass a reference (a path, a key) instead of the data"
        )
    return data


def _explain(value: object, path: str, error: Exception) -> str:
    """Which part of a value cannot be packed, and why. Slow: packs the parts again, from the outside in.

    Goes 100 levels down at most: a longer path would tell nobody more.
    """
    where, trail = path, [value]
    while len(trail) < 100 and (found := _first_failure(value, path)):
        path, value, error = found
        if any(value is outer for outer in trail):
            return f"{path}: contains itself"
        trail.append(value)
    if isinstance(error, RecursionError) or "recursion limit" in text_of(error):
        return f"{where}: nested too deeply: {text_of(error)}"
    if isinstance(error, EncodeError):
        return f"{path}: {error}"
    return f"{path}: cannot serialise {type(value)!r}: {type(error).__name__}: {text_of(error)}"


def _first_failure(value: object, path: str) -> tuple[str, object, Exception] | None:
    with contextlib.suppress(Exception):  # of parts that cannot even be listed, the whole is the culprit
        for part_path, part in _parts(value, path):
            try:
                _pack(part, 0)
            except Exception as error:
                return part_path, part, error
    return None


def _parts(value: Any, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}.<key>", key
            yield f"{path}[{_NAMES_IN_ERRORS.repr(key)}]", item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield f"{path}.<element>", item
    elif type(value) in _NAMES and not isinstance(value, Enum):
        for field in dataclasses.fields(value):
            yield f"{path}.{field.name}", getattr(value, field.name)


# -- bytes to values -------------------------------------------------------------------------------------------------


def _unpack(data: bytes, depth: int) -> Any:
    """Unpack a value that stands inside `depth` extensions."""
    return unpackb(data, ext_hook=_RESTORERS[depth], strict_map_key=False, unicode_errors="surrogatepass", timestamp=3)


def _unpack_list(data: bytes, depth: int) -> list[Any]:
    items = _unpack(data, depth)
    if type(items) is not list:
        raise DecodeError(f"the payload of an extension is a {type(items).__name__}, not an array")
    return items


def _restore(depth: int, code: int, payload: bytes) -> Any:
    if depth >= MAX_EXTENSION_DEPTH:
        raise DecodeError(f"more than {MAX_EXTENSION_DEPTH} extensions inside each other")
    extension = _EXTENSION_BY_CODE.get(code)
    if extension is None:
        raise DecodeError(f"unknown extension type {code}")
    return extension.unpack(payload, depth + 1)


# -- the extensions --------------------------------------------------------------------------------------------------


class _Extension(NamedTuple):
    code: int
    type: type
    pack: Callable[[Any, int], bytes]
    unpack: Callable[[bytes, int], Any]


def _pack_items(value: tuple[Any, ...] | set[Any] | frozenset[Any], depth: int) -> bytes:
    return _pack(list(value), depth)


def _unpack_items(cls: type[Any], payload: bytes, depth: int) -> Any:
    return cls(_unpack_list(payload, depth))


def _pack_int(value: int, _: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _pack_complex(value: complex, _: int) -> bytes:
    return struct.pack(">dd", value.real, value.imag)


def _pack_time(cls: type[Any], value: Any, _: int) -> bytes:
    if value != value:  # pandas.NaT claims to be a datetime
        raise EncodeError(f"cannot serialise {value!r}; pass None")
    zone = getattr(value, "tzinfo", None)
    tags = f"[{zone.key}]" if isinstance(zone, ZoneInfo) and zone.key else ""
    if getattr(value, "fold", 0):
        tags += "[_fold=1]"
    return f"{cls.isoformat(value)}{tags}".encode()


def _unpack_time(cls: type[Any], payload: bytes, _: int) -> Any:
    stamp, *tags = payload.decode().replace("]", "").split("[")
    value = cls.fromisoformat(stamp.replace("Z", "+00:00"))  # Python 3.10 does not read Z
    for tag in tags:
        value = value.replace(fold=1) if tag == "_fold=1" else value.replace(tzinfo=ZoneInfo(tag))
    return value


def _pack_timedelta(value: timedelta, depth: int) -> bytes:
    return _pack([value.days, value.seconds, value.microseconds], depth)


def _unpack_timedelta(payload: bytes, depth: int) -> timedelta:
    days, seconds, microseconds = _unpack_list(payload, depth)
    return timedelta(days, seconds, microseconds)


def _pack_registered(value: Any, depth: int) -> bytes:
    state: object
    if isinstance(value, Enum):
        state = value.value if isinstance(value, Flag) else value.name
    else:
        state = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return _pack([_NAMES[type(value)], state], depth)


def _unpack_registered(payload: bytes, depth: int) -> Any:
    name, state = _unpack_list(payload, depth)
    cls = _TYPES.get(name)
    if cls is None:
        raise DecodeError(
            f"the type {_NAMES_IN_ERRORS.repr(name)} is not registered here; import its module, "
            "or register it with rsq.register_type"
        )
    if issubclass(cls, Enum):
        return cls(state) if issubclass(cls, Flag) else cls[state]
    derived = {field.name for field in dataclasses.fields(cls) if not field.init}
    value = cls(**{name: item for name, item in state.items() if name not in derived})
    for field_name in derived & state.keys():
        object.__setattr__(value, field_name, state[field_name])  # reaches into frozen ones, too
    return value


_EXTENSIONS = (
    _Extension(1, tuple, _pack_items, partial(_unpack_items, tuple)),
    _Extension(2, set, _pack_items, partial(_unpack_items, set)),
    _Extension(3, frozenset, _pack_items, partial(_unpack_items, frozenset)),
    _Extension(4, int, _pack_int, lambda payload, _: int.from_bytes(payload, "big", signed=True)),
    _Extension(5, Decimal, lambda value, _: str(value).encode(), lambda payload, _: Decimal(payload.decode())),
    _Extension(6, complex, _pack_complex, lambda payload, _: complex(*struct.unpack(">dd", payload))),
    _Extension(7, datetime, partial(_pack_time, datetime), partial(_unpack_time, datetime)),
    _Extension(8, date, partial(_pack_time, date), partial(_unpack_time, date)),
    _Extension(9, time, partial(_pack_time, time), partial(_unpack_time, time)),
    _Extension(10, timedelta, _pack_timedelta, _unpack_timedelta),
    _Extension(11, UUID, lambda value, _: value.bytes, lambda payload, _: UUID(bytes=payload)),
)
_REGISTERED = _Extension(12, object, _pack_registered, _unpack_registered)
_EXTENSION_OF = {extension.type: extension for extension in _EXTENSIONS}
_EXTENSION_BY_CODE = {extension.code: extension for extension in (*_EXTENSIONS, _REGISTERED)}

#: How a subclass becomes its base, past whatever it overrides.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda v: bytes(memoryview(v)),
    bytearray: lambda v: bytes(memoryview(v)),
    list: list,
    dict: dict,
}
_TYPES: dict[str, Any] = {}
_NAMES: dict[type, str] = {}

#: The hooks of msgpack, by how many extensions they stand in.
_EXTENDERS = [partial(_extend, depth) for depth in range(MAX_EXTENSION_DEPTH + 1)]
_RESTORERS = [partial(_restore, depth) for depth in range(MAX_EXTENSION_DEPTH + 1)]


# -- names -----------------------------------------------------------------------------------------------------------


def _qualified_name(cls: type) -> str:
    """Module and name; a class of the script that runs is named as it would be if the script were imported."""
    return f"{module_of(cls)}.{cls.__qualname__}"
