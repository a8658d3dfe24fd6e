"""How far a flow has come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rsq.broker.deadline import Deadline
from rsq.broker.flow_looks import Flow
from rsq.errors import ResultTimeout

LOOK_S = 30.0
"""A flow whose end is waited for is looked at after so long, though nothing was heard of it: it may be gone."""


@dataclass(frozen=True)
class FlowProgress:
    """A flow in numbers, from one read that costs the same for any number of calls.

    state      started, succeeded, failed, cancelled or expired
    total      calls, so far; callbacks are not among them
    done       of these have succeeded
    failed     have ended in another way, or never can run
    open       have not ended
    sealed     False = a batch to which more may be added
    abandoned  a batch that nobody kept open any more while it was filled
    """

    id: str
    state: str
    total: int
    done: int
    failed: int
    open: int
    sealed: bool = True
    abandoned: bool = False

    @classmethod
    def of(cls, flow: Flow) -> FlowProgress:
        """From what was read of a flow."""
        left = flow.total - flow.ok - flow.bad
        return cls(flow.id, flow.state, flow.total, flow.ok, flow.bad, left, flow.sealed, flow.abandoned)

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs or waits any more; a dead letter that is sent again may yet carry it on."""
        return self.state not in ("starting", "started")

    @property
    def share(self) -> float:
        """How much of it has ended, 0.0 to 1.0."""
        return 1.0 if not self.total else (self.done + self.failed) / self.total


def looks(flow_id: str, timeout: float | None) -> Iterator[float]:
    """For how long to listen after each look of one who waits for its end. Raises ResultTimeout."""
    deadline = Deadline(float("inf") if timeout is None else timeout)
    while deadline.left_s() > 0:
        yield min(LOOK_S, deadline.left_s())
    yield 0.0
    raise ResultTimeout(f"flow {flow_id} has not ended within {timeout:g} s")
