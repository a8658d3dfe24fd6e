"""The journal of a chaos run, read into a `History`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rsq.calls.source import order_of
from tests.chaos.history import (
    Call,
    Errback,
    Fault,
    History,
    Revocation,
    Run,
    Send,
    StartedFlow,
    Ticked,
    Wait,
)
from tests.chaos.journal import Record
from tests.chaos.kinds import POISON


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
                deliveries=record["deliveries"],
                crashes=record["crashes"],
                given=record.get("given"),
                about=record.get("about"),
            )
            history.runs[run.id].append(run)
        elif what == "finished":
            ending = running.get(pid)
            if ending is not None and ending.id == record["id"] and not ending.how:
                ending.ended, ending.how = at, record["how"]
        elif what == "waited":
            history.waits.append(
                Wait(record["id"], at, record["until"], record["timeout"], record["how"], record["value"])
            )
        elif what == "tried":
            history.sends.append(Send(record["serials"], at, record["until"], record["how"]))
        elif what == "begun":
            history.lease_s = record["lease_s"]
        elif what == "revoked":
            history.revocations.append(
                Revocation(record["id"], at, record["until"], record["terminate"], record["answer"])
            )
        elif what == "flow":
            errbacks = {serial: Errback(frozenset(of), told) for serial, (of, told) in record["errbacks"]}
            behind = {serial: [(one, how) for one, how in ends] for serial, ends in record["behind"]}
            answers, counted = dict(record["answers"]), len(record["counted"])
            needs = dict(record["needs"])
            history.flows[record["id"]] = StartedFlow(record["id"], needs, errbacks, behind, answers, counted)
        elif what == "cancelled":
            _add_cancelled(history, record, at)
        elif what == "ordered":
            history.ordered[record["key"]].append((order_of(record["entry"]), record["serial"]))
        elif what == "ticked":
            zero = at - record["now_ms"] / 1000
            history.ticked[record["kind"]] = Ticked(record["since"] // 1000, record["until"] // 1000, zero)
        elif what == "fault":
            fault = Fault(
                record["number"],
                record["kind"],
                at,
                math.inf,
                frozenset(record["workers"]),
                frozenset(record["pids"]),
                frozenset(record.get("held", ())),
                frozenset(record.get("queues", ())),
            )
            open_faults[fault.number] = fault
            history.faults.append(fault)
        elif what == "over":
            open_faults.pop(record["number"]).until = at
        elif what == "problem":
            history.problems.append(record["text"])
    _add_slots(history)
    _add_crashes(history)
    return history


def _add_cancelled(history: History, record: Record, at: float) -> None:
    """Each of its calls was marked."""
    flow = history.flows[record["id"]]
    flow.cancelled = True
    for serial in (*flow.needs, *flow.errbacks):
        if (task_id := history.calls[serial].id) is not None:
            history.revocations.append(Revocation(task_id, at, record["until"], record["terminate"], record["answer"]))


def tick_serial(task_id: str) -> int:
    """The serial number of a slot's call, whose id is ``<schedule>:<ms>``: below those of all that is sent."""
    kind, _, slot_ms = task_id.rpartition(":")
    return -2 * (int(slot_ms) // 1000) - (kind == "tock")


def _add_slots(history: History) -> None:
    """A slot is a call that nobody sent. `tock` had to fire each; of `tick` those count here that it did fire."""
    for run in history.all_runs():
        ticked = history.ticked.get(run.kind)
        if ticked is not None and int(run.id.rpartition(":")[2]) // 1000 <= ticked.until:
            history.calls[run.serial] = Call(run.serial, run.kind, run.started, run.id, "default")
    if (ticked := history.ticked.get("tock")) is not None:
        for second in range(ticked.since, ticked.until + 1):
            task_id = f"tock:{second}000"
            serial = tick_serial(task_id)
            history.calls[serial] = Call(serial, "tock", ticked.zero + second, task_id, "default")


def _add_crashes(history: History) -> None:
    """Each run of a poison is a fault that its process suffers; the saboteur's have numbers from 1."""
    poisoned = (run for run in history.all_runs() if run.kind in POISON)
    for number, run in enumerate(poisoned, 1):
        kind = "crash_again" if run.crashes else "crash"
        history.faults.append(
            Fault(-number, kind, run.started, run.started, frozenset([run.worker]), frozenset([run.pid]))
        )
