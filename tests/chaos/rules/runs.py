"""Which runs there may be: one at a time under one lease, again only for a reason, none blamed for a neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import AT_NODES, EVERYBODY, KILLS, REPLACE, SERVER_AWAY, Fault, History, Run, ServerState
from tests.chaos.kinds import EARLY, queue_of_kind
from tests.chaos.rules.violation import Violation

AFTERMATH_S = 5.0
"""So long after its end a fault may still be the reason why an entry is begun again."""

RENEWED = 2 / 3
"""Share of a lease that is left at least when a fault strikes: it is renewed three times within its life."""

SKEW_S = 0.05
"""How well the moments of the journal are known on the server's clock."""

READS_ON_S = 1.0
"""A child whose lease has run out may not be given what came in later than this after it."""

COUNTED = {
    **dict.fromkeys(("kill_child", "crash", "crash_again", "terminate", "kill_beat", "freeze_beat", "poison"), 0),
    **dict.fromkeys(("cut", "restart_server", "freeze_server", "late_request"), 2),
    **dict.fromkeys(("lost_reply", "lost_commit", *AT_NODES), 5),
}
"""How often, if not once, an entry may be delivered in vain for one fault, so that nobody can tell it from a crash."""


def overlaps(history: History) -> Iterator[Violation]:
    """Two live leases for one entry, or two runs of one call at a time without a reason."""
    for runs in history.runs.values():
        for number, run in enumerate(runs):
            if run.fenced:
                continue
            for other in runs[:number]:
                if other.entry != run.entry and history.fed_again([other, run]):
                    continue
                at_once = other.open_at(run.started)
                if any(_undone(fault, other, run) for fault in history.faults) and not at_once:
                    continue
                if run.leases is not None and other.consumer != run.consumer and other.consumer in run.leases:
                    if other.how == "stopped" and not at_once:
                        continue
                    if (other.entry and other.entry == run.entry) or at_once:
                        text = f"{run.kind} {run.id}: {run} began while the lease of {other} was alive"
                        yield Violation("overlap", text)
                elif at_once and not any(_ends_the_lease(fault, other, run, history) for fault in history.faults):
                    text = f"{run.kind} {run.id}: {run} began beside {other}, which nothing had cut off for a lease"
                    yield Violation("overlap", text)


def _ends_the_lease(fault: Fault, holder: Run, later: Run, history: History) -> bool:
    """Whether the holder was dead by then, or cut off or frozen for as long as its lease."""
    if not _explains(fault, holder, later):
        return False
    lasted_s = later.started - fault.at
    return fault.kind in KILLS or EVERYBODY in fault.workers or lasted_s > RENEWED * history.lease_s - SKEW_S


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
            if any(_undone(fault, other, run) for fault in history.faults for other in earlier):
                continue
            if any(other.consumer == run.consumer for other in earlier):
                yield Violation("rerun", f"{run.kind} {run.id}: {run} began it twice")
            elif not any(_explains(fault, other, run) for fault in history.faults for other in earlier):
                before = ", ".join(map(str, earlier))
                yield Violation("rerun", f"{run.kind} {run.id}: no fault tells why {run} began it after {before}")


def _undone(fault: Fault, earlier: Run, later: Run) -> bool:
    """Whether the outcome of a run, or that it was taken, may have been known to a lost master alone."""
    queue = earlier.entry.partition("/")[0] or queue_of_kind(earlier.kind)
    if fault.kind not in REPLACE or queue not in fault.queues:
        return False
    return earlier.ended is not None and fault.reigns(earlier.started, later.started)


def _explains(fault: Fault, earlier: Run, later: Run) -> bool:
    """Whether the fault can be why what one had begun was begun by another. That the server was away never is."""
    if fault.kind == "crash_again" and earlier.ended is not None:
        return False  # one that is known to kill begins only when the outcomes of those before it are written
    if fault.kind in SERVER_AWAY or not fault.reigns(earlier.started, later.started, AFTERMATH_S):
        return False
    # A run that was frozen at the threshold of its body begins, fenced, after the one that took over from it.
    return fault.touches(earlier) or (later.fenced and fault.touches(later))


def begun_twice(history: History) -> Iterator[Violation]:
    """Attempts of early-acknowledged bodies that began more than once."""
    for task_id, runs in history.runs.items():
        if runs[0].kind not in EARLY:
            continue
        for attempt in sorted({run.attempt for run in runs}):
            same = [run for run in runs if run.attempt == attempt]
            first, *others = same
            if others and not any(_undone(fault, first, other) for fault in history.faults for other in others):
                text = f"{runs[0].kind} {task_id} began {len(same)} times: {', '.join(map(str, same))}"
                yield Violation("at-most-once", text)


def blamed(history: History) -> Iterator[Violation]:
    """Calls against which more was counted than befell them: the death of a neighbour, or of nobody."""
    for runs in history.runs.values():
        for number, run in enumerate(runs):
            # What stands for a call that was replaced has its id, and what was counted against it.
            before = [other for other in runs[:number] if other.entry == run.entry or other.serial != run.serial]
            faults = _between(history, run)
            # One that was killed as it was about to begin a call has told the journal of nothing.
            unseen = run.crashes - sum(other.ended is None for other in before)
            if unseen > sum(fault.kind == "kill_child" for fault in faults):
                text = f"{run.kind} {run.id}: {run} comes after {run.crashes} crashes, and {unseen} were not its own"
                yield Violation("blamed", text)
            explained = 1 + len(before) + max(0, unseen) + sum(COUNTED.get(fault.kind, 1) for fault in faults)
            if run.deliveries > explained and history.entered(run) is not None:
                text = f"{run.kind} {run.id}: {run} is delivery {run.deliveries}, and {explained} can be explained"
                yield Violation("blamed", text)


def _between(history: History, run: Run) -> list[Fault]:
    """What was felt from the moment its entry came in, where that is known, until it began."""
    entered = history.entered(run)
    since = run.started if entered is None else entered
    return [fault for fault in history.faults if fault.reigns(since, run.started, AFTERMATH_S)]


def out_of_order(history: History) -> Iterator[Violation]:
    """Events that began before the one before them in their key's order had come to an end."""
    runs: dict[int, list[Run]] = {}
    for run in history.all_runs():
        runs.setdefault(run.serial, []).append(run)
    for key, events in history.ordered.items():
        ran = [runs[serial] for _, serial in sorted(events) if serial in runs]
        for before, after in pairwise(ran):
            ends = [run.ended for run in before if run.how == "returned" and run.ended is not None]
            began = min(run.started for run in after)
            if ends and began < min(ends):
                text = f"{after[0].kind} {after[0].id} of key {key} began {min(ends) - began:.3f} s before the end of"
                yield Violation("out of order", f"{text} {before[0].id}")


def reads_on(history: History) -> Iterator[Violation]:
    """Calls that came in when the lease of who began them had long run out, since its supervisor stood still."""
    frozen = [fault for fault in history.faults if fault.kind == "freeze_supervisor"]
    # A child that lost its lease begins again under a new name, with a lease of its own.
    known_since: dict[str, float] = {}
    for run in history.all_runs():
        known_since[run.consumer] = min(run.started, known_since.get(run.consumer, run.started))
    for run in history.all_runs():
        entered = history.entered(run)
        if not run.fenced or entered is None:
            continue
        for fault in frozen:
            late_s = entered - max(fault.at, known_since[run.consumer]) - history.lease_s
            if fault.touches(run) and entered < fault.until and late_s > READS_ON_S:
                text = f"{run.kind} {run.id} was given to {run}, {late_s:.1f} s after the end of its lease"
                yield Violation("reads on", text)
