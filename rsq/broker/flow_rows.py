"""How a flow is stored: what is known of it, and of each node. The twin of `_flow_stored.lua`; see docs/protocol.md."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

from msgpack import Packer, unpackb  # type: ignore[import-untyped, unused-ignore]

from rsq.broker.queue import ends_of
from rsq.calls.message import pack_meta
from rsq.calls.placement import PLAIN
from rsq.calls.plan import POLICIES, Call, Node, shifted

JOIN, CALL, ERRBACK = range(3)

OPEN, OK, BAD, AGAIN = range(4)
"""How it stands with a node. AGAIN: it is bad, and runs again."""

STATES = ("starting", "started", "failed", "succeeded", "cancelled", "expired")

STANDS_ABOVE = 2
"""Of the flags of a flow: one of its nodes stands for a call of another flow."""

_COUNTS = Struct(">BBIIiIIiiBdd")
_FIXED = Struct(">ddddiiiiI")
_EDGES = Struct(">BBBBBIiIII")
_NAME = Struct(">H")
_CALL = Struct(">BiI")
_LENGTH = Struct(">I")
_NO_NAMES = bytes(3 * _NAME.size)


class Counts(NamedTuple):
    """What changes of a flow."""

    state: int
    flags: int
    size: int
    calls: int
    open: int
    ok: int
    bad: int
    sunk: int
    failed: int
    unsealed: int
    touched_ms: float
    far_ms: float


NO_COUNTS = Counts(0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0)


def read_counts(head: bytes) -> Counts:
    """Of the field `head` of a flow. Gives NO_COUNTS for what is none."""
    return Counts._make(_COUNTS.unpack_from(head)) if len(head) >= _COUNTS.size else NO_COUNTS


class Fixed(NamedTuple):
    """What does not change of a flow, but for the id of the flow in which it stands for a call."""

    ttl_ms: int
    kept_ms: int
    life_ms: int
    lease_ms: int
    success: int
    complete: int
    death: int
    tail: int
    above_node: int


def fixed_of(fixed: Fixed, above: str) -> bytes:
    return _FIXED.pack(*fixed) + above.encode()


def above_of(head: bytes) -> tuple[int, str, int] | None:
    """Of a `head`: which node of its flow stands for a call of another one; that flow, and the number of the call."""
    if not read_counts(head).flags & STANDS_ABOVE:
        return None
    fixed = Fixed._make(_FIXED.unpack_from(head, _COUNTS.size))
    return fixed.tail, head[_COUNTS.size + _FIXED.size :].decode("utf-8", "replace"), fixed.above_node


class Stored(NamedTuple):
    """A node, as it is read.

    outs      runs of the nodes that wait for it, numbered as in the flow; at their end those `beside`, see `Node`
    base      what is said in it otherwise counts from there
    errbacks  number and id that is told, alternately
    waiting   it has not been released yet
    takes     packed, as long as it waits
    """

    state: int
    kind: int
    waits: int
    outs: Sequence[int]
    queue: str
    id: str
    task: str
    name: str
    waiting: bool
    base: int
    errbacks: Sequence[Any]
    takes: bytes
    beside: Sequence[int]


def read_node(row: bytes) -> Stored:
    state, kind, _, _, _, waits, _, base, first, length = _EDGES.unpack_from(row)
    parts, at = [], _EDGES.size
    for _ in range(4):
        (size,) = _NAME.unpack_from(row, at)
        at += _NAME.size + size
        parts.append(row[at - size : at])
    queue, task_id, task = (part.decode("utf-8", "replace") for part in parts[:3])
    outs, name = [first, *([1 - length] if length > 1 else [])] if length else [], ""
    errbacks: list[Any] = []
    beside: list[int] = []
    if parts[3]:
        others, errbacks, name, *last = unpackb(parts[3], unicode_errors="replace")
        outs, beside = outs or others, last[0] if last else []
    takes = b""
    if waiting := at < len(row):
        length = _CALL.unpack_from(row, at)[2]
        takes = row[at + _CALL.size : at + _CALL.size + length]
    names = (queue, task_id, task, name)
    outs = [*shifted(outs, base), *beside]
    return Stored(state, kind, waits, outs, *names, waiting, base, errbacks, takes, beside)


def row_of(node: Node) -> bytes:
    """A node as it is stored: edges and names, and then its call."""
    outs, first, length = node.outs, 0, 0
    if len(outs) == 1:
        first, length = outs[0], 1
    elif len(outs) == 2 and outs[1] < 0:
        first, length = outs[0], 1 - outs[1]
    more = b""
    if node.errbacks or node.name or node.beside or (outs and not length):
        named = ([] if length else list(outs), [part for pair in node.errbacks for part in pair], node.name)
        more = pack((*named, list(node.beside)) if node.beside else named)
    edges = _EDGES.pack(
        OPEN,
        JOIN if node.call is None else ERRBACK if node.errback else CALL,
        POLICIES.index(node.policy),
        node.sink,
        bool(more),
        node.waits,
        -1 if node.fails is None else node.fails,
        0,
        first,
        length,
    )
    if node.call is None:
        return b"".join((edges, _NO_NAMES, _NAME.pack(len(more)), more))
    message = node.call.message
    queue, task_id, task = message.queue.encode(), message.id.encode(), message.task.encode()
    return b"".join(
        (
            *(edges, _NAME.pack(len(queue)), queue, _NAME.pack(len(task_id)), task_id),
            *(_NAME.pack(len(task)), task, _NAME.pack(len(more)), more, _call(node.call, node.takes)),
        )
    )


def _call(call: Call, takes: object) -> bytes:
    message, placement, rest = call.message, call.placement, b""
    if placement is not PLAIN or call.expires_ms is not None:
        rest = pack(
            (
                -1 if placement.delay_ms is None else placement.delay_ms,
                -1 if placement.eta_ms is None else placement.eta_ms,
                -1 if call.expires_ms is None else call.expires_ms,
                placement.dedupe_key,
                str(placement.dedupe_ttl_ms),
                ends_of(placement.dedupe_until),
            )
        )
    meta, body = pack_meta(message.meta), message.body
    taken = b"" if takes is None else pack(takes)
    head = _CALL.pack(message.priority, takes if isinstance(takes, int) else -1, len(taken))
    return b"".join((head, taken, _LENGTH.pack(len(meta)), meta, _LENGTH.pack(len(body)), body, rest))


def pack(value: object) -> bytes:
    """As Lua reads it: bytes and texts are one."""
    data: bytes = Packer(use_bin_type=False, unicode_errors="surrogatepass").pack(value)
    return data
