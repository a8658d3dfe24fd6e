"""What a chaos run must never show, and how quickly it got over each fault. Pure: records in, violations out.

What is legal
    A body may run twice: at least once is the promise. It may even run in two processes at the same time, when the
    first of them was frozen, cut off or killed for longer than its lease: that run is fenced and commits nothing.
What is not
    overlap    Two consumers that both hold a lease have both begun the same entry, or the same call while the other was
               still at it; or two runs of one call at a time where nothing had cut off or frozen the first of them for
               as long as its lease. (That the server was away cuts off nobody: no lease may run out meanwhile.) An
               entry may change hands only after its consumer was struck off the list of leases, for good; therefore
               each body asks the server, when it begins, who is on that list. Where the consumer of an earlier run of
               the entry still is, and the asking one is, too, two leases were alive for one entry. (Unless that run was
               stopped before, and its entry handed back: its lease was lost on another queue alone.) An asking consumer
               that is not on the list itself woke up fenced, and proves nothing. (The list is read a moment after the
               hand-over: what is struck off between is missed; nothing legal is ever reported.)
    rerun      An entry was begun again though no fault touched the worker that had begun it before, or by the same
               consumer, for which there is no excuse at all. That the server was away is no reason; that one master
               was lost and another took its place is, for what had ended shortly before: that may be undone.
    fenced     The outcome is that of a run whose consumer had been struck off already when another one began the entry.
    blamed     The server counts more crashes or deliveries against a call than befell it: its process died for another.
    reads on   A child that had lost its lease, since its supervisor stood still, was given a call that came in later.
    lost       An accepted call has neither an outcome nor a place in the queue.
    double     More than one outcome for one call: two results published, two dead letters, both; a counter that is not
               the number of distinct calls with that outcome; one call enqueued under two ids, or twice under its own.
    wrong      An outcome that this kind of call cannot have, or somebody else's value, also as a caller was told it.
    at-most-once  An attempt of an early-acknowledged body began twice.
    phantom    A body ran for a call that nobody sent.
    leak       Something that finished work left on the server, or a process that outlived its worker.
    deaf       A caller was told that there is no result yet though there had been one when it asked; or it heard of it,
               or gave up, long after it was there and the server could be reached.
    hasty      A caller was sent away before its time was over.
    hangs      A send or a wait went on after its deadline.
    revoked    A call began after it was revoked: after the answer that it had ended, or, where it was marked, from an
               entry that is younger than the mark, or HEARD_S later. One that was revoked has another outcome. A body
               that was to be interrupted went on for HEARD_S.
    crowded    A body began though as many of its kind as may run at once ran already, in consumers whose leases were
               alive.
    out of order  An event began before the one before it, of the same key, had ended.
    early      A call of a flow began before all that it waits for had succeeded, or an errback before anything had
               failed. (One that was released twice is a double, one that never was is lost, one that was given other
               values is wrong.)
    unfinished A flow did not come to its end, or counts its calls differently.
    skipped    A slot of a schedule never became a call, though a beat was at work before it counted as missed. (One
               that was fired twice is a call that ran twice: a double.)
    slow       With nothing else going wrong, a call of a struck worker began elsewhere only after SLOW_S.
    problem    What the driver saw with its own eyes: a worker that ended by itself, an exit code, a drain that hangs,
               an error that no caller may see.
"""

from __future__ import annotations

from tests.chaos.history import History, ServerState
from tests.chaos.rules import callers, control, flows, outcomes, runs
from tests.chaos.rules.violation import Violation


def check(history: History, state: ServerState) -> list[Violation]:
    """Everything that should not be there."""
    return [
        *(Violation("problem", text) for text in history.problems),
        *outcomes.lost(history, state),
        *outcomes.double(history, state),
        *outcomes.wrong(history, state),
        *outcomes.phantoms(history),
        *outcomes.leaks(state),
        *runs.overlaps(history),
        *runs.fenced(history, state),
        *runs.reruns(history),
        *runs.out_of_order(history),
        *runs.begun_twice(history),
        *runs.blamed(history),
        *runs.reads_on(history),
        *callers.deaf(history, state),
        *callers.hasty(history),
        *callers.hangs(history),
        *callers.misled(history),
        *flows.early(history),
        *flows.given(history),
        *flows.unfinished(history, state),
        *control.revoked(history, state),
        *control.crowded(history),
        *control.skipped(history),
        *control.slow(history),
    ]
