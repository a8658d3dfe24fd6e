"""What of a message travels on unread. No server."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsq import codec
from rsq.broker.wire import packed
from rsq.calls.message import NO_META, Delivery, changed_meta, pack_meta, unpack_meta

KEYS = st.sampled_from(["attempt", "deferred_since", "reserved", "x", "\udcff"])
VALUES = st.one_of(st.integers(1, 2**31), st.booleans(), st.text(), st.lists(st.integers(), max_size=20), st.none())


@given(old=st.dictionaries(KEYS, VALUES, max_size=5), new=st.dictionaries(KEYS, VALUES, max_size=5))
def test_changes_come_to_what_packing_anew_would(old: dict[str, Any], new: dict[str, Any]) -> None:
    raw = codec.encode(old) if old else b""
    changed = {**{name: old[name] for name in old if name in new}, **new}
    result = changed_meta(raw, old, changed)
    assert (codec.decode(result) if result else {}) == changed


def test_what_others_wrote_stays_as_it_was() -> None:
    theirs = b"\xa1x" + b"\x91" * 700 + b"\xc0"
    raw = b"\x82" + theirs + b"\xa7attempt\x01"
    old = unpack_meta(raw)
    assert changed_meta(raw, old, old) is raw
    changed = changed_meta(raw, old, {**old, "attempt": 2})
    assert changed == b"\x82" + theirs + b"\xa7attempt\x02"
    assert changed_meta(raw, old, {"x": old["x"]}) == b"\x81" + theirs


def test_no_meta() -> None:
    assert changed_meta(b"", NO_META, NO_META) == b""
    assert changed_meta(b"", NO_META, {"attempt": 2}) == pack_meta({"attempt": 2})
    assert changed_meta(msgpack.packb({"a": 1}), {"a": 1}, {}) == b""


@pytest.mark.parametrize("task_id", [b"a\0", b"\0", b"a b", b"a\n", b"\x7f"])
def test_an_id_that_the_board_could_not_tell_is_none(task_id: bytes) -> None:
    delivery = Delivery("default", 0, b"1-1", [b"id", task_id, b"task", b"t", b"body", b"", b"meta", b""])
    assert "id" in delivery.problem
    assert delivery.id == "1-1"


def test_any_text_goes_over_the_wire() -> None:
    assert packed("SET", "\udcff", 7) == b"*3\r\n$3\r\nSET\r\n$3\r\n\xed\xb3\xbf\r\n$1\r\n7\r\n"
