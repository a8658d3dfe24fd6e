"""What a worker tells of itself in Redis, with each renewal of its leases. `rsq.broker.worker_wishes` reads it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence

from rsq import codec
from rsq.broker.wire import Argument
from rsq.worker.board import ChildBoard
from rsq.worker.child_limits import memory_bytes_of


def queues_line(names: Sequence[str], unread: Sequence[str]) -> str:
    """The queues of a worker as it tells them at its start; unread: those for which another worker is needed."""
    return ", ".join(names) + (f"; not read here, though calls go there: {', '.join(unread)}" if unread else "")


Member = tuple[int, bool, ChildBoard]
"""A process that runs tasks: its pid, whether it consumes, its part of the board."""


class Portrait:
    """One worker. `constant` does not change, and is written once; the rest is made anew for each report.

    slots  bodies at once in each child
    most   children that it has room for
    """

    def __init__(
        self, app: str, queues: Sequence[str], tasks: Sequence[str], pool: str, slots: int, most: int, lease_ms: int
    ) -> None:
        self._queues = queues
        self.constant: dict[str, Argument] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "app": app,
            "queues": ",".join(queues),
            "executor": pool,
            "slots": slots,
            "most": most,
            "lease_ms": lease_ms,
            "started": int(time.time() * 1000),
            "tasks": codec.encode(list(tasks)),
        }

    def report(
        self, members: Iterable[Member], wanted: int, stopping: bool, heard: int, done_before: int
    ) -> dict[str, Argument]:
        """The fields that change.

        wanted       how many children there are to be
        heard        number of the last wish that was seen
        done_before  bodies run by children that are gone
        """
        now, now_ms = time.monotonic(), int(time.time() * 1000)
        children: list[list[object]] = []
        active: list[list[object]] = []
        done = done_before
        for pid, works, board in members:
            done += board.done
            children.append([pid, works, board.done, memory_bytes_of(pid)])
            for each in board.running():
                if each.queue >= len(self._queues):
                    continue  # the child's memory is damaged
                since_ms = now_ms - int((now - each.started) * 1000)
                active.append([each.task_id, each.task, self._queues[each.queue], since_ms, pid])
        return {
            "children": len(children),
            "wanted": wanted,
            "stopping": int(stopping),
            "heard": heard,
            "done": done,
            "rss": memory_bytes_of("self") or 0,
            "running": " ".join(str(task_id) for task_id, *_ in active),
            "detail": codec.encode({"children": children, "active": active}),
        }
