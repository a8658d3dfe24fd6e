"""Flows: each call once, with the values that are meant for it, not before those have been given, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History, Run, ServerState
from tests.chaos.kinds import BREAKS
from tests.chaos.rules.violation import Violation


def early(history: History) -> Iterator[Violation]:
    """Calls that began before what they wait for had succeeded, and errbacks before what they hear of had failed."""
    runs = runs_by_serial(history)
    for flow in history.flows.values():
        waiting = [(serial, needed, "returned") for serial, needs in flow.needs.items() for needed in set(needs)]
        waiting += [(serial, one, how) for serial, behind in flow.behind.items() for one, how in behind]
        for serial, needed, how in waiting:
            ended = [run.ended for run in runs.get(needed, []) if run.ended is not None and _is(run, how)]
            for run in runs.get(serial, []):
                if not ended or run.started < min(ended):
                    yield Violation("early", f"{run.kind} {run.id}: {run} began before call {needed} had {how}")
        for serial, errback in flow.errbacks.items():
            failed = [
                run.ended
                for one in errback.of
                for run in runs.get(one, [])
                if run.kind in BREAKS and run.how == "raised" and run.ended is not None
            ]
            for run in runs.get(serial, []):
                if not failed or run.started < min(failed):
                    yield Violation("early", f"{run.kind} {run.id}: {run} began though nothing had failed yet")


def _is(run: Run, how: str) -> bool:
    """Whether it ended so."""
    if how == "ended":  # another attempt follows one that raised, but for those that break
        return run.how == "returned" or (run.how == "raised" and run.kind in BREAKS)
    return run.how == how


def given(history: History) -> Iterator[Violation]:
    """Calls that got other values than those of the ones before them, in their order."""
    runs = runs_by_serial(history)
    for flow in history.flows.values():
        for serial, needs in flow.needs.items():
            for run in runs.get(serial, []):
                if run.given != needs:
                    text = f"{run.kind} {run.id} was given the values of {run.given} and not of {needs}"
                    yield Violation("wrong", text)
        for serial, errback in flow.errbacks.items():
            for run in runs.get(serial, []):
                if run.about != errback.told:
                    yield Violation("wrong", f"{run.id} was told of {run.about} and not of {errback.told}")


def unfinished(history: History, state: ServerState) -> Iterator[Violation]:
    """Flows that have not come to their end, or to another one."""
    for flow in history.flows.values():
        if any(history.calls[serial].id is None for serial in flow.needs):
            continue  # nobody knows whether it was started
        head = state.flows.get(flow.id)
        ends = {"succeeded", "cancelled"} if flow.cancelled else {"succeeded"}
        if head is None:
            yield Violation("unfinished", f"flow {flow.id} is gone")
        elif head.state not in ends or head.open:
            yield Violation("unfinished", f"flow {flow.id} is {head.state}: {head.open} of {head.size} nodes are open")
        elif head.state == "succeeded" and (head.total, head.ok, head.bad) != (flow.counted, flow.counted, 0):
            text = f"flow {flow.id} of {flow.counted} calls counts {head.ok} ok and {head.bad} bad of {head.total}"
            yield Violation("unfinished", text)


def is_due(history: History, serial: int) -> bool:
    """Whether this call must have run by the end: an errback where something broke, no part of a cancelled flow."""
    flow = history.flow_of.get(serial)
    if flow is None:
        return True
    errback = flow.errbacks.get(serial)
    if errback is not None:
        return any(history.calls[one].kind in BREAKS for one in errback.of)
    return not flow.cancelled


def runs_by_serial(history: History) -> dict[int, list[Run]]:
    runs: dict[int, list[Run]] = {}
    for run in history.all_runs():
        runs.setdefault(run.serial, []).append(run)
    return runs
