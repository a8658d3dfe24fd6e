"""The body of the call of an event: ``[[event], {}, [stream, id]]``.

The event is a map of its fields, in which a name or a value is text where it is UTF-8, and else bytes. What its call is
about stands in the body and not in the meta, so that most calls of events have none, and go the way of plain calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from msgpack import Packer  # type: ignore[import-untyped, unused-ignore]

from rsq import codec
from rsq.errors import DecodeError

_SHORT = 31
"""Bytes of a text whose length stands in the byte before it: of all ids that a server makes by its clock."""


def bodies_of(stream: str) -> Callable[[bytes, Sequence[bytes]], bytes]:
    """Gives what makes the body of an entry of this stream, of its id and its fields (names and values in turn)."""
    ends = codec.encode([stream, ""])[:-1]

    def body(event_id: bytes, fields: Sequence[bytes]) -> bytes:
        try:
            b"\0".join(fields).decode()  # each of them is text, then
        except UnicodeDecodeError:
            event = codec.encode(event_of(fields))
        else:
            # Bytes are packed as the text that they are: they need not be decoded for it.
            event = Packer(use_bin_type=False).pack(dict(zip(fields[::2], fields[1::2])))  # noqa: B905 - it costs 1 us
        number = (
            b"%c%b" % (0xA0 | len(event_id), event_id) if len(event_id) <= _SHORT else codec.encode(event_id.decode())
        )
        return b"\x93\x91%b\x80%b%b" % (event, ends, number)

    return body


def event_of(fields: Sequence[bytes]) -> dict[str | bytes, str | bytes]:
    """The event that has these fields. Of a name that stands there twice the last value counts."""
    parts = [_text(part) for part in fields]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def is_of_event(body: bytes) -> bool:
    """Whether a call with this body is that of an event."""
    return body[:1] == b"\x93"


def about(body: bytes) -> tuple[str, str] | None:
    """The stream and the id of the event that a call is about; None: about none, or it cannot be read."""
    with suppress(DecodeError):
        match codec.decode(body) if is_of_event(body) else None:
            case [_, _, [str(stream), str(number)]]:
                return stream, number
    return None


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
