"""Values, calls and errors as bytes: what goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import dataclasses
import math
import socket
import struct
import subprocess
import sys
import threading
import traceback
import types
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, auto
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsq.codec import (
    MAX_EXTENSION_DEPTH,
    decode,
    decode_call,
    encode,
    encode_call,
    register_type,
)
from rsq.errors import (
    DecodeError,
    EncodeError,
    MaxRetriesExceededError,
    MessageTooLarge,
    Reject,
    Rejected,
    RemoteError,
    Retry,
    SettingsError,
)
from rsq.remote import MAX_ERROR_BYTES, RemoteTraceback, decode_error, encode_error


@register_type
class Color(Enum):
    RED = auto()
    BLUE = object()  # a value that could not travel: members travel by name


@register_type
class Level(IntEnum):
    LOW = 1
    HIGH = 2


@register_type
class Rights(Flag):
    READ = 1
    WRITE = 2


@register_type
@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0


@register_type
@dataclasses.dataclass
class Order:
    number: int
    lines: list[Any] = dataclasses.field(default_factory=list)
    total: Any = dataclasses.field(init=False, default=None)


class Unregistered(Enum):
    ONE = 1


@dataclasses.dataclass
class Plain:
    x: int


class Offset(tzinfo):
    def tzname(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None


Pair = namedtuple("Pair", "left right")
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    timezone.utc,
    BERLIN,
    ZoneInfo("Australia/Lord_Howe"),
    timezone(-timedelta(hours=3, seconds=7, microseconds=5)),
]


def shape(value: Any) -> Any:
    """The value as something that compares equal only for equal types and equal bits, NaN and fold included."""
    kind = type(value)
    if isinstance(value, float):
        return kind, struct.pack(">d", value)
    if isinstance(value, complex):
        return kind, struct.pack(">dd", value.real, value.imag)
    if isinstance(value, Decimal):
        return kind, value.as_tuple()
    if isinstance(value, (datetime, time)):
        zone = value.tzinfo
        return kind, value.replace(tzinfo=None), value.fold, zone if isinstance(zone, ZoneInfo) else value.utcoffset()
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(shape, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(Counter(map(shape, value)).items())
    if isinstance(value, dict):
        return kind, tuple((shape(key), shape(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return kind, tuple(shape(getattr(value, field.name)) for field in dataclasses.fields(value))
    return kind, value


any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
zones = st.none() | st.sampled_from(ZONES)
hashables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | any_text
    | st.binary()
    | st.datetimes(timezones=zones, allow_imaginary=True)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.complex_numbers()
    | st.sampled_from([*Color, *Level, *Rights, Rights.READ | Rights.WRITE]),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4) | st.builds(Point, inner, inner),
    max_leaves=6,
)
values = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.builds(Order, st.integers(), st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)


class TestValues:
    @given(values)
    def test_come_out_as_they_went_in(self, value: Any) -> None:
        assert shape(decode(encode(value))) == shape(value)

    @given(st.lists(values, max_size=3), st.dictionaries(any_text, values, max_size=3))
    def test_so_do_calls(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        assert shape(decode_call(encode_call(args, kwargs, None))) == shape((args, kwargs))

    @pytest.mark.parametrize(
        "value",
        [
            2**63,
            2**64 - 1,
            2**64,
            -(2**63),
            -(2**63) - 1,
            -(2**64),
            0.0,
            -0.0,
            math.nan,
            math.inf,
            complex(-0.0, math.nan),
            Decimal("sNaN123"),
            Decimal("-0E+7"),
            "\udc80 of a file name",
            ("\udc80", {"\udcff": 1}),
            timedelta.max,
            timedelta.min,
            datetime.min,
            datetime.max.replace(tzinfo=timezone.utc),
            datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
            datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
            datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN),  # skipped by the clock
            datetime(2024, 10, 27, 2, 30, fold=1),
            datetime(1890, 1, 1, tzinfo=BERLIN),  # local mean time: an offset with seconds
            time(2, 30, tzinfo=BERLIN, fold=1),
            {(1, (2, frozenset({3}))): {Point(1): [set()]}},
            [(), [], {}, set(), frozenset(), "", b""],
        ],
        ids=repr,
    )
    def test_at_the_edges(self, value: Any) -> None:
        assert shape(decode(encode(value))) == shape(value)

    @pytest.mark.parametrize(
        ("value", "arrives_as"),
        [
            (defaultdict(list, a=[1]), {"a": [1]}),
            (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
            (Counter("aab"), {"a": 2, "b": 1}),
            (bytearray(b"ab"), b"ab"),
            (memoryview(b"ab"), b"ab"),
            (type("Ints", (int,), {})(7), 7),
            (type("Ints", (int,), {})(2**70), 2**70),
            (type("Floats", (float,), {"__float__": lambda self: 9.0})(1.5), 1.5),
            (type("Texts", (str,), {"__str__": lambda self: "no"})("yes"), "yes"),
            (type("Raw", (bytes,), {"__bytes__": lambda self: b"no"})(b"yes"), b"yes"),
            (type("Lists", (list,), {})([1]), [1]),
            (type("Tuples", (tuple,), {})([1]), (1,)),
            (type("Stamps", (datetime,), {"isoformat": lambda self: "no"})(2024, 1, 2), datetime(2024, 1, 2)),
            (msgpack.Timestamp(0, 5000), datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=timezone.utc)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_of_a_subclass_arrive_as_the_base(self, value: Any, arrives_as: Any) -> None:
        assert shape(decode(encode(value))) == shape(arrives_as)
        assert shape(decode(encode({1: (value,)}))) == shape({1: (arrives_as,)})

    def test_another_kind_of_zone_arrives_as_its_offset(self) -> None:
        class Nepal(Offset):
            def utcoffset(self, _: datetime | None) -> timedelta:
                return timedelta(hours=5, minutes=45)

        arrived = decode(encode(datetime(2024, 5, 1, tzinfo=Nepal())))
        assert arrived == datetime(2024, 5, 1, tzinfo=Nepal())
        assert arrived.tzinfo == timezone(timedelta(hours=5, minutes=45))

    def test_threads_encode_at_the_same_time(self) -> None:
        barrier = threading.Barrier(8)

        def work(number: int) -> bool:
            barrier.wait()
            value = {"n": number, "t": (number, "x" * number), "s": {number}, "p": Point(number)}
            return all(decode(encode(value)) == value for _ in range(300))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


class TestProtocol:
    """The bytes that the table at the head of the module promises to clients in other languages."""

    @pytest.mark.parametrize(
        ("value", "code", "payload"),
        [
            ((1, "a"), 1, b"\x92\x01\xa1a"),
            ({1}, 2, b"\x91\x01"),
            (frozenset({1}), 3, b"\x91\x01"),
            (2**64, 4, b"\x01" + bytes(8)),
            (-(2**64), 4, b"\xff" + bytes(8)),
            (Decimal("-12.50"), 5, b"-12.50"),
            (complex(1, -2), 6, struct.pack(">dd", 1, -2)),
            (datetime(2024, 10, 27, 2, 30), 7, b"2024-10-27T02:30:00"),
            (
                datetime(2024, 10, 27, 2, 30, 0, 1, BERLIN, fold=1),
                7,
                b"2024-10-27T02:30:00.000001+01:00[Europe/Berlin][_fold=1]",
            ),
            (date(2024, 10, 27), 8, b"2024-10-27"),
            (time(2, 30, tzinfo=timezone.utc), 9, b"02:30:00+00:00"),
            (timedelta(days=-1, seconds=2, microseconds=3), 10, b"\x93\xff\x02\x03"),
            (UUID(int=1), 11, bytes(15) + b"\x01"),
            (Color.RED, 12, msgpack.packb([f"{__name__}.Color", "RED"])),
            (Rights.READ | Rights.WRITE, 12, msgpack.packb([f"{__name__}.Rights", 3])),
            (Point(1), 12, msgpack.packb([f"{__name__}.Point", {"x": 1, "y": 0}])),
        ],
        ids=lambda part: repr(part)[:40],
    )
    def test_payloads(self, value: Any, code: int, payload: bytes) -> None:
        assert msgpack.unpackb(encode(value), strict_map_key=False) == msgpack.ExtType(code, payload)

    def test_utc_may_be_written_as_z(self) -> None:
        data = msgpack.packb(msgpack.ExtType(7, b"2024-01-02T03:04:05Z"))
        assert decode(data) == datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

    def test_a_call(self) -> None:
        assert encode_call((), {}, None) == msgpack.packb([[], {}])
        assert encode_call((1, 2), {"a": "b"}, None) == msgpack.packb([[1, 2], {"a": "b"}])
        assert decode_call(msgpack.packb([[], {}])) == ([], {})


class TestPlainValuesOfOtherClasses:
    """Members of an Enum that are texts or numbers, and namedtuples, as Celery's JSON would carry them."""

    class Status(str, Enum):  # as Django's TextChoices
        PAID = "paid"

        def __str__(self) -> str:
            return "not this"

    class Size(IntEnum):
        LARGE = 3
        HUGE = 2**70

    class Right(IntFlag):
        READ = 1
        WRITE = 2

    class Half(float, Enum):
        ONE = 0.5

    class OneDay(date, Enum):
        MAY = 2026, 5, 1

    @pytest.mark.parametrize(
        ("value", "arrives"),
        [
            (Status.PAID, "paid"),
            ({Status.PAID: [Status.PAID]}, {"paid": ["paid"]}),
            (Size.LARGE, 3),
            (Size.HUGE, 2**70),
            (Right.READ | Right.WRITE, 3),
            (Half.ONE, 0.5),
            (OneDay.MAY, date(2026, 5, 1)),
            (Pair(1, Pair(2, 3)), (1, (2, 3))),
        ],
        ids=repr,
    )
    def test_arrive_as_what_they_are_made_of(self, value: Any, arrives: Any) -> None:
        back = decode(encode(value))
        assert back == arrives
        assert type(back) is type(arrives)
        assert decode_call(encode_call([value], {"x": value}, None)) == ([arrives], {"x": arrives})

    def test_a_registered_enum_of_texts_stays_what_it_is(self) -> None:
        @register_type
        class Kept(str, Enum):
            ONE = "one"

        assert decode(encode(Kept.ONE)) is Kept.ONE


class TestRefusals:
    @pytest.mark.parametrize(
        ("value", "path"),
        [
            (object(), "result"),
            ({"rows": [1, 2, 3, object()]}, "result['rows'][3]"),
            ([(1, {"a": object()})], "result[0][1]['a']"),
            ({1: {"b": object()}}, "result[1]['b']"),
            ({"a_parameter_with_a_rather_long_name": object()}, "result['a_parameter_with_a_rather_long_name']"),
            ({object(): 1}, "result.<key>"),
            ({(1, object()): 1}, "result.<key>[1]"),
            ({"s": {1, object()}}, "result['s'].<element>"),
            (Order(1, [Point(object())]), "result.lines[0].x"),
            (defaultdict(list, a=[object()]), "result['a'][0]"),
        ],
        ids=lambda part: part if isinstance(part, str) else "",
    )
    def test_name_the_path(self, value: Any, path: str) -> None:
        with pytest.raises(EncodeError) as raised:
            encode(value, "result")
        assert str(raised.value).startswith(f"{path}: cannot serialise <class 'object'>; ")
        assert "rsq.register_type" in str(raised.value)

    def test_in_a_call_start_at_the_argument(self) -> None:
        with socket.socket() as sock:
            with pytest.raises(EncodeError, match=r"^args\[1\]\['when'\]: cannot serialise <class 'socket\.socket'>"):
                encode_call((1, {"when": sock}), {}, None)
            with pytest.raises(EncodeError, match=r"^kwargs\['when'\]: cannot serialise <class 'socket\.socket'>"):
                encode_call((1,), {"when": sock}, None)

    @pytest.mark.parametrize("value", [Unregistered.ONE, Plain(1)])
    def test_say_to_register(self, value: Any) -> None:
        with pytest.raises(EncodeError, match=r"^value\[0\]: cannot serialise .*; register it with rsq.register_type$"):
            encode([value])

    def test_a_subclass_of_a_registered_class_is_not_registered(self) -> None:
        class Point3(Point):
            pass

        with pytest.raises(EncodeError, match="register it"):
            encode(Point3(1))

    def test_what_only_claims_to_be_a_time(self) -> None:
        class NaT(datetime):
            def __ne__(self, _: object) -> bool:
                return True

        with pytest.raises(EncodeError, match=r"^value\['at'\]: cannot serialise .*; pass None"):
            encode({"at": NaT(1, 1, 1)})

    def test_values_that_fail_while_they_are_packed(self) -> None:
        class Broken(Offset):
            def utcoffset(self, _: datetime | None) -> timedelta:
                raise ZeroDivisionError("no offset today")

        class Unlistable(list):  # type: ignore[type-arg]
            def __iter__(self) -> Any:
                raise ZeroDivisionError("no items today")

        with pytest.raises(EncodeError, match=r"^value\[1\]: cannot serialise .*datetime.*no offset today"):
            encode([1, datetime(2024, 1, 1, tzinfo=Broken())])
        with pytest.raises(EncodeError, match=r"^value\[0\]: cannot serialise .*Unlistable.*no items today"):
            encode([Unlistable()])
        with pytest.raises(EncodeError, match=r"^value\[0\]: cannot serialise <class 'memoryview'>"):
            encode([memoryview(b"abcdef")[::2]])

    def test_too_large(self) -> None:
        with pytest.raises(MessageTooLarge, match=r"^result: 105 bytes packed, the limit is 100; pass a reference"):
            encode("x" * 103, "result", max_bytes=100)
        with pytest.raises(MessageTooLarge, match=r"^arguments: 107 bytes packed"):
            encode_call(["x" * 102], {}, 100)
        assert encode("x" * 98, max_bytes=100)


class TestDepth:
    @pytest.mark.parametrize("kind", [list, tuple, frozenset])
    def test_a_value_that_goes_too_deep(self, kind: Callable[[Any], Any]) -> None:
        value = kind([])
        for _ in range(5000):
            value = kind([value])
        with pytest.raises(EncodeError, match=r"^value: nested too deeply"):
            encode(value)
        with pytest.raises(EncodeError, match=r"^args: nested too deeply"):
            encode_call([value], {}, None)

    @pytest.mark.parametrize("around", [1, 400, 505, 506, 507, 508, 509, 510, 511, 512, 520])
    def test_at_the_limit_of_lists(self, around: int) -> None:
        value: Any = []
        for _ in range(around):
            value = [value]
        try:
            data = encode_call([value], {}, None)
        except EncodeError as error:
            if "nested too deeply" not in str(error) or around <= 500:
                raise
        else:
            assert decode_call(data) == ([value], {})

    def test_extensions_go_to_their_limit(self) -> None:
        value: Any = ()
        for _ in range(MAX_EXTENSION_DEPTH - 1):
            value = (value,)
        assert decode(encode(value)) == value
        with pytest.raises(EncodeError, match="nested too deeply: more than 16 tuples"):
            encode((value,))

    def test_the_deepest_value_that_packs_stays_within_the_stack(self) -> None:
        value: Any = 1
        for _ in range(MAX_EXTENSION_DEPTH):
            for _ in range(500):
                value = [value]
            value = (value,)
        data: bytes = encode(value)
        assert encode(decode(data)) == data

    def test_cycles(self) -> None:
        loop: list[Any] = [1]
        loop.append({"again": loop})
        with pytest.raises(EncodeError, match=r"^args\[0\]\[1\]\['again'\]: contains itself"):
            encode_call([loop], {}, None)
        tangle: dict[str, Any] = {}
        tangle["pair"] = ([tangle], 1)
        with pytest.raises(EncodeError, match=r"^value\['pair'\]\[0\]\[0\]: contains itself"):
            encode(tangle)


class TestRegistration:
    def test_a_name_may_be_given_and_changed(self) -> None:
        @dataclasses.dataclass
        class Moved:
            x: int

        register_type(Moved, "old.Moved")
        old = encode(Moved(1))
        assert b"old.Moved" in old
        register_type(Moved, "new.Moved")
        assert b"new.Moved" in encode(Moved(1))
        assert decode(old) == decode(encode(Moved(1))) == Moved(1)

    def test_a_name_belongs_to_one_class(self) -> None:
        with pytest.raises(SettingsError, match="belongs to"):
            register_type(Unregistered, f"{__name__}.Color")

    def test_a_class_that_is_defined_again_replaces_itself(self) -> None:
        def define() -> Any:
            @register_type
            @dataclasses.dataclass
            class Cell:
                x: int

            return Cell

        first, second = define(), define()
        assert type(decode(encode(first(1)))) is second

    @pytest.mark.parametrize("thing", [int, object, Pair, "Color", Point(1)])
    def test_only_dataclasses_and_enums(self, thing: Any) -> None:
        with pytest.raises(SettingsError, match="a dataclass or an Enum"):
            register_type(thing)

    def test_a_class_that_its_fields_cannot_rebuild(self) -> None:
        @dataclasses.dataclass
        class Picky:
            x: int
            seed: dataclasses.InitVar[int]

        with pytest.raises(SettingsError, match="'seed'"):
            register_type(Picky)

    def test_a_class_of_the_main_script_has_the_name_of_its_module(self, tmp_path: Path) -> None:
        script = tmp_path / "shop.py"
        script.write_text(
            "import enum\n"
            "from rsq.codec import decode, encode, register_type\n"
            "@register_type\n"
            "class Size(enum.Enum):\n"
            "    BIG = 1\n"
            "assert b'shop.Size' in encode(Size.BIG) and decode(encode(Size.BIG)) is Size.BIG\n"
        )
        root = Path(__file__).parent.parent
        for command in ([str(script)], ["-m", "shop"]):
            subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env={"PYTHONPATH": f"{root}:{tmp_path}"}, check=True
            )

    def test_an_unregistered_name_is_told(self) -> None:
        data = msgpack.packb(msgpack.ExtType(12, msgpack.packb(["shop.models.Order", {}])))
        with pytest.raises(DecodeError, match=r"'shop\.models\.Order' is not registered here"):
            decode(data)

    def test_old_and_new_fields(self) -> None:
        def point(state: object) -> Any:
            return decode(msgpack.packb(msgpack.ExtType(12, msgpack.packb([f"{__name__}.Point", state]))))

        assert point({"x": 1}) == Point(1, 0)
        with pytest.raises(DecodeError, match="unexpected keyword argument 'z'"):
            point({"x": 1, "z": 2})
        with pytest.raises(DecodeError, match="'x'"):
            point({})

    def test_a_field_outside_the_constructor_is_kept(self) -> None:
        order = Order(1)
        order.total = Decimal("9.99")
        assert decode(encode(order)) == order


def hostile(code: int, payload: bytes) -> bytes:
    return struct.pack(">BIb", 0xC9, len(payload), code) + payload


def nested_extensions(levels: int) -> bytes:
    data = b"\x90"
    for _ in range(levels):
        data = hostile(1, data)
    return data


class TestHostileBytes:
    @given(st.binary())
    def test_any_bytes(self, data: bytes) -> None:
        for read in (decode, decode_call):
            try:
                read(data)
            except DecodeError:
                pass

    @given(st.integers(-128, 127), st.binary() | values.map(encode))
    def test_any_extension(self, code: int, payload: bytes) -> None:
        try:
            decode(hostile(code, payload))
        except DecodeError:
            pass

    @given(values, st.data())
    def test_a_value_with_one_byte_changed(self, value: Any, data: st.DataObject) -> None:
        raw = bytearray(encode(value))
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            decode(bytes(raw))
        except DecodeError:
            pass

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xc1",
            b"\x01\x01",
            b"\x92\x01",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\x91" * 100_000,
            b"\x81\x90\x01",
            b"\xa1\xff",
            nested_extensions(MAX_EXTENSION_DEPTH + 1),
            nested_extensions(3000),
            hostile(99, b""),
            hostile(-1, b"123"),
            hostile(1, b"\x01"),
            hostile(1, b"\x81\x01\x02"),
            hostile(2, b"\xa2ab"),
            hostile(2, b"\x91\x90"),
            hostile(5, b"twelve"),
            hostile(5, b"1E+99999999999999999999999"),
            hostile(6, b"1"),
            hostile(7, b"yesterday"),
            hostile(7, b"2024-01-01T00:00:00[Europe/Nowhere]"),
            hostile(7, b"2024-01-01T00:00:00[../../etc/passwd]"),
            hostile(7, b"2024-01-01T00:00:00[/etc/passwd]"),
            hostile(7, b"2024-01-01T00:00:00[\x00]"),
            hostile(7, b"\xff"),
            hostile(8, b"2024-13-01"),
            hostile(9, b"25:00"),
            hostile(10, msgpack.packb([math.nan, 0, 0])),
            hostile(10, msgpack.packb([2**60, 0, 0])),
            hostile(11, b"short"),
            hostile(12, msgpack.packb([[], {}])),
            hostile(12, msgpack.packb([f"{__name__}.Color", "GREEN"])),
            hostile(12, msgpack.packb([f"{__name__}.Color", {"value": 1, "names": "A B"}])),
            hostile(12, msgpack.packb([f"{__name__}.Rights", {}])),
            hostile(12, msgpack.packb([f"{__name__}.Point", "x"])),
            hostile(12, msgpack.packb([f"{__name__}.Point", {b"x": 1}])),
            hostile(12, b"\x91\x01"),
            None,
            "text",
        ],
        ids=lambda data: repr(data)[:50],
    )
    def test_by_hand(self, data: Any) -> None:
        with pytest.raises(DecodeError) as raised:
            decode(data)
        assert len(str(raised.value)) < 1000

    @pytest.mark.parametrize(
        "value",
        [
            None,
            1,
            [],
            [[]],
            [[], {}, 1],
            [[], {}, ["s"]],
            [{}, []],
            [[], []],
            [(), {}],
            ["", {}],
            [[], {1: 2}],
            [[], {b"a": 2}],
        ],
    )
    def test_values_that_are_no_call(self, value: Any) -> None:
        with pytest.raises(DecodeError, match="not a call"):
            decode_call(encode(value))


class OutOfStock(Exception):
    pass


class Outer:
    class Inner(ValueError):
        pass


class Demanding(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)


class Wordy(Exception):
    def __init__(self, item: str) -> None:
        super().__init__(f"no {item} left")


class NotAnException(Exception):
    def __new__(cls, *args: object) -> Any:
        return super().__new__(cls) if not args else "no exception"


class Exit(BaseException):
    pass


class Evil(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no arguments for you")


def caught(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as error:
        return error


def travel(exc: BaseException) -> Exception:
    return decode_error(decode(encode(encode_error(caught(exc)))))


class TestErrors:
    @pytest.mark.parametrize(
        "exc",
        [
            OutOfStock("apples", 3, {"left": Decimal(0)}),
            Outer.Inner("deep"),
            Wordy("apples"),
            KeyError("k"),
            ValueError(),
            FileNotFoundError(2, "No such file", "missing.txt"),
            OSError(18, "Cross-device link", "from.txt", None, "to.txt"),
            OSError("only a text"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            socket.gaierror(-2, "unknown"),
        ],
        ids=repr,
    )
    def test_come_back_as_their_own_class(self, exc: Exception) -> None:
        back = travel(exc)
        assert type(back) is type(exc)
        assert (back.args, str(back)) == (exc.args, str(exc))

    def test_bring_the_remote_traceback(self) -> None:
        try:
            try:
                raise ValueError("first")
            except ValueError as first:
                raise OutOfStock("then") from first
        except OutOfStock as error:
            back = decode_error(encode_error(error))
        assert isinstance(back.__cause__, RemoteTraceback)
        printed = "".join(traceback.format_exception(type(back), back, back.__traceback__))
        assert "ValueError: first" in printed
        assert 'raise OutOfStock("then") from first' in printed
        assert printed.endswith("OutOfStock: then\n")

    def test_the_record_is_plain(self) -> None:
        record = encode_error(caught(OutOfStock("apples", 3)))
        assert record.pop("traceback").startswith("Traceback (most recent call last):\n")
        assert record == {"type": f"{__name__}.OutOfStock", "message": "('apples', 3)", "args": ["apples", 3]}

    @pytest.mark.parametrize(
        ("exc", "type_name", "message"),
        [
            (Exit("bye"), f"{__name__}.Exit", "bye"),
            (SystemExit(3), "builtins.SystemExit", "3"),
            (KeyboardInterrupt(), "builtins.KeyboardInterrupt", ""),
            (Demanding(1, "text"), f"{__name__}.Demanding", "text"),
            (OutOfStock(b"x" * MAX_ERROR_BYTES), f"{__name__}.OutOfStock", None),
            (OutOfStock(object), f"{__name__}.OutOfStock", "<class 'object'>"),
            (Evil(), f"{__name__}.Evil", "<str() of this Evil failed>"),
        ],
        ids=lambda part: type(part).__name__,
    )
    def test_others_come_back_as_remote_error(self, exc: BaseException, type_name: str, message: str | None) -> None:
        back = travel(exc)
        assert type(back) is RemoteError
        assert back.type_name == type_name
        assert message is None or back.args[0] == message
        assert isinstance(back.__cause__, RemoteTraceback)

    def test_a_class_that_makes_something_else(self) -> None:
        record = {"type": f"{__name__}.NotAnException", "message": "m", "args": [1], "traceback": ""}
        assert type(decode_error(record)) is RemoteError

    def test_a_local_class(self) -> None:
        class Local(Exception):
            pass

        back = travel(Local("here"))
        assert type(back) is RemoteError
        assert str(back).endswith("Local: here")

    def test_nothing_is_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "rsq_test_elsewhere.py").write_text("class Lost(Exception): pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        lazy = types.ModuleType("rsq_test_lazy")
        lazy.__getattr__ = lambda name: getattr(__import__("rsq_test_elsewhere"), name)  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, "rsq_test_lazy", lazy)
        for module in ("rsq_test_elsewhere", "rsq_test_lazy"):
            back = decode_error({"type": f"{module}.Lost", "message": "gone", "args": ["gone"], "traceback": "tb"})
            assert type(back) is RemoteError
            assert str(back) == f"{module}.Lost: gone"
        assert "rsq_test_elsewhere" not in sys.modules

    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"type": None, "message": None, "args": [], "traceback": None},
            {"type": "", "args": []},
            {"type": "builtins", "args": []},
            {"type": "builtins.", "args": []},
            {"type": "builtins.print", "args": ["x"]},
            {"type": "os.system", "args": ["false"]},
            {"type": "builtins.ValueError", "args": 5},
            {"type": "." * 100_000, "args": []},
            {"type": "builtins.ValueError.__init__", "args": []},
            {"type": 7, "message": 7, "args": {}, "traceback": 7},
        ],
        ids=lambda record: str(record)[:60],
    )
    def test_a_strange_record(self, record: dict[str, Any]) -> None:
        assert type(decode_error(record)) is RemoteError

    def test_long_texts_keep_both_ends(self) -> None:
        record = encode_error(caught(ValueError("first " + "ü" * 100_000 + " last")), traceback_limit_bytes=1000)
        for text, limit in ((record["traceback"], 1000), (record["message"], MAX_ERROR_BYTES)):
            assert limit - 10 < len(text.encode()) <= limit
            assert "bytes left out" in text
            assert text.rstrip().endswith("ü last")
        assert record["traceback"].startswith("Traceback (most recent call last):")
        assert record["message"].startswith("first ü")

    def test_an_error_with_surrogates(self) -> None:
        back = travel(OSError(2, "No such file", "\udcff.txt"))
        assert isinstance(back, FileNotFoundError)
        assert back.filename == "\udcff.txt"
        assert type(travel(ValueError("\udcff" * 20_000))) is RemoteError

    def test_what_steers_is_told_as_an_error(self) -> None:
        assert type(travel(Reject("no"))) is Rejected
        assert str(travel(Reject("no"))) == "no"
        assert type(travel(Retry("once more"))) is MaxRetriesExceededError
        assert str(travel(Retry("once more"))) == "once more, and none is left"
        assert str(travel(Retry())) == "it asked for a retry, and none is left"
        assert type(travel(Retry("once more", Retry("and", KeyError("k"))))) is KeyError
        for name in ("rsq.errors.Retry", "rsq.errors.Ignore", "builtins.StopIteration", "builtins.StopAsyncIteration"):
            assert type(decode_error({"type": name, "message": "", "args": []})) is RemoteError

    @pytest.mark.parametrize("levels", [100, 508, 509, 510, 511, 1019, 1020, 1021, 1022, 1023])
    def test_what_is_told_can_be_packed(self, levels: int) -> None:
        value: list[Any] = []
        for _ in range(levels):
            value = [value]
        encode(["FAILURE", 1, 0.5, encode_error(ValueError(value))])
