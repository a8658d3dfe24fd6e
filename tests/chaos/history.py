"""What happened in a chaos run: the journal put in order, and the server as it was found afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rsq.broker.flow_looks import Flow
from tests.chaos.kinds import BREAKS, OF_EVENTS

EVERYBODY = -1
"""In the `workers` of a fault: it strikes all."""

AT_NODES = frozenset({"restart_master", "kill_master", "freeze_master", "fail_over", "move_slot", "move_slot_whole"})
"""What strikes the nodes of a cluster; over when all of them are as they should be."""

REPLACE = frozenset({"kill_master", "freeze_master"})
"""After these another may be master, without the last that the old one has answered: an outcome can be undone."""

SERVER_AWAY = frozenset({"restart_server", "freeze_server"}) | AT_NODES
"""While nobody can renew a lease nobody loses one: these are no reason to run anything again."""

OF_CALLERS = SERVER_AWAY | {"cut", "lost_reply", "late_request", "stall"}
"""What else strikes the connections of those who send and wait."""

KILLS_ONE = frozenset({"kill_child", "crash", "crash_again"})
"""The death of one process, which its supervisor sees and tells. `crash`: a body killed it, for the first time."""

KILLS = KILLS_ONE | {"kill_worker", "kill_supervisor"}


@dataclass
class Call:
    """A call that was sent. `id` is None as long as its producer does not know whether it arrived."""

    serial: int
    kind: str
    at: float
    id: str | None = None
    queue: str = ""


@dataclass
class Run:
    """One run of a body. `ended` is None where it was cut off; `leases` None where the server did not answer.

    deliveries, crashes   what the server had counted against the call when it began
    """

    id: str
    serial: int
    kind: str
    attempt: int
    entry: str
    consumer: str
    pid: int
    worker: int
    started: float
    leases: frozenset[str] | None
    deliveries: int = 1
    crashes: int = 0
    ended: float | None = None
    how: str = ""
    given: list[int] | None = None
    about: str | None = None

    @property
    def fenced(self) -> bool:
        """Whether its own lease was known to be lost when it began."""
        return self.leases is not None and self.consumer not in self.leases

    def open_at(self, moment: float) -> bool:
        return self.started <= moment and (self.ended is None or self.ended > moment)

    def __str__(self) -> str:
        return f"{self.consumer} (pid {self.pid}, attempt {self.attempt}, entry {self.entry or 'taken'})"


@dataclass
class Fault:
    """What struck. `until` is its end: the thaw, the healed network, the answering server.

    queues  those that lie on the struck nodes
    """

    number: int
    kind: str
    at: float
    until: float
    workers: frozenset[int]
    pids: frozenset[int]
    held: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()

    def touches(self, run: Run) -> bool:
        """Whether it struck the process of this run, its supervisor, or everybody."""
        if EVERYBODY in self.workers:
            return True
        return run.pid in self.pids if self.pids else run.worker in self.workers

    @property
    def kills_one(self) -> bool:
        return self.kind in KILLS_ONE

    def reigns(self, since: float, until: float, aftermath_s: float = 0.0) -> bool:
        """Whether it or what it left behind, for so long, was felt at a moment between these two."""
        return self.at <= until and self.until + aftermath_s >= since


@dataclass
class Revocation:
    """Somebody asked, from `at` to `until`, to revoke a call. `answer` is None where nobody answered."""

    id: str
    at: float
    until: float
    terminate: bool
    answer: str | None


@dataclass
class Ticked:
    """A schedule's slots from `since` to `until` (s) were due while beats ran; the second 0 was at `zero`."""

    since: int
    until: int
    zero: float


@dataclass
class Errback:
    """Hears, once, of whichever of these calls (serial numbers) dies first; it is told this id, or nothing."""

    of: frozenset[int]
    told: str | None


@dataclass
class StartedFlow:
    """A canvas, graph or batch that was started, or maybe started, as the flow `id`.

    needs      serial number of each call but errbacks -> those whose values it gets, in their order
    errbacks   serial number -> what it hears of
    behind     serial number -> calls whose end it waits for beside these, and how each is to end (`ended`: in any way)
    answers    serial number of one that is replaced -> those whose values are its value
    counted    how many are calls of this very flow, and not of one that stands for a call
    cancelled  somebody has asked for it to be cancelled, or its calls to be revoked
    """

    id: str
    needs: dict[int, list[int]]
    errbacks: dict[int, Errback]
    behind: dict[int, list[tuple[int, str]]]
    answers: dict[int, list[int]]
    counted: int
    cancelled: bool = False


@dataclass
class Wait:
    """A caller that waited for a result.

    timeout   what it was ready to wait for (s); None = without end
    how       what it was told: value, failure, revoked, timeout (there is none yet), unavailable (the server was away),
              error (what nobody may be told: a problem); or cancelled, by itself
    value     the serial number in the value that it was given
    """

    id: str
    since: float
    until: float
    timeout: float | None
    how: str
    value: Any = None

    @property
    def heard(self) -> bool:
        return self.how in ("value", "failure", "revoked")


@dataclass
class Send:
    """One try to send, from `at` to `until`."""

    serials: list[int]
    at: float
    until: float
    how: str


@dataclass
class History:
    """A journal, put in order.

    sends     those that took long
    ordered   of each key its events, as id and serial number of its call
    lease_s   of all workers
    """

    lease_s: float = 2.0
    calls: dict[int, Call] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    revocations: list[Revocation] = field(default_factory=list)
    flows: dict[str, StartedFlow] = field(default_factory=dict)
    ticked: dict[str, Ticked] = field(default_factory=dict)
    ordered: dict[str, list[tuple[tuple[int, int], int]]] = field(default_factory=lambda: defaultdict(list))
    doubles: list[tuple[int, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @cached_property
    def flow_of(self) -> dict[int, StartedFlow]:
        """The flow of each call that is part of one, by its serial number."""
        return {serial: flow for flow in self.flows.values() for serial in (*flow.needs, *flow.errbacks)}

    @cached_property
    def _flow_by_id(self) -> dict[str, StartedFlow]:
        return {self.calls[serial].id or "": flow for serial, flow in self.flow_of.items()}

    def value_of(self, serial: int) -> list[int]:
        """What a call gives: its number, or those of what stood for it, in their order."""
        flow = self.flow_of.get(serial)
        return flow.answers.get(serial, [serial]) if flow else [serial]

    def redriven(self, task_id: str) -> bool:
        """Whether it may have died, or been answered so with its flow, and was sent again."""
        flow = self._flow_by_id.get(task_id)
        return flow is not None and any(self.calls[one].kind in BREAKS for one in flow.needs)

    def is_cancelled(self, task_id: str) -> bool:
        """Whether it is part of a flow that somebody has cancelled."""
        flow = self._flow_by_id.get(task_id)
        return flow is not None and flow.cancelled

    def all_runs(self) -> Iterator[Run]:
        for runs in self.runs.values():
            yield from runs

    def entered(self, run: Run) -> float | None:
        """When its entry came into the stream; None where the server's clock is not known, or it was taken early."""
        ticked = next(iter(self.ticked.values()), None)
        if ticked is None or not run.entry:
            return None
        return ticked.zero + int(run.entry.rpartition("/")[2].partition("-")[0]) / 1000

    def fed_again(self, runs: list[Run]) -> bool:
        """Whether these runs of one event may be from several entries: that it had been fed was perhaps known to a lost
        master alone, and then it is fed once more.
        """
        first, *others = sorted(runs, key=lambda run: run.started)
        queue = first.entry.partition("/")[0]
        replaced = [fault for fault in self.faults if fault.kind in REPLACE and queue in fault.queues]
        return first.kind in OF_EVENTS and all(
            any(fault.reigns(first.started, run.started) for fault in replaced)
            for run in others
            if run.entry != first.entry
        )


@dataclass
class Outcome:
    """A result as it lies on the server, with the consumer whose run it came from."""

    state: str
    value: Any = None
    consumer: str = ""


@dataclass
class Leftovers:
    """What the server of a drained, stopped system still holds; each a text that tells where, and all must be empty.

    entries     in streams, task id -> where
    delayed     in the zset or the hash of messages, task id -> where
    pending     in a group's pending list
    consumers   in a group
    leases, orphans, crashes, marks   entries of these keys; marks are those of revocations
    for_ever    keys without a TTL that should have one, and ids that only half of a queue's keys know
    processes   of workers that have ended
    astray      keys on nodes of a cluster that do not serve them
    flows       of flows that are over, all but what tells of their end
    """

    entries: dict[str, str] = field(default_factory=dict)
    delayed: dict[str, str] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    for_ever: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)
    flows: list[str] = field(default_factory=list)


@dataclass
class ServerState:
    """The server after the run, and what it published meanwhile.

    counters   T:stats, by queue
    results    by task id
    dead       task ids of the dead letters, by queue, as often as they stand there
    taken      task ids whose token of an early acknowledgement is still there
    published  states of the final results that were published, by task id
    heard_at   when the first of them was heard of, by task id
    flows      heads of flows that are still there, by id
    gaps       how often the subscription broke: what was published then was missed
    """

    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    results: dict[str, Outcome] = field(default_factory=dict)
    dead: dict[str, list[str]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    published: dict[str, list[str]] = field(default_factory=dict)
    heard_at: dict[str, float] = field(default_factory=dict)
    flows: dict[str, Flow] = field(default_factory=dict)
    gaps: int = 0
    left: Leftovers = field(default_factory=Leftovers)
