"""What those who send and those who wait are told, and when."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.history import OF_CALLERS, History, ServerState, Wait
from tests.chaos.kinds import EARLY, FAILS, POISON
from tests.chaos.rules.violation import Violation

DEAF_S = 5.0
"""A waiting caller must hear of a result within this time after it was made and the server could be reached again."""

BROKER_TIMEOUT_S = 5.0
"""`broker_timeout_s` of all who send: the deadline of one send, and of a wait that has none."""

LATE_S = 3.0
"""So much longer than its deadline a send or a wait may take, on a machine that is busy."""

EARLY_S = 0.3
"""How well the beginning of a wait is known."""


def deaf(history: History, state: ServerState) -> Iterator[Violation]:
    """Callers that were told nothing, or too late, though the result was there and the server could be reached."""
    known = _known(history, state)
    for wait in history.waits:
        since = known.get(wait.id, math.inf)
        if wait.how == "timeout" and since < wait.since - EARLY_S:
            yield Violation("deaf", f"{wait.id} had ended at {since:.3f}; asked at {wait.since:.3f}, it had not")
        elif wait.how not in ("unavailable", "cancelled", "error"):
            late_s = wait.until - max(since, wait.since, _reached_since(history, wait.until))
            if late_s > DEAF_S:
                text = f"the caller of {wait.id} was told {wait.how} at {wait.until:.3f}, {late_s:.1f} s too late"
                yield Violation("deaf", text)


def _known(history: History, state: ServerState) -> dict[str, float]:
    """When each result was there for certain."""
    known: dict[str, float] = defaultdict(lambda: math.inf, state.heard_at)
    for wait in history.waits:
        if wait.heard:
            known[wait.id] = min(known[wait.id], wait.until)
    for each in history.revocations:
        if each.answer == "revoked":
            known[each.id] = min(known[each.id], each.until)
    return known


def _reached_since(history: History, moment: float) -> float:
    """Since when nothing was wrong between the callers and the server; `moment` itself where something is."""
    faults = (fault for fault in history.faults if fault.kind in OF_CALLERS and fault.at <= moment)
    return max((min(fault.until, moment) for fault in faults), default=0.0)


def hasty(history: History) -> Iterator[Violation]:
    """Callers that were sent away before their time was over."""
    for wait in history.waits:
        wanted_s = BROKER_TIMEOUT_S if wait.timeout is None else wait.timeout
        waited_s = wait.until - wait.since
        if wait.how in ("unavailable", "timeout") and waited_s < wanted_s - EARLY_S:
            text = f"the caller of {wait.id} was told {wait.how} after {waited_s:.1f} of {wanted_s:g} s"
            yield Violation("hasty", text)


def hangs(history: History) -> Iterator[Violation]:
    """Waits and sends that went on after their deadline."""
    for wait in history.waits:
        # Who does not wait still asks, and that has the deadline of every request.
        over_s = 0.0 if wait.timeout is None else wait.until - wait.since - (wait.timeout or BROKER_TIMEOUT_S)
        if over_s > _patience_s(history, wait.since, wait.until):
            yield Violation(
                "hangs", f"the caller of {wait.id} was told {wait.how} after {wait.until - wait.since:.1f} s"
            )
    for send in history.sends:
        over_s = send.until - send.at - BROKER_TIMEOUT_S
        if over_s > _patience_s(history, send.at, send.until):
            which = f"{send.serials[0]}" + (f" and {len(send.serials) - 1} more" if len(send.serials) > 1 else "")
            yield Violation("hangs", f"the send of call {which} ended after {send.until - send.at:.1f} s: {send.how}")


def _patience_s(history: History, since: float, until: float) -> float:
    stalls = (fault for fault in history.faults if fault.kind == "stall" and fault.reigns(since, until))
    return LATE_S + sum(min(stall.until, until) - max(stall.at, since) for stall in stalls)


def misled(history: History) -> Iterator[Violation]:
    """Callers that were given what is not theirs."""
    calls = {call.id: call for call in history.calls.values() if call.id is not None}
    for wait in history.waits:
        call = calls.get(wait.id)
        if call is not None and not _may_be_told(wait, call.kind, call.serial):
            yield Violation("wrong", f"the caller of {call.kind} {wait.id} was told {wait.how} {wait.value!r}")


def _may_be_told(wait: Wait, kind: str, serial: int) -> bool:
    if wait.how == "value":
        return bool(wait.value == serial)
    return wait.how != "failure" or kind in FAILS | POISON | EARLY
