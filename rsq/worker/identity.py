"""Under which names a worker and its children go, and whether a lease still holds."""

from __future__ import annotations

import os
import socket
import time

from rsq.worker.board import LaneBoard


def new_worker_id() -> str:
    """Of this process: no other worker anywhere has it."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"


def consumer_name(worker_id: str, child: int, incarnation: int, generation: int) -> str:
    """Name in the consumer groups: new for each process that takes a child's place, and after each lost lease."""
    return f"{worker_id}.{child}.{incarnation}.{generation}"


class Identity:
    """The consumer name of one lane of a child. It changes when the lease was lost: the old name is fenced for good."""

    def __init__(self, worker_id: str, child: int, incarnation: int, board: LaneBoard) -> None:
        self._parts = (worker_id, child, incarnation)
        self.board = board
        self.consumer = consumer_name(*self._parts, board.generation)

    def next_name(self) -> str:
        """The name to take after this one."""
        return consumer_name(*self._parts, self.board.generation + 1)

    def change(self, lease_until: float) -> None:
        """Take the next name, which is registered already: whoever keeps the leases renews it from now on."""
        self.consumer = self.next_name()
        self.board.lease_until = lease_until
        self.board.generation += 1

    def lease_holds(self) -> bool:
        """False once the lease ran out without a renewal, as far as this host can know."""
        return time.monotonic() < self.board.lease_until
