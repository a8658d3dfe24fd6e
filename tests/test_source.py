"""Sources as they are declared, and an event on its way to an argument: no server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from rsq import App, codec
from rsq.calls.message import Delivery
from rsq.calls.request import Request
from rsq.calls.shape import shape_of
from rsq.calls.source import Source, before, decoded, entry_id, order_of
from rsq.errors import DecodeError, DuplicateTask, InvalidTask, SettingsError
from rsq.keys import stream_tag

FIELDS = [b"event", b"user_registered", b"user_id", b"7"]


def delivery(source: Source, fields: list[bytes] = FIELDS, number: bytes = b"5-1") -> Delivery:
    task_id, body = source.call_of(number, fields)
    meta, *_ = source.rules_of(fields)
    return Delivery("q", 0, b"1-0", [b"id", task_id, b"task", b"tests.on_event", b"body", body, b"meta", meta])


def argument(source: Source, fields: list[bytes] = FIELDS) -> Any:
    call = delivery(source, fields)
    args, kwargs = codec.decode_call(call.body)
    assert (call.problem, kwargs) == ("", {})
    (found,) = decoded(source, call, args)
    return found


def test_an_event_is_a_map_of_texts() -> None:
    assert argument(Source("user_events", "g")) == {"event": "user_registered", "user_id": "7"}


def test_an_event_as_bytes_is_what_lies_in_the_stream() -> None:
    fields = [b"\xffname", b"\x00\xfe", b"plain", "ä".encode()]
    found = argument(Source("s", "g", decode="bytes"), fields)
    assert found == {b"\xffname": b"\x00\xfe", b"plain": "ä".encode()}


def test_what_is_no_text_cannot_be_decoded() -> None:
    with pytest.raises(DecodeError, match="no UTF-8"):
        argument(Source("s", "g"), [b"name", b"\xff"])


def test_a_function_makes_the_argument() -> None:
    def payload(event: Mapping[str, str]) -> Any:
        return json.loads(event["payload"])

    source = Source("s", "g", decode=payload)
    assert argument(source, [b"payload", b'{"n": [1, 2]}']) == {"n": [1, 2]}
    with pytest.raises(DecodeError, match="KeyError: 'payload'"):
        argument(source)
    with pytest.raises(DecodeError, match="JSONDecodeError"):
        argument(source, [b"payload", b"{"])


def test_json_and_msgpack_of_a_field() -> None:
    assert argument(Source("s", "g", decode="json:a:b"), [b"a:b", b'{"n": [1, null]}', b"\xff", b"\xfe"]) == {
        "n": [1, None]
    }
    assert argument(Source("s", "g", decode="msgpack:raw"), [b"raw", b"\x81\xa1n\xcd\xff\xfe"]) == {"n": 0xFFFE}
    for decode, fields, said in [
        ("json:p", [b"p", b"{"], "JSONDecodeError"),
        ("json:p", [b"q", b"{}"], "p of the event is missing"),
        ("msgpack:p", [b"p", b"\xc1"], "undecodable data"),
        ("msgpack:p", [b"q", b"\xc0"], "p of the event is missing"),
    ]:
        with pytest.raises(DecodeError, match=said):
            argument(Source("s", "g", decode=decode), fields)


class Kind(Enum):
    NEW = "new"
    SECOND = 2


@dataclass
class Address:
    city: str
    number: int = 0


@dataclass
class Registered:
    user_id: int
    paid: Decimal | None = None
    at: datetime | None = None
    kind: Kind = Kind.NEW
    ok: bool = False
    address: Address | None = None
    length: int = field(init=False, default=0)


class Model:
    """As pydantic's."""

    def __init__(self, event: Any) -> None:
        self.user_id = int(event["user_id"])

    @classmethod
    def model_validate(cls, event: Any) -> Model:
        return cls(event)


def takes_dataclass(event: Registered) -> None: ...


def takes_model(self: Any, event: Model) -> None: ...


def takes_what_is_not_there(event: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def made(function: Any, fields: list[bytes], **options: Any) -> Any:
    task = App("shop").on("s", group="g", **options)(function)
    assert task.source is not None
    return argument(task.source, fields)


def test_an_event_is_an_object_of_the_class_that_is_annotated() -> None:
    fields = b"user_id 7 paid 9.95 at 2026-11-27T10:00:00 kind 2 ok true more x length 3".split()
    assert made(takes_dataclass, fields) == Registered(
        7, Decimal("9.95"), datetime(2026, 11, 27, 10), Kind.SECOND, True
    )
    packed = [b"p", b'{"user_id": 7, "address": {"city": "Ghent", "number": "5"}, "kind": "new", "paid": null}']
    assert made(takes_dataclass, packed, decode="json:p") == Registered(7, address=Address("Ghent", 5))
    assert made(takes_model, [b"user_id", b"7"], bind=True).user_id == 7
    assert made(takes_what_is_not_there, [b"user_id", b"7"]) == {"user_id": "7"}
    assert made(takes_dataclass, [b"user_id", b"7"], decode="bytes") == {b"user_id": b"7"}
    assert made(takes_dataclass, [b"user_id", b"7"], decode=len) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id x", "field user_id: invalid literal"),
        ("paid 1", "missing 1 required .* 'user_id'"),
        ("user_id 7 kind old", "field kind: 'old' is none of Kind"),
        ("user_id 7 paid x", "field paid"),
        ("user_id 7 ok maybe", "field ok: 'maybe' is neither true nor false"),
        ("user_id 7 at now", "field at"),
        ("user_id 7 address Ghent", "field address: Address is made of a map, not of str"),
    ],
)
def test_what_the_class_cannot_be_made_of_cannot_be_decoded(text: str, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        made(takes_dataclass, text.encode().split())


def test_a_model_of_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")
    source = Source("s", "g", shape=shape_of(pydantic.create_model("Registered", user_id=(int, ...))))
    assert argument(source, [b"user_id", b"7"]).user_id == 7
    with pytest.raises(DecodeError, match="ValidationError"):
        argument(source, [b"user_id", b"x"])


def test_the_position_before_an_entry() -> None:
    assert [before(each) for each in ("5-3", "5", "0", "0-1")] == ["5-2", f"4-{2**64 - 1}", "0-0", "0-0"]


def test_what_somebody_sends_in_place_of_an_event_is_refused() -> None:
    source = Source("s", "g", decode="bytes")
    call = delivery(source)
    wrong: list[list[Any]] = [[], [1], [{}, {}], [{"name": 1}]]
    for args in wrong:
        with pytest.raises(DecodeError):
            decoded(source, call, args)
    call.body = codec.encode_call((1,), {}, None)
    assert decoded(source, call, [1]) == [1]
    assert decoded(None, delivery(source), [1]) == [1]


IDS = Source("s", "g", id_field="message")
ORDERED = Source("s", "g", order_by="user")
VERSIONS = Source("s", "g", version_field="number", key_field="user", kept_ms=5)


def test_of_an_id_in_the_event_its_key_is_made() -> None:
    meta, key, twin_meta, order = IDS.rules_of([b"message", b"m:1"])
    assert (meta, key, codec.decode(twin_meta), order) == (b"", "g:s:m:1", {"begin": True}, "")


def test_an_order_is_the_line_of_its_call() -> None:
    assert ORDERED.rules_of([b"user", b"7"])[-1] == "g:s:7"
    assert argument(ORDERED, [b"user", b"7"]) == {"user": "7"}


def test_a_version_is_the_rule_of_its_call() -> None:
    call = delivery(VERSIONS, [b"number", b"12", b"user", b"7"])
    assert call.meta["version"] == ["g:s:7", 12, 5]
    assert argument(VERSIONS, [b"number", b"12", b"user", b"7"]) == {"number": "12", "user": "7"}


@pytest.mark.parametrize(
    ("source", "fields", "said"),
    [
        (IDS, [b"a", b"b"], "message of the event is missing"),
        (IDS, [b"message", b""], "message of the event is no text of 1 to 500"),
        (IDS, [b"message", b"x" * 501], "message of the event is no text of 1 to 500"),
        (IDS, [b"message", b"\xff"], "message of the event is no text"),
        (ORDERED, [b"number", b"1"], "user of the event is missing"),
        (VERSIONS, [b"number", b"1"], "user of the event is missing"),
        (VERSIONS, [b"number", b"1.5", b"user", b"7"], "no version"),
        (VERSIONS, [b"number", b"-1", b"user", b"7"], "no version"),
        (VERSIONS, [b"number", str(2**53 + 1).encode(), b"user", b"7"], "no version"),
        (VERSIONS, [b"number", "\N{ARABIC-INDIC DIGIT ONE}".encode(), b"user", b"7"], "no version"),
    ],
)
def test_an_event_without_what_its_rules_need_cannot_be_decoded(source: Source, fields: list[bytes], said: str) -> None:
    call = delivery(source, fields)
    assert (call.problem, call.meta) == ("", {})
    with pytest.raises(DecodeError, match=said):
        argument(source, fields)


def test_a_call_knows_its_event_and_has_an_id_of_it() -> None:
    source = Source("s", "g")
    call = delivery(source)
    assert (call.meta, Request(call).event) == ({}, ("s", "5-1"))
    assert call.id == delivery(source).id == source.task_id("5-1")
    assert Request(delivery(source, number=b"1" * 20 + b"-" + b"2" * 20)).event == ("s", "1" * 20 + "-" + "2" * 20)
    others = [delivery(source, number=b"5-2"), delivery(Source("s", "h")), delivery(Source("t", "g"))]
    assert len({call.id, *(each.id for each in others)}) == 4


@pytest.mark.parametrize("third", [["s"], ["s", 5], "s", ["s", "1-1", "more"], None])
def test_a_call_is_about_no_event_that_cannot_be_read(third: Any) -> None:
    body = codec.encode([[{"a": "b"}], {}, third])
    fields = [b"id", b"a", b"task", b"t", b"body", body, b"meta", b""]
    assert Request(Delivery("q", 0, b"1-0", fields)).event is None
    with pytest.raises(DecodeError, match="not a call"):
        codec.decode_call(body)


def test_a_body_is_what_msgpack_makes_of_it() -> None:
    for fields in (FIELDS, [b"a", "ä€".encode(), b"a", b"2"], [b"\xe2", b"\x82"], [b"n", b"x" * 70_000], [b""] * 2):
        parts = [each.decode() if each not in (b"\xe2", b"\x82") else each for each in fields]
        event = dict(zip(parts[::2], parts[1::2], strict=True))
        assert delivery(Source("s", "g"), fields).body == codec.encode([[event], {}, ["s", "5-1"]])


def test_ids_of_entries() -> None:
    assert [entry_id(text) for text in ("0", "5", "5-3", "0-0")] == ["0-0", "5-0", "5-3", "0-0"]
    assert order_of("5-10") > order_of("5-9") > order_of("4-99")
    for wrong in ("", "-", "5-", "a", "5-3-1", "99999999999999999999-0", "-5"):
        with pytest.raises(SettingsError):
            entry_id(wrong)


def test_the_tag_of_a_stream_is_that_of_the_server() -> None:
    streams = {"events": "events", "{shop}:events": "shop", "a{b}c{d}": "b", "a{}b{c}": "a{}b{c}", "a{b": "a{b"}
    assert {stream: stream_tag(stream) for stream in streams} == streams


# -- how they are declared


@pytest.fixture
def app() -> App:
    return App("shop")


def register(event: Mapping[str, str]) -> str:
    return event["user_id"]


def another(event: Mapping[str, str]) -> None: ...


def bound(self: Any, event: Mapping[str, str]) -> None: ...


def without() -> None: ...


def test_a_source_is_a_task(app: App) -> None:
    task = app.on("user_events", group="registration", max_retries=5)(register)
    assert task.source == Source("user_events", "registration")
    kept = app.on("user_events", group="ids", id_field="m", dedupe_ttl=60)(another).source
    assert kept == Source("user_events", "ids", id_field="m", kept_ms=60_000)
    assert (task.options.queue, task.options.max_retries) == ("user_events.registration", 5)
    assert task.options.ignore_result
    assert task({"user_id": "7"}) == "7"
    assert "user_events.registration" in app.queues()
    assert app.on("user_events", group="bound", bind=True)(bound).source == Source("user_events", "bound")


def test_queue_and_results_can_be_said(app: App) -> None:
    first = app.on("app:{shop}:events", group="g", queue="mine", ignore_result=False)(register)
    assert (first.options.queue, first.options.ignore_result) == ("mine", False)
    assert app.on("app:{shop}:events", group="h")(another).options.queue == "app--shop--events.h"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group": "a b"}, "group 'a b' cannot be used"),
        ({"group": ""}, "group '' cannot be used"),
        ({"group": "g", "start": "now"}, r"start takes '0' \(all events\), '\$' \(those to come\)"),
        ({"group": "g", "decode": "json"}, "decode takes 'text', 'bytes', 'json:<field>'"),
        ({"group": "g", "decode": "yaml:x"}, "decode takes 'text', 'bytes', 'json:<field>'"),
        ({"group": "g", "id_field": 5}, "id_field takes str or None"),
        ({"group": "g", "version_field": "n"}, "version_field and key_field go together"),
        ({"group": "g", "dedupe_key": "k"}, "dedupe_key is for tasks that are sent"),
        ({"group": "g", "priority": 3}, "priority is for tasks that are sent"),
        ({"group": "g", "retires": 3}, "retires"),
        ({"group": "x" * 100}, "name one with queue="),
    ],
)
def test_a_mistake_is_told_where_it_stands(app: App, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTask, match=said):
        app.on("user_events", **given)(register)
    assert not app.tasks


def test_no_stream_is_told(app: App) -> None:
    with pytest.raises(InvalidTask, match="1 to 500 characters"):
        app.on("", group="g")


@pytest.mark.parametrize(("function", "options"), [(without, {}), (bound, {}), (register, {"bind": True})])
def test_a_function_that_takes_no_event_is_refused(app: App, function: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask, match="called with the event"):
        app.on("user_events", group="g", **options)(function)
    assert not app.tasks


def test_two_functions_for_one_group_are_refused(app: App) -> None:
    app.on("user_events", group="g")(register)
    with pytest.raises(DuplicateTask, match="both read stream user_events for group g"):
        app.on("user_events", group="g")(another)
    app.on("user_events", group="h")(another)
    assert len(app.tasks) == 2
