"""What a chaos run must never show, and how quickly it got over each fault. Pure: records in, violations out.

What is legal
    A body may run twice: at least once is the promise. It may even run in two processes at the same time, when the
    first of them was frozen, cut off or killed for longer than its lease: that run is fenced and commits nothing. So
    two runs at the same time are no violation as such.
What is not
    overlap    Two consumers that both hold a lease have both begun the same entry, or the same call while the other was
               still at it. An entry may change hands only after its consumer was struck off the list of leases, for
               good; therefore each body asks the server, when it begins, who is on that list. Where the consumer of an
               earlier run of the entry still is, and the asking one is, too, two leases were alive for one entry. An
               asking consumer that is not on the list itself woke up fenced, and proves nothing. (The list is read a
               moment after the hand-over: what is struck off between is missed; nothing legal is ever reported.)
    rerun      An entry was begun again though no fault touched the worker that had begun it before, or by the same
               consumer, for which there is no excuse at all.
    fenced     The outcome is that of a run whose consumer had been struck off already when another one began the entry.
    lost       An accepted call has neither an outcome nor a place in the queue. A call that is acknowledged early may
               end so, if it leaves the token of the process that took it, and a fault.
    double     More than one outcome for one call: two results published, two dead letters, both; a counter that is not
               the number of distinct calls with that outcome; one call enqueued under two ids.
    wrong      An outcome that this kind of call cannot have, or somebody else's value.
    at-most-once  An early-acknowledged body began twice.
    phantom    A body ran for a call that nobody sent.
    leak       Something that finished work left on the server, or a process that outlived its worker.
    deaf       A caller gave up waiting for a result that had been there for long.
    slow       With nothing else going wrong, a call of a struck worker began elsewhere only after SLOW_S.
    problem    What the driver saw with its own eyes: a worker that ended by itself, an exit code, a drain that hangs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.journal import Record

SLOW_S = 15.0
"""An entry that is pending with no live consumer for longer than this breaks the design."""

AFTERMATH_S = 5.0
"""So long after its end a fault may still be the reason why an entry is begun again."""

CALM_S = 1.0
"""So long after its end a fault does not disturb the recovery from the next one any more."""

DEAF_S = 5.0
"""A waiting caller must hear of a result within this time after it was made, faults of its connection included."""

KEEPS_RESULT = frozenset({"plain", "bulk", "recovers", "fails", "once"})
EARLY = frozenset({"once", "once_quiet"})
FAILS = frozenset({"fails"})

EVERYBODY = -1
"""In the `workers` of a fault: it strikes all."""


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
    """One run of a body. `ended` is None where it was cut off; `leases` None where the server did not answer."""

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
    ended: float | None = None
    how: str = ""

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
    """What struck. `until` is its end: the thaw, the healed network, the answering server."""

    number: int
    kind: str
    at: float
    until: float
    workers: frozenset[int]
    pids: frozenset[int]
    held: frozenset[str] = frozenset()

    def touches(self, run: Run) -> bool:
        """Whether it struck the process of this run, its supervisor, or everybody."""
        if EVERYBODY in self.workers:
            return True
        return run.pid in self.pids if self.pids else run.worker in self.workers


@dataclass
class Wait:
    """A caller that waited for a result."""

    id: str
    since: float
    until: float
    heard: bool


@dataclass
class History:
    """A journal, put in order."""

    calls: dict[int, Call] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    doubles: list[tuple[int, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def all_runs(self) -> Iterator[Run]:
        for runs in self.runs.values():
            yield from runs


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
    leases, orphans, crashes   entries of these keys
    for_ever    keys without a TTL that should have one, and ids that only half of a queue's keys know
    processes   of workers that have ended
    """

    entries: dict[str, str] = field(default_factory=dict)
    delayed: dict[str, str] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    for_ever: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)


@dataclass
class ServerState:
    """The server after the run, and what it published meanwhile.

    counters   T:stats, by queue
    results    by task id
    dead       task ids of the dead letters, by queue, as often as they stand there
    taken      task ids whose token of an early acknowledgement is still there
    published  states of the final results that were published, by task id
    gaps       how often the subscription broke: what was published then was missed
    """

    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    results: dict[str, Outcome] = field(default_factory=dict)
    dead: dict[str, list[str]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    published: dict[str, list[str]] = field(default_factory=dict)
    gaps: int = 0
    left: Leftovers = field(default_factory=Leftovers)


@dataclass(frozen=True)
class Violation:
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Sample:
    """How long it took from fault `number` until a call went on elsewhere. `alone`: nothing else was wrong then."""

    number: int
    kind: str
    seconds: float
    alone: bool


# -- from records to history


def history_of(records: Iterable[Record]) -> History:
    """Put a journal in order. Records come by time."""
    history = History()
    running: dict[int, Run] = {}
    open_faults: dict[int, Fault] = {}
    for record in records:
        what, at, pid = record["what"], float(record["at"]), int(record["pid"])
        if what == "sent":
            for serial in record["serials"]:
                history.calls[serial] = Call(serial, record["kind"], at)
        elif what == "accepted":
            call = history.calls[record["serial"]]
            if call.id is not None and call.id != record["id"]:
                history.doubles.append((call.serial, call.id, record["id"]))
            call.id, call.queue = record["id"], record["queue"]
        elif what == "started":
            seen = record["leases"]
            run = running[pid] = Run(
                id=record["id"],
                serial=record["serial"],
                kind=record["kind"],
                attempt=record["attempt"],
                entry=record["entry"],
                consumer=record["consumer"],
                pid=pid,
                worker=record["worker"],
                started=at,
                leases=None if seen is None else frozenset(seen),
            )
            history.runs[run.id].append(run)
        elif what == "finished":
            ending = running.get(pid)
            if ending is not None and ending.id == record["id"] and not ending.how:
                ending.ended, ending.how = at, record["how"]
        elif what == "waited":
            history.waits.append(Wait(record["id"], at, record["until"], record["heard"]))
        elif what == "fault":
            fault = Fault(
                record["number"],
                record["kind"],
                at,
                math.inf,
                frozenset(record["workers"]),
                frozenset(record["pids"]),
                frozenset(record.get("held", ())),
            )
            open_faults[fault.number] = fault
            history.faults.append(fault)
        elif what == "over":
            open_faults.pop(record["number"]).until = at
        elif what == "problem":
            history.problems.append(record["text"])
    return history


# -- violations


def check(history: History, state: ServerState) -> list[Violation]:
    """Everything that should not be there."""
    return [
        *(Violation("problem", text) for text in history.problems),
        *lost(history, state),
        *double(history, state),
        *wrong(history, state),
        *overlaps(history),
        *fenced(history, state),
        *reruns(history),
        *begun_twice(history),
        *phantoms(history),
        *leaks(state),
        *deaf(history),
        *slow(history),
    ]


def lost(history: History, state: ServerState) -> Iterator[Violation]:
    """Accepted calls that are nowhere."""
    dead = {task_id for letters in state.dead.values() for task_id in letters}
    for call in history.calls.values():
        task_id = call.id
        if task_id is None or task_id in dead or task_id in state.left.entries or task_id in state.left.delayed:
            continue
        runs = history.runs.get(task_id, [])
        if call.kind in KEEPS_RESULT:
            done = task_id in state.results
        else:
            done = any(run.how == "returned" for run in runs)
        if done:
            continue
        if call.kind in EARLY and _may_end_without_an_outcome(task_id, call, runs, history, state):
            continue
        ran = "; ".join(f"{run}: {run.how or 'cut off'}" for run in runs) or "it never began"
        yield Violation("lost", f"{call.kind} {task_id}, sent at {call.at:.3f}: {ran}")


def _may_end_without_an_outcome(
    task_id: str, call: Call, runs: Sequence[Run], history: History, state: ServerState
) -> bool:
    """At most once: taken by a process that was struck before it could commit."""
    if task_id not in state.taken:
        return False
    struck = [fault for fault in history.faults if fault.until + AFTERMATH_S >= call.at]
    return any(fault.touches(run) for fault in struck for run in runs) if runs else bool(struck)


def double(history: History, state: ServerState) -> Iterator[Violation]:
    """More than one outcome, or one counted more than once."""
    for serial, one, other in history.doubles:
        yield Violation("double", f"call {serial} was accepted as {one} and as {other}")
    by_serial: dict[int, set[str]] = defaultdict(set)
    for run in history.all_runs():
        by_serial[run.serial].add(run.id)
    for serial, ids in by_serial.items():
        if len(ids) > 1:
            yield Violation("double", f"call {serial} ran under {len(ids)} ids: {', '.join(sorted(ids))}")
    for task_id, states in state.published.items():
        if len(states) > 1:
            yield Violation("double", f"{len(states)} results of {task_id} were published: {', '.join(states)}")
    for task_id, outcome in state.results.items():
        published = state.published.get(task_id, [])
        if not published and not state.gaps:
            yield Violation("double", f"{task_id} has a result that was never published")
        if published and published[0] != outcome.state:
            yield Violation("double", f"{task_id} was published as {published[0]} and is kept as {outcome.state}")
    for queue, letters in state.dead.items():
        for task_id, times in Counter(letters).items():
            if times > 1:
                yield Violation("double", f"{times} dead letters of {task_id} in {queue}")
            if task_id in state.results and state.results[task_id].state == "SUCCESS":
                yield Violation("double", f"{task_id} is a dead letter and has succeeded")
    yield from _counters(history, state)


def _counters(history: History, state: ServerState) -> Iterator[Violation]:
    """Each counter against the number of distinct calls that have that outcome."""
    expected: dict[str, Counter[str]] = defaultdict(Counter)
    queue_of = {call.id: call.queue for call in history.calls.values() if call.id is not None}
    for task_id, runs in history.runs.items():
        kind = runs[0].kind
        counters = expected[queue_of.get(task_id) or _queue_of_kind(kind)]
        outcome = state.results.get(task_id)
        if kind in KEEPS_RESULT:
            if outcome is not None and outcome.state == "SUCCESS":
                counters["succeeded"] += 1
            elif outcome is not None and kind in EARLY:
                counters["lost"] += 1
        elif outcome is not None:  # kept against its wish: it was taken early, and its process died
            counters["lost"] += 1
        elif any(run.how == "returned" for run in runs) and task_id not in state.taken:
            counters["succeeded"] += 1
        counters["retried"] += max(run.attempt for run in runs) - 1
    for task_id, outcome in state.results.items():
        if outcome.state == "FAILURE" and task_id not in history.runs:  # taken early, struck before the body began
            expected[queue_of.get(task_id, "default")]["lost"] += 1
    kills = sum(fault.kind == "kill_child" for fault in history.faults)
    for queue in {*expected, *state.counters}:
        counted = state.counters.get(queue, {})
        wanted = expected[queue]
        wanted["dead"] = len(set(state.dead.get(queue, ())))
        for name in ("succeeded", "dead", "retried", "lost"):
            if counted.get(name, 0) != wanted[name]:
                text = f"{queue}: {counted.get(name, 0)} counted as {name}, but there are {wanted[name]}"
                yield Violation("double", text)
        if counted.get("crashed", 0) > kills:
            yield Violation("double", f"{queue}: {counted['crashed']} counted as crashed, but {kills} were killed")


def _queue_of_kind(kind: str) -> str:
    """Where a call went of which only the run is known: its producer gave up, though it had arrived."""
    return "bulk" if kind == "bulk" else "default"


def wrong(history: History, state: ServerState) -> Iterator[Violation]:
    """Outcomes that these calls cannot have."""
    serials = {run.id: run.serial for run in history.all_runs()} | {
        call.id: call.serial for call in history.calls.values() if call.id is not None
    }
    for task_id, outcome in state.results.items():
        if task_id not in serials:
            yield Violation("wrong", f"{task_id} has a result, but nobody sent it")
            continue
        serial = serials[task_id]
        kind = history.calls[serial].kind if serial in history.calls else history.runs[task_id][0].kind
        if outcome.state == "SUCCESS" and outcome.value != serial:
            yield Violation("wrong", f"{kind} {task_id} gave {outcome.value!r} and not {serial}")
        expected = {"FAILURE"} if kind in FAILS else {"SUCCESS", "FAILURE"} if kind in EARLY else {"SUCCESS"}
        if outcome.state not in expected:
            yield Violation("wrong", f"{kind} {task_id} ended as {outcome.state}: {outcome.value}")
    for letters in state.dead.values():
        for task_id in letters:
            kind = history.calls[serials[task_id]].kind if task_id in serials else "unknown call"
            if kind not in FAILS:
                yield Violation("wrong", f"{kind} {task_id} is a dead letter")


def overlaps(history: History) -> Iterator[Violation]:
    """Two live leases for one entry, or for one call."""
    for runs in history.runs.values():
        for number, run in enumerate(runs):
            if run.leases is None or run.fenced:
                continue
            for other in runs[:number]:
                if other.consumer == run.consumer or other.consumer not in run.leases:
                    continue
                if (other.entry and other.entry == run.entry) or other.open_at(run.started):
                    text = f"{run.kind} {run.id}: {run} began while the lease of {other} was alive"
                    yield Violation("overlap", text)


def fenced(history: History, state: ServerState) -> Iterator[Violation]:
    """Outcomes that were committed without a lease.

    A consumer that committed in time left no entry for others to begin; one that was struck off may not commit. So it
    cannot be both: the author of the outcome, and missing from the list when somebody else began the entry later.
    """
    for task_id, outcome in state.results.items():
        begun: set[str] = set()
        for run in history.runs.get(task_id, []):
            if run.consumer == outcome.consumer:
                begun.add(run.entry)
            elif run.entry and run.entry in begun and run.leases is not None and outcome.consumer not in run.leases:
                yield Violation("fenced", f"{run.kind} {task_id}: {outcome.consumer} committed what {run} had begun")


def reruns(history: History) -> Iterator[Violation]:
    """Entries that were begun again without a reason."""
    for runs in history.runs.values():
        for number, run in enumerate(runs):
            earlier = [other for other in runs[:number] if other.entry and other.entry == run.entry]
            if not earlier:
                continue
            if any(other.consumer == run.consumer for other in earlier):
                yield Violation("rerun", f"{run.kind} {run.id}: {run} began it twice")
            elif not any(_explains(fault, other, run) for fault in history.faults for other in earlier):
                before = ", ".join(map(str, earlier))
                yield Violation("rerun", f"{run.kind} {run.id}: no fault tells why {run} began it after {before}")


def _explains(fault: Fault, earlier: Run, later: Run) -> bool:
    if fault.at > later.started or fault.until + AFTERMATH_S < earlier.started:
        return False
    # A run that was frozen at the threshold of its body begins, fenced, after the one that took over from it.
    return fault.touches(earlier) or (later.fenced and fault.touches(later))


def begun_twice(history: History) -> Iterator[Violation]:
    """Early-acknowledged bodies that ran more than once."""
    for task_id, runs in history.runs.items():
        if runs[0].kind in EARLY and len(runs) > 1:
            text = f"{runs[0].kind} {task_id} began {len(runs)} times: {', '.join(map(str, runs))}"
            yield Violation("at-most-once", text)


def phantoms(history: History) -> Iterator[Violation]:
    """Runs that belong to no call, or to one under another id."""
    for run in history.all_runs():
        call = history.calls.get(run.serial)
        if call is None:
            yield Violation("phantom", f"{run.kind} {run.id} ran as call {run.serial}, which nobody sent")
        elif call.id is not None and call.id != run.id:
            yield Violation("phantom", f"{run.kind} {run.id} ran as call {run.serial}, which is {call.id}")


def leaks(state: ServerState) -> Iterator[Violation]:
    """What finished work left behind."""
    left = state.left
    for where, texts in (
        ("left in the queue", [f"{task_id} in {place}" for task_id, place in (left.entries | left.delayed).items()]),
        ("pending", left.pending),
        ("consumer without a worker", left.consumers),
        ("lease without a worker", left.leases),
        ("orphan", left.orphans),
        ("crash mark", left.crashes),
        ("kept for ever", left.for_ever),
        ("process", left.processes),
    ):
        for text in texts:
            yield Violation("leak", f"{where}: {text}")


def deaf(history: History) -> Iterator[Violation]:
    """Callers that gave up though the result had been there."""
    for wait in history.waits:
        ends = [run.ended for run in history.runs.get(wait.id, []) if run.how == "returned" and run.ended is not None]
        if wait.heard or not ends:
            continue
        # A run that was fenced made no result, so only a call that ran once is proof.
        late_s = wait.until - ends[0]
        if len(history.runs[wait.id]) == 1 and late_s > DEAF_S and not _server_away(history, ends[0], wait.until):
            text = f"the caller of {wait.id} gave up at {wait.until:.3f}, {late_s:.1f} s after its body had returned"
            yield Violation("deaf", text)


def _server_away(history: History, since: float, until: float) -> bool:
    """Whether the commit or the caller may have been cut off between these moments."""
    return any(fault.at <= until and fault.until + AFTERMATH_S >= since for fault in history.faults)


def slow(history: History) -> Iterator[Violation]:
    """Calls that were taken over far too late."""
    for sample in recoveries(history):
        if sample.alone and sample.seconds > SLOW_S:
            yield Violation("slow", f"fault {sample.number} ({sample.kind}): {sample.seconds:.1f} s until it went on")


# -- recovery

TAKES_OVER = frozenset(
    {"kill_child", "kill_worker", "kill_supervisor", "freeze_worker", "freeze_supervisor", "partition"}
)
"""After these another process takes over what ran: from the fault to the first start elsewhere."""

HANDS_BACK = frozenset({"terminate"})
"""Here what ran ends where it is; what was only fetched goes back: from the signal to its start elsewhere."""

GOES_ON = frozenset({"restart_server", "cut"})
"""After these the same workers go on: from the end of the fault to the next start in each worker that was struck."""


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


def _began(run: Run) -> float:
    return run.started


def _alone(fault: Fault, faults: Iterable[Fault], moment: float) -> bool:
    """Whether no other fault was at work from shortly before this one until `moment`."""
    return not any(other is not fault and other.at <= moment and other.until + CALM_S >= fault.at for other in faults)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` of them do not exceed. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
