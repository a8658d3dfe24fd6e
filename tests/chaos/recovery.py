"""How long the calls that a fault held up took to go on."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.history import AT_NODES, Fault, History, Run

CALM_S = 1.0
"""So long after its end a fault does not disturb the recovery from the next one any more."""

TAKES_OVER = frozenset(
    {"kill_child", "kill_worker", "kill_supervisor", "freeze_worker", "freeze_supervisor", "partition"}
)
"""After these another process takes over what ran: from the fault to the first start elsewhere."""

HANDS_BACK = frozenset({"terminate"})
"""Here what ran ends where it is; what was only fetched goes back: from the signal to its start elsewhere."""

GOES_ON = frozenset({"restart_server", "cut"})
"""After these the same workers go on: from the end of the fault to the next start in each worker that was struck."""

STANDS_STILL = AT_NODES
"""What happens to nodes: for how long, at most, nothing began in a queue that lies there."""

OF_BEATS = frozenset({"kill_beat", "freeze_beat"})


@dataclass(frozen=True)
class Sample:
    """How long it took from fault `number` until a call went on elsewhere. `alone`: nothing else was wrong then."""

    number: int
    kind: str
    seconds: float
    alone: bool


def recoveries(history: History) -> Iterator[Sample]:
    """One sample for each call (or worker) that a fault held up."""
    runs = _Index(history)
    for fault in history.faults:
        if fault.kind in TAKES_OVER:
            since, moments = fault.at, runs.taken_over(fault)
        elif fault.kind in HANDS_BACK:
            since, moments = fault.at, runs.handed_back(fault)
        elif fault.kind in GOES_ON:
            since, moments = fault.until, runs.went_on(fault)
        elif fault.kind in STANDS_STILL:
            for queue in fault.queues:
                since, moment = runs.longest_pause(fault, queue)
                yield Sample(fault.number, fault.kind, moment - since, _alone(fault, history.faults, moment))
            continue
        else:
            continue
        for moment in moments:
            yield Sample(fault.number, fault.kind, moment - since, _alone(fault, history.faults, moment))


class _Index:
    """The runs of a history, found by process, worker and entry; each list by time."""

    def __init__(self, history: History) -> None:
        self._by_pid: dict[int, list[Run]] = defaultdict(list)
        self._by_worker: dict[int, list[Run]] = defaultdict(list)
        self._by_entry: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(history.all_runs(), key=_began):
            self._by_pid[run.pid].append(run)
            self._by_worker[run.worker].append(run)
            self._by_entry[run.entry].append(run)

    def taken_over(self, fault: Fault) -> Iterator[float]:
        for runs in self._by_pid.values():
            last = runs[bisect_right(runs, fault.at, key=_began) - 1]
            if last.entry and last.open_at(fault.at) and fault.touches(last):
                yield from self._first_elsewhere(last.entry, fault)

    def handed_back(self, fault: Fault) -> Iterator[float]:
        for entry in fault.held:
            yield from self._first_elsewhere(entry, fault)

    def _first_elsewhere(self, entry: str, fault: Fault) -> Iterator[float]:
        for run in self._by_entry.get(entry, ()):
            if run.started > fault.at:
                if not fault.touches(run):
                    yield run.started
                return

    def went_on(self, fault: Fault) -> Iterator[float]:
        for runs in self._by_worker.values():
            after = bisect_right(runs, fault.until, key=_began)
            if runs[0].started <= fault.at and fault.touches(runs[0]) and after < len(runs):
                yield runs[after].started

    def longest_pause(self, fault: Fault, queue: str) -> tuple[float, float]:
        """From one start in this queue to the next, of those while the fault was at work."""
        entries = (entry for entry in self._by_entry if entry.startswith(f"{queue}/"))
        starts = sorted(run.started for entry in entries for run in self._by_entry[entry])
        first, last = bisect_right(starts, fault.at), bisect_right(starts, fault.until)
        moments = [fault.at, *starts[first : last + 1]]
        return max(pairwise(moments), key=lambda pair: pair[1] - pair[0], default=(fault.at, fault.at))


def _began(run: Run) -> float:
    return run.started


def _alone(fault: Fault, faults: Iterable[Fault], moment: float) -> bool:
    """Whether no other fault was at work on the workers from shortly before this one until `moment`."""
    return not any(
        other is not fault and other.kind not in OF_BEATS and other.at <= moment and other.until + CALM_S >= fault.at
        for other in faults
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` of them do not exceed. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
