"""A plan as `flow.lua` takes it: packed, page by page."""

from __future__ import annotations

from collections.abc import Iterator

from msgpack import Packer  # type: ignore[import-untyped, unused-ignore]

from rsq.broker.queue import ends_of
from rsq.broker.rows import Stored
from rsq.broker.wire import Argument
from rsq.calls.message import MOST_NODES, pack_meta
from rsq.calls.plan import CALLBACKS, POLICIES, Node, Plan, in_runs
from rsq.errors import SettingsError
from rsq.settings import Settings

PAGE_NODES, PAGE_BYTES = 1000, 1024 * 1024
"""Nodes of a flow that are stored in one write, and their bytes."""

MOST_ERRBACKS = 10
"""Errbacks of one node: they are released at once."""

MOST_PARTS = 1000
"""Parts of the runs of one node."""

JOIN, CALL, ERRBACK = range(3)


class Pages:
    """A plan as the arguments of `flow.lua`, page by page; the last one says what it is as a whole.

    queues    name -> [most messages, how many calls go there at once]; all of them once the last page is made
    size      nodes so far
    complete  the last page was made

    tail, above  it replaces a call: number of the one that stands for that, and the flow and number of that itself, if
                 it is part of one
    """

    def __init__(self, plan: Plan, settings: Settings, tail: int = 0, above: tuple[str, int] = ("", 0)) -> None:
        self.queues: dict[str, list[int]] = {}
        self.size = 0
        self.complete = False
        self._plan = plan
        self._settings = settings
        self._tail = tail
        self._above = above
        self._calls = self._errbacks = self._fields = 0
        self._roots: list[int] = []
        self._sinks: list[int] = []

    def __iter__(self) -> Iterator[list[Argument]]:
        rows: list[Argument] = []
        held = 0
        for number, node in enumerate(self._plan.nodes):
            if number >= MOST_NODES:
                raise SettingsError(f"a flow holds {MOST_NODES} nodes at most: make several of it")
            if rows and (len(rows) >= PAGE_NODES * len(Stored._fields) or held > PAGE_BYTES):
                yield [b"", *rows]
                rows, held = [], 0
            row = self._row(number, node)
            rows += row
            held += len(row.edges) + len(row.waiting)
        self.complete = True
        plan, callbacks = self._plan, self._plan.callbacks
        head = {
            **self._counts(),
            "size": self.size,
            "fields": self._fields,
            "sinks": pack(in_runs(self._sinks)),
            "queues": pack([part for name, bounds in self.queues.items() for part in (name, *bounds)]),
            "description": plan.description,
            "unsealed": int(plan.grows),
            "fixed": pack(
                (
                    plan.result_ttl_ms,
                    int(self._settings.dead_max_age_ms),
                    plan.expires_ms,
                    plan.lease_ms,
                    *(callbacks.get(name, -1) for name in CALLBACKS),
                    self._tail,
                    *self._above,
                )
            ),
        }
        yield [pack(head), *rows]

    def added(self) -> list[Argument]:
        """The arguments of `flow_add.lua`, for the nodes of this plan."""
        rows: list[Argument] = []
        for number, node in enumerate(self._plan.nodes):
            rows += self._row(number, node)[1:]
        return [pack(self._counts()), *rows]

    def _counts(self) -> dict[str, int | bytes]:
        roots = pack(in_runs(self._roots))
        return {"calls": self._calls, "open": self.size - self._errbacks, "roots": roots}

    def _row(self, number: int, node: Node) -> Stored:
        """A node as it is stored. Raises SettingsError."""
        self.size += 1
        self._fields += 1 if node.call is None else 2
        if not node.errback and not node.waits:
            self._roots.append(number)
        if node.sink:
            self._sinks.append(number)
        if node.policy not in POLICIES or len(node.errbacks) > MOST_ERRBACKS or len(node.outs) > MOST_PARTS:
            raise SettingsError(
                f"node {number} of flow {self._plan.id} has the policy {node.policy!r}, {len(node.errbacks)} errbacks "
                f"and {len(node.outs)} runs behind it: take one of {', '.join(POLICIES)}, at most {MOST_ERRBACKS}, and "
                f"at most {MOST_PARTS}, with a join between many and many"
            )
        kind = JOIN if node.call is None else ERRBACK if node.errback else CALL
        message = None if node.call is None else node.call.message
        self._calls += kind == CALL
        self._errbacks += kind == ERRBACK
        edges = (
            kind,
            list(node.outs),
            node.waits,
            POLICIES.index(node.policy),
            [part for errback in node.errbacks for part in errback],
            int(node.sink),
            -1 if node.fails is None else node.fails,
            "" if message is None else message.id,
            "" if message is None else message.queue,
            "" if message is None else message.task,
            node.name,
        )
        return Stored(number, row_of(edges), b"" if node.call is None else self._call(node))

    def _call(self, node: Node) -> bytes:
        assert node.call is not None
        message, placement, expires_ms = node.call.message, node.call.placement, node.call.expires_ms
        queue = self.queues.setdefault(message.queue, [0, 0])
        queue[0] = min(filter(None, (queue[0], placement.max_length)), default=0)
        queue[1] += not node.waits and not node.errback
        return row_of(
            (
                message.queue,
                message.priority,
                message.id,
                message.task,
                message.body,
                pack_meta(message.meta),
                -1 if placement.delay_ms is None else placement.delay_ms,
                -1 if placement.eta_ms is None else placement.eta_ms,
                -1 if expires_ms is None else expires_ms,
                placement.dedupe_key,
                str(placement.dedupe_ttl_ms),
                ends_of(placement.dedupe_until),
                b"" if node.takes is None else pack(node.takes),
                node.takes if isinstance(node.takes, int) else -1,
            )
        )


def row_of(values: tuple[object, ...]) -> bytes:
    """A packed array of these, 14 at most, and of a number in four bytes, which a script sets where it adds nodes."""
    packed = pack(values)
    return bytes((packed[0] + 1,)) + packed[1:] + b"\xce\0\0\0\0"


def pack(value: object) -> bytes:
    """As Lua reads it: bytes and texts are one."""
    data: bytes = Packer(use_bin_type=False, unicode_errors="surrogatepass").pack(value)
    return data
