"""A plan as `flow.lua` takes it: packed, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from msgpack import Packer  # type: ignore[import-untyped, unused-ignore]

from rsq.broker.queue import ends_of
from rsq.broker.rows import Stored
from rsq.broker.wire import Argument
from rsq.calls.message import MOST_NODES, pack_meta
from rsq.calls.plan import POLICIES, Node, Plan, in_runs
from rsq.errors import SettingsError
from rsq.settings import Settings

PAGE_NODES, PAGE_BYTES = 1000, 1024 * 1024
"""Nodes of a flow that are stored in one write, and their bytes."""

MOST_ERRBACKS = 10
"""Errbacks of one node: they are released at once."""

MOST_PARTS = 1000
"""Parts of the runs of one node."""

JOIN, CALL, ERRBACK = range(3)


@dataclass
class Pages:
    """A plan as the arguments of `flow.lua`, page by page; the last one says what it is as a whole.

    queues    name -> [most messages, how many calls go there at once]; all of them once the last page is made
    complete  that was the last one
    """

    plan: Plan
    settings: Settings
    queues: dict[str, list[int]] = field(default_factory=dict)
    size: int = 0
    calls: int = 0
    errbacks: int = 0
    fields: int = 0
    complete: bool = False

    def __iter__(self) -> Iterator[list[Argument]]:
        roots: list[int] = []
        sinks: list[int] = []
        rows: list[Argument] = []
        held = 0
        for number, node in enumerate(self.plan.nodes):
            if number >= MOST_NODES:
                raise SettingsError(f"a flow holds {MOST_NODES} nodes at most: make several of it")
            if rows and (len(rows) >= PAGE_NODES * len(Stored._fields) or held > PAGE_BYTES):
                yield [0, *[""] * 11, *rows]
                rows, held = [], 0
            row = self._row(number, node)
            rows += row
            held += len(row.edges) + len(row.waiting)
            if not node.errback and not node.waits:
                roots.append(number)
            if node.sink:
                sinks.append(number)
        self.complete = True
        yield [*self._last(in_runs(roots), in_runs(sinks)), *rows]

    def _last(self, roots: Sequence[int], sinks: Sequence[int]) -> Iterable[Argument]:
        plan, settings = self.plan, self.settings
        queues = [part for name, (most, number) in self.queues.items() for part in (name, most, number)]
        return (
            1,
            self.size,
            self.calls,
            self.size - self.errbacks,
            self.fields,
            pack(roots),
            pack(sinks),
            plan.result_ttl_ms,
            settings.dead_max_age_ms,
            plan.expires_ms,
            plan.description,
            pack(queues),
        )

    def _row(self, number: int, node: Node) -> Stored:
        """A node as it is stored. Raises SettingsError."""
        self.size += 1
        self.fields += 1 if node.call is None else 2
        if node.policy not in POLICIES or len(node.errbacks) > MOST_ERRBACKS or len(node.outs) > MOST_PARTS:
            raise SettingsError(
                f"node {number} of flow {self.plan.id} has the policy {node.policy!r}, {len(node.errbacks)} errbacks "
                f"and {len(node.outs)} runs behind it: take one of {', '.join(POLICIES)}, at most {MOST_ERRBACKS}, and "
                f"at most {MOST_PARTS}, with a join between many and many"
            )
        kind = JOIN if node.call is None else ERRBACK if node.errback else CALL
        message = None if node.call is None else node.call.message
        self.calls += kind == CALL
        self.errbacks += kind == ERRBACK
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
        return Stored(number, pack(edges), b"" if node.call is None else self._call(node))

    def _call(self, node: Node) -> bytes:
        assert node.call is not None
        message, placement, expires_ms = node.call.message, node.call.placement, node.call.expires_ms
        queue = self.queues.setdefault(message.queue, [0, 0])
        queue[0] = min(filter(None, (queue[0], placement.max_length)), default=0)
        queue[1] += not node.waits and not node.errback
        return pack(
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


def pack(value: object) -> bytes:
    """As Lua reads it: bytes and texts are one."""
    data: bytes = Packer(use_bin_type=False, unicode_errors="surrogatepass").pack(value)
    return data
