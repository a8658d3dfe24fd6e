"""What a chaos run must never show, and how quickly it got over each fault. Pure: records in, violations out.

What is legal
    A body may run twice: at least once is the promise. It may even run in two processes at the same time, when the
    first of them was frozen, cut off or killed for longer than its lease: that run is fenced and commits nothing. So
    two runs at the same time are no violation as such.
What is not
    overlap    Two consumers that both hold a lease have both begun the same entry, or the same call while the other was
               still at it. An entry may change hands only after its consumer was struck off the list of leases, for
               good; therefore each body asks the server, when it begins, who is on that list. Where the consumer of an
               earlier run of the entry still is, and the asking one is, too, two leases were alive for one entry.
               (Unless that run was stopped before, and its entry handed back: its lease was lost on another queue
               alone.) An asking consumer that is not on the list itself woke up fenced, and proves nothing. (The list
               is read a moment after the hand-over: what is struck off between is missed; nothing legal is ever
               reported.)
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
    revoked    A call began after it was revoked: after the answer that it had ended, or, where it was marked, from an
               entry that is younger than the mark, or HEARD_S later. One that was revoked has another outcome. A body
               that was to be interrupted went on for HEARD_S.
    crowded    A body began though as many of its kind as may run at once ran already, in consumers whose leases were
               alive.
    skipped    A slot of a schedule never became a call, though a beat was at work before it counted as missed. (One
               that was fired twice is a call that ran twice: a double.)
    slow       With nothing else going wrong, a call of a struck worker began elsewhere only after SLOW_S.
    problem    What the driver saw with its own eyes: a worker that ended by itself, an exit code, a drain that hangs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.history import (
    EARLY,
    FAILS,
    KEEPS_RESULT,
    LIMITED,
    REVOCABLE,
    Call,
    Fault,
    History,
    Revocation,
    Run,
    ServerState,
)
from tests.chaos.recovery import recoveries

SLOW_S = 15.0
"""An entry that is pending with no live consumer for longer than this breaks the design."""

AFTERMATH_S = 5.0
"""So long after its end a fault may still be the reason why an entry is begun again."""

DEAF_S = 5.0
"""A waiting caller must hear of a result within this time after it was made, faults of its connection included."""

HEARD_S = 5.0
"""By then every worker has heard of a mark, or has lost its lease."""

SKEW_S = 0.05
"""How well the moments of the journal are known on the server's clock."""

MISSED_S = 9.5
"""A slot that is up to ten seconds late must be fired by whatever beat runs."""


@dataclass(frozen=True)
class Violation:
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


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
        *revoked(history, state),
        *crowded(history),
        *skipped(history),
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
    maybe_retried = Counter[str]()
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
        retries = max(run.attempt for run in runs) - 1
        counters["retried"] += retries
        if kind in REVOCABLE and outcome is not None and outcome.state == "REVOKED" and retries == 0:
            maybe_retried[queue_of.get(task_id) or _queue_of_kind(kind)] += 1  # and revoked while it waited
    for task_id, outcome in state.results.items():
        if outcome.state == "FAILURE" and task_id not in history.runs:  # taken early, struck before the body began
            expected[queue_of.get(task_id, "default")]["lost"] += 1
        elif outcome.state == "REVOKED":
            expected[queue_of.get(task_id, "default")]["revoked"] += 1
    kills = sum(fault.kind == "kill_child" for fault in history.faults)
    for queue in {*expected, *state.counters}:
        counted = state.counters.get(queue, {})
        wanted = expected[queue]
        wanted["dead"] = len(set(state.dead.get(queue, ())))
        for name in ("succeeded", "dead", "retried", "lost", "revoked"):
            more = counted.get(name, 0) - wanted[name]
            if not 0 <= more <= (maybe_retried[queue] if name == "retried" else 0):
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
    taken_back = {revocation.id for revocation in history.revocations}
    for task_id, outcome in state.results.items():
        if task_id not in serials:
            yield Violation("wrong", f"{task_id} has a result, but nobody sent it")
            continue
        serial = serials[task_id]
        kind = history.calls[serial].kind if serial in history.calls else history.runs[task_id][0].kind
        if outcome.state == "SUCCESS" and outcome.value != serial:
            yield Violation("wrong", f"{kind} {task_id} gave {outcome.value!r} and not {serial}")
        expected = {"FAILURE"} if kind in FAILS else {"SUCCESS", "FAILURE"} if kind in EARLY else {"SUCCESS"}
        if task_id in taken_back:
            expected.add("REVOKED")
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
                if other.how == "stopped" and not other.open_at(run.started):
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
        ("mark of a revocation", left.marks),
        ("kept for ever", left.for_ever),
        ("process", left.processes),
    ):
        for text in texts:
            yield Violation("leak", f"{where}: {text}")


def revoked(history: History, state: ServerState) -> Iterator[Violation]:
    """Calls that went on though they were revoked."""
    for each in history.revocations:
        outcome = state.results.get(each.id)
        if each.answer == "revoked" and outcome is not None and outcome.state != "REVOKED":
            yield Violation("revoked", f"{each.id} was revoked at {each.until:.3f} and ended as {outcome.state}")
        for run in history.runs.get(each.id, []):
            if _had_to_know(run, each, history):
                yield Violation("revoked", f"{each.id}: {run} began though it was {each.answer} at {each.until:.3f}")
            if each.answer == "marked" and each.terminate and _went_on(run, each, history):
                yield Violation("revoked", f"{each.id}: {run} went on though it was to end at {each.until:.3f}")


def _had_to_know(run: Run, mark: Revocation, history: History) -> bool:
    """Whether it may not begin: it had ended, was fetched after the mark was there, or had the time to hear of it."""
    # One that is fenced changes nothing, and cannot know.
    if run.started <= mark.until or run.leases is None or run.fenced:
        return False
    if mark.answer != "marked":
        return mark.answer is not None
    ticked = next(iter(history.ticked.values()), None)
    if ticked is not None and run.entry:
        entered = ticked.zero + int(run.entry.rpartition("/")[2].partition("-")[0]) / 1000
        if entered > mark.until + SKEW_S:
            return True
    return run.started > mark.until + HEARD_S and not any(
        fault.kind == "stall" and fault.at <= run.started and fault.until >= mark.until for fault in history.faults
    )


def _went_on(run: Run, mark: Revocation, history: History) -> bool:
    if not run.open_at(mark.until) or run.how != "returned" or run.ended is None:
        return False
    return run.ended > mark.until + HEARD_S and not any(
        fault.touches(run) and fault.at <= run.ended and fault.until + AFTERMATH_S >= mark.until
        for fault in history.faults
    )


def crowded(history: History) -> Iterator[Violation]:
    """More bodies at once than a limit allows. What a struck-off consumer held is free, though its body may go on."""
    for kind, most in LIMITED.items():
        runs = sorted((run for run in history.all_runs() if run.kind == kind), key=lambda run: run.started)
        open_ones: list[Run] = []
        for run in runs:
            open_ones = [other for other in open_ones if other.open_at(run.started)]
            if run.leases is not None and not run.fenced:
                others = [other for other in open_ones if other.consumer in run.leases and other.id != run.id]
                if len(others) >= most:
                    beside = ", ".join(f"{other.id} by {other}" for other in others)
                    yield Violation("crowded", f"{run.id}: {run} began beside {beside}")
            open_ones.append(run)


def skipped(history: History) -> Iterator[Violation]:
    """Slots that were passed over too soon. Those of `tock` are all calls: without an outcome they are lost."""
    ticked = history.ticked.get("tick")
    if ticked is None:
        return
    began: dict[int, float] = {}
    for run in history.all_runs():
        if run.kind == "tick":
            second = int(run.id.rpartition(":")[2]) // 1000
            began[second] = min(run.started, began.get(second, run.started))
    for second in set(range(ticked.since, ticked.until + 1)) - began.keys():
        late_s = min((at for later, at in began.items() if later > second), default=ticked.zero + ticked.until)
        late_s -= ticked.zero + second
        if late_s < MISSED_S:
            yield Violation("skipped", f"slot {second} of tick was passed over {late_s:.1f} s after it was due")


def deaf(history: History) -> Iterator[Violation]:
    """Callers that gave up though the result had been there."""
    ended = {each.id: each.until for each in history.revocations if each.answer == "revoked"}
    for wait in history.waits:
        if not wait.heard and wait.id in ended and wait.until - ended[wait.id] > DEAF_S:
            if not _server_away(history, ended[wait.id], wait.until):
                yield Violation("deaf", f"the caller of {wait.id} gave up at {wait.until:.3f}, but it was revoked")
            continue
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
