"""One outcome for each accepted call, the right one, counted once; and nothing left behind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.chaos.history import History, Run, ServerState
from tests.chaos.kinds import BREAKS, EARLY, FAILS, KEEPS_RESULT, POISON, REVOCABLE, queue_of_kind
from tests.chaos.rules.flows import is_due
from tests.chaos.rules.violation import Violation


def lost(history: History, state: ServerState) -> Iterator[Violation]:
    """Accepted calls that are nowhere."""
    dead = {task_id for letters in state.dead.values() for task_id in letters}
    for call in history.calls.values():
        task_id = call.id
        if (
            task_id is None
            or not is_due(history, call.serial)
            or task_id in dead
            or task_id in state.left.entries
            or task_id in state.left.delayed
        ):
            continue
        runs = history.runs.get(task_id, [])
        if task_id in state.results or (call.kind not in KEEPS_RESULT and any(run.how == "returned" for run in runs)):
            continue
        ran = "; ".join(f"{run}: {run.how or 'cut off'}" for run in runs) or "it never began"
        yield Violation("lost", f"{call.kind} {task_id}, sent at {call.at:.3f}: {ran}")


def double(history: History, state: ServerState) -> Iterator[Violation]:
    """More than one outcome, or one counted more than once."""
    for serial, one, other in history.doubles:
        yield Violation("double", f"call {serial} was accepted as {one} and as {other}")
    yield from _arrived_twice(history)
    for task_id, told in state.published.items():
        # One that is sent again, and what waits for it, has failed at first.
        states = [each for each in told if each != "FAILURE"] if history.redriven(task_id) else told
        if len(states) > 1:
            yield Violation("double", f"{len(states)} results of {task_id} were published: {', '.join(states)}")
    for task_id, outcome in state.results.items():
        published = state.published.get(task_id, [])
        if not published and not state.gaps:
            yield Violation("double", f"{task_id} has a result that was never published")
        if published and published[-1] != outcome.state:
            yield Violation("double", f"{task_id} was published as {published[-1]} and is kept as {outcome.state}")
    for queue, letters in state.dead.items():
        for task_id, times in Counter(letters).items():
            if times > 1:
                yield Violation("double", f"{times} dead letters of {task_id} in {queue}")
            if task_id in state.results and state.results[task_id].state == "SUCCESS":
                yield Violation("double", f"{task_id} is a dead letter and has succeeded")
    yield from _counters(history, state)


def _arrived_twice(history: History) -> Iterator[Violation]:
    """One call under two ids, or one attempt from two entries: the server took two sends for two calls."""
    by_serial: dict[int, set[str]] = defaultdict(set)
    for run in history.all_runs():
        by_serial[run.serial].add(run.id)
    for serial, ids in by_serial.items():
        if len(ids) > 1:
            yield Violation("double", f"call {serial} ran under {len(ids)} ids: {', '.join(sorted(ids))}")
    broken = {run.serial for run in history.all_runs() if run.kind in BREAKS}
    for task_id, runs in history.runs.items():
        by_attempt: dict[tuple[int, int], list[Run]] = defaultdict(list)
        for run in runs:
            if run.entry:
                by_attempt[run.serial, run.attempt].append(run)
        for (serial, attempt), its in by_attempt.items():
            several = {run.entry for run in its}
            if len(several) > (2 if serial in broken else 1) and not history.fed_again(its):
                text = f"attempt {attempt} of {task_id} ran from {len(several)} entries: {', '.join(sorted(several))}"
                yield Violation("double", text)


def _counters(history: History, state: ServerState) -> Iterator[Violation]:
    """Each counter against the number of distinct calls that have that outcome."""
    expected: dict[str, Counter[str]] = defaultdict(Counter)
    maybe_retried, maybe_revoked = Counter[str](), Counter[str]()
    queue_of = {call.id: call.queue for call in history.calls.values() if call.id is not None}
    for task_id, runs in history.runs.items():
        kind = runs[0].kind
        queue = queue_of.get(task_id) or queue_of_kind(kind)
        counters = expected[queue]
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
        attempts: dict[int, int] = {}  # by call: what stands for one has its id
        for run in runs:
            attempts[run.serial] = max(run.attempt, attempts.get(run.serial, 1))
        counters["retried"] += sum(attempts.values()) - len(attempts)
        if any(run.kind in BREAKS and run.how == "raised" for run in runs):
            counters["dead"] += task_id not in state.dead.get(queue, ())
        if _may_wait_for_a_retry(runs, kind, task_id, history, state):
            maybe_retried[queue] += 1
    for task_id, outcome in state.results.items():
        if outcome.state == "FAILURE" and task_id not in history.runs:  # taken early, struck before the body began
            expected[queue_of.get(task_id, "default")]["lost"] += 1
        elif outcome.state == "REVOKED" and history.is_cancelled(task_id):
            maybe_revoked[queue_of.get(task_id, "default")] += 1  # no queue counts what ended before it was released
        elif outcome.state == "REVOKED":
            expected[queue_of.get(task_id, "default")]["revoked"] += 1
    kills = sum(fault.kills_one for fault in history.faults)
    for queue in {*expected, *state.counters}:
        counted = state.counters.get(queue, {})
        wanted = expected[queue]
        wanted["dead"] += len(set(state.dead.get(queue, ())))
        for name in ("succeeded", "dead", "retried", "lost", "revoked"):
            more = counted.get(name, 0) - wanted[name]
            if not 0 <= more <= {"retried": maybe_retried, "revoked": maybe_revoked}.get(name, Counter())[queue]:
                text = f"{queue}: {counted.get(name, 0)} counted as {name}, but there are {wanted[name]}"
                yield Violation("double", text)
        if counted.get("crashed", 0) > kills:
            yield Violation("double", f"{queue}: {counted['crashed']} counted as crashed, but {kills} were killed")


def _may_wait_for_a_retry(runs: list[Run], kind: str, task_id: str, history: History, state: ServerState) -> bool:
    """Whether its end may have come between an attempt and the next one: counted as retried, and never begun again."""
    outcome = state.results.get(task_id)
    if outcome is None:
        return False
    if kind in REVOCABLE or history.is_cancelled(task_id):
        return outcome.state == "REVOKED" and max(run.attempt for run in runs) == 1
    return kind == "once_again" and outcome.state == "FAILURE"


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
        numbers, wanted = outcome.value, history.value_of(serial)
        if outcome.state == "SUCCESS" and (numbers if isinstance(numbers, list) else [numbers]) != wanted:
            yield Violation("wrong", f"{kind} {task_id} gave {numbers!r} and not {wanted}")
        expected = _ends_as(kind)
        if task_id in taken_back:
            expected.add("REVOKED")
        if outcome.state not in expected:
            yield Violation("wrong", f"{kind} {task_id} ended as {outcome.state}: {outcome.value}")
    for letters in state.dead.values():
        for task_id in letters:
            kind = history.calls[serials[task_id]].kind if task_id in serials else "unknown call"
            if kind not in FAILS | POISON:
                yield Violation("wrong", f"{kind} {task_id} is a dead letter")


def _ends_as(kind: str) -> set[str]:
    if kind in FAILS | POISON:
        return {"FAILURE"}
    return {"SUCCESS", "FAILURE"} if kind in EARLY else {"SUCCESS"}


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
        ("token of a call that was taken early", sorted(state.taken)),
        ("kept for ever", left.for_ever),
        ("process", left.processes),
        ("on a node that does not serve it", left.astray),
        ("part of a flow", left.flows),
    ):
        for text in texts:
            yield Violation("leak", f"{where}: {text}")
