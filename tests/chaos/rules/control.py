"""Revocations, limits, schedules, and how soon others take over."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History, Revocation, Run, ServerState
from tests.chaos.kinds import LIMITED
from tests.chaos.recovery import recoveries
from tests.chaos.rules.runs import AFTERMATH_S, SKEW_S
from tests.chaos.rules.violation import Violation

SLOW_S = 15.0
"""An entry that is pending with no live consumer for longer than this breaks the design."""

HEARD_S = 5.0
"""By then every worker has heard of a mark, or has lost its lease."""

MISSED_S = 9.5
"""A slot that is up to ten seconds late must be fired by whatever beat runs."""


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
    entered = history.entered(run)
    if entered is not None and entered > mark.until + SKEW_S:
        return True
    return run.started > mark.until + HEARD_S and not any(
        fault.kind == "stall" and fault.reigns(mark.until, run.started) for fault in history.faults
    )


def _went_on(run: Run, mark: Revocation, history: History) -> bool:
    if not run.open_at(mark.until) or run.how != "returned" or run.ended is None:
        return False
    return run.ended > mark.until + HEARD_S and not any(
        fault.touches(run) and fault.reigns(mark.until, run.ended, AFTERMATH_S) for fault in history.faults
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


def slow(history: History) -> Iterator[Violation]:
    """Calls that were taken over far too late."""
    for sample in recoveries(history):
        if sample.alone and sample.seconds > SLOW_S:
            yield Violation("slow", f"fault {sample.number} ({sample.kind}): {sample.seconds:.1f} s until it went on")
