"""What a call that runs adds to a flow: it goes with its success, and with any other end of the run it is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rsq.broker import scripts
from rsq.broker.connection import ScriptCall
from rsq.broker.flow_pages import PAGE_NODES, Pages
from rsq.broker.flow_rows import pack
from rsq.broker.wire import Argument
from rsq.calls.message import Delivery, new_id
from rsq.calls.plan import Node, Plan
from rsq.settings import Settings

KEPT_AT_ONCE = PAGE_NODES
"""So many nodes that a call adds are a page, which is kept on the server before it succeeds."""


class Adding:
    """What one run adds to one flow.

    name    of what of it is kept on the server until the run succeeds: all pages that are full
    nodes   of the last page, which goes with the outcome; their edges count from 0
    unsent  pages that are full and may not be there yet, by their numbers
    """

    def __init__(self, flow_id: str) -> None:
        self.flow_id = flow_id
        self.name = new_id()
        self.nodes: list[Node] = []
        self.unsent: dict[int, list[Node]] = {}
        self._pages = self._size = self._calls = self._open = self._beside = 0
        self._queues: dict[str, None] = {}
        self._waiting: Sequence[int] = ()

    def add(self, number: int, nodes: Callable[[int], list[Node]]) -> list[Node]:
        """So many more, in one piece, PAGE_NODES at most.

        nodes  gives them, with edges that count from its argument
        """
        if self.nodes and len(self.nodes) + number > KEPT_AT_ONCE:
            self._turn()
        fresh = nodes(len(self.nodes))
        self.nodes += fresh
        return fresh

    def _turn(self) -> None:
        """The last page is full; the next one is empty."""
        full, self.nodes = self.nodes, []
        self.unsent[self._pages] = full
        self._pages += 1
        self._size += len(full)
        self._calls += sum(node.call is not None and not node.errback for node in full)
        self._open += sum(not node.errback for node in full)
        for node in full:
            if node.beside:
                self._beside, self._waiting = self._beside + 1, node.beside
            if node.call is not None:
                self._queues[node.call.message.queue] = None

    def kept_calls(self, settings: Settings, prefix: str, delivery: Delivery) -> list[tuple[int, ScriptCall]]:
        """The script calls that keep what may not be there yet, with the number of the page; repeatable."""
        run = (delivery.consumer, delivery.priority, int(delivery.taken), delivery.entry_id, delivery.id, self.name)
        return [
            (number, (scripts.PREPARE, prefix, (*run, number, self._packed(settings, nodes), settings.flow_expires_ms)))
            for number, nodes in list(self.unsent.items())
        ]

    def _packed(self, settings: Settings, nodes: Sequence[Node]) -> bytes:
        head, *rows = Pages(Plan(self.flow_id, nodes), settings).added()
        return pack((head, rows))

    def last_page(self, settings: Settings) -> tuple[Argument, bytes]:
        """What goes with the outcome: the head, which counts what was kept before, and the packed rows."""
        pages = Pages(Plan(self.flow_id, self.nodes), settings)
        counts = (self.name, self._pages, self._size, self._calls, self._open, self._beside)
        head, *rows = pages.added(counts if self._pages else None, self._queues, self._waiting)
        return head, pack(rows)
