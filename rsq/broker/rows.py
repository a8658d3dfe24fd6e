"""What scripts are told of each call of a batch: declared once, written here, and read by these names in Lua.

A script that takes rows names their kind in a line ``-- rows: <kind>``; `rsq.broker.scripts` puts the offset of each
field in its place, so ``ENTRY_ID`` there is `entry_id` here, and ``WIDTH`` is the number of fields. Of a second kind
that follows the first they stand in a table with the kind's name.
"""

from __future__ import annotations

from typing import NamedTuple


class Completed(NamedTuple):
    """Done. `result` is b'' where none is kept."""

    entry_id: bytes
    id: str
    result: bytes
    ttl_ms: int


class Retried(NamedTuple):
    """Delayed. `slot` is the concurrency limit that it waits for ('' = none), `most` how many places that has."""

    entry_id: bytes
    id: str
    task: str
    body: bytes
    meta: bytes
    delay_ms: int
    slot: str
    most: int


class Buried(NamedTuple):
    """Given up. `error` is a packed record, `attempts` how often it ran."""

    entry_id: bytes
    id: str
    task: str
    body: bytes
    meta: bytes
    reason: str
    error: bytes
    attempts: int
    result: bytes
    ttl_ms: int


class CutShort(NamedTuple):
    """It ran when its process died.

    taken    1 where it was acknowledged early
    limit_s  the time limit in seconds for which it was killed, as text; '' = it died with the process
    result   what its caller gets if it was taken early
    """

    priority: int
    entry_id: bytes
    id: str
    taken: int
    limit_s: str
    result: bytes


class Reported(NamedTuple):
    """A call of these was part of a flow. There are none, or one for each of them, in their order.

    node   its number in the flow
    skip   its value, or after a failure its packed result, is the result in that row without so many bytes at its head
    value  or this, where it is not b''
    """

    flow: str
    node: int
    skip: int
    value: bytes


class Added(NamedTuple):
    """A call of these, which is part of a flow and has succeeded, adds to that: once it is committed, and only then.

    row    which of them, from 0
    flow   to which it adds: its own, or the one in which that stands for a call
    key    names the page
    head   of the nodes, as in `flow_add`
    nodes  packed array: the row of each node
    """

    row: int
    flow: str
    key: str
    head: bytes
    nodes: bytes


class Stored(NamedTuple):
    """A node of a flow that is started. `row`: all that is known of it, see `rsq.broker.flow_pages`."""

    number: int
    row: bytes


class Fed(NamedTuple):
    """An event of a source, as a call. Of those with the same `key` ('' = none) one runs.

    twin_meta  its meta where it comes while another has not ended
    order      those with the same one ('' = none) run one after the other
    """

    id: bytes
    body: bytes
    meta: bytes = b""
    key: str = ""
    twin_meta: bytes = b""
    order: str = ""
    event_id: bytes = b""


FIELDS = {kind.__name__: kind._fields for kind in (Completed, Retried, Buried, CutShort, Reported, Added, Stored, Fed)}


def as_lua(kind: str, further: bool = False) -> str:
    """The offsets of the fields of a row, as constants in Lua."""
    names = [*(name.upper() for name in FIELDS[kind]), "WIDTH"]
    if further:
        return f"local {kind.upper()} = {{ {', '.join(f'{name} = {i}' for i, name in enumerate(names))} }}"
    return f"local {', '.join(names)} = {', '.join(map(str, range(len(names))))}"
