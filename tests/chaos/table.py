"""A report for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.chaos.driver import LEASE_S, NODE_TIMEOUT_S, Report
from tests.chaos.recovery import percentile

TARGETS_S = {
    "kill_child": 1.0,
    "kill_worker": LEASE_S + 5.0,
    "kill_supervisor": LEASE_S + 5.0,
    "freeze_worker": LEASE_S + 5.0,
    "freeze_supervisor": LEASE_S + 5.0,
    "partition": LEASE_S + 5.0,
    "terminate": 0.5,
    "restart_server": 2.0,
    "kill_master": NODE_TIMEOUT_S + 3.0,
}
"""What recovery should take at most (99 of 100), in seconds. Missing it is no violation: machines differ."""

MOST_SHOWN = 20
"""Violations of one kind that are printed; the rest is in the files."""


def render(report: Report) -> str:
    """Numbers, recovery, violations."""
    parts = [
        f"{report.seconds:g} s, seed {report.seed}, {report.server}",
        ", ".join(f"{number} {name}" for name, number in report.numbers.items()),
        "",
        _recovery(report),
        "",
        _violations(report),
    ]
    return "\n".join(parts)


NAMES = {
    "kill_child": "a child process is killed",
    "kill_worker": "a whole worker is killed",
    "kill_supervisor": "a supervisor is killed",
    "freeze_worker": "a worker is frozen",
    "freeze_supervisor": "a supervisor is frozen",
    "partition": "a worker is cut off from the server",
    "terminate": "a worker is stopped by SIGTERM",
    "restart_server": "the server is killed and restarted, from its first answer",
    "cut": "all connections of a worker are cut",
    "kill_master": "a master is killed",
    "restart_master": "a master is killed and back before it is replaced",
    "freeze_master": "a master hangs for up to 8 s",
    "fail_over": "a master hands over to its replica",
    "move_slot": "a slot is moved key by key, and maybe stands still half-way for up to 4 s",
    "move_slot_whole": "a slot is moved as a whole",
}


def render_markdown(report: Report) -> str:
    """The recovery from one fault at a time, for the docs, and whether anything was violated."""
    faults, calls = sum(report.faults.values()), report.numbers["accepted"]
    head = f"{report.seconds / 60:.0f} minutes, lease {LEASE_S:g} s: {faults} faults, {calls} calls"
    rows = [
        f"{head}, {len(report.violations)} violations.",
        "",
        "| what happens | samples | p50, s | p99, s | longest, s | target, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, name in NAMES.items():
        if kind not in report.faults:
            continue
        alone = [sample.seconds for sample in report.recoveries if sample.kind == kind and sample.alone]
        figures = [percentile(alone, 50), percentile(alone, 99), max(alone)] if alone else [None] * 3
        cells = [name, str(len(alone)), *map(_seconds, [*figures, TARGETS_S.get(kind)])]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _recovery(report: Report) -> str:
    head = ("fault", "times", "samples", "p50", "p99", "max", "target", "with others at work: samples", "max")
    rows: list[Sequence[str]] = [head]
    for kind, times in report.faults.items():
        alone = [sample.seconds for sample in report.recoveries if sample.kind == kind and sample.alone]
        others = [sample.seconds for sample in report.recoveries if sample.kind == kind and not sample.alone]
        target = TARGETS_S.get(kind)
        p99 = percentile(alone, 99) if alone else None
        rows.append(
            (
                kind,
                str(times),
                str(len(alone)),
                _seconds(percentile(alone, 50) if alone else None),
                _seconds(p99) + ("!" if p99 is not None and target is not None and p99 > target else ""),
                _seconds(max(alone, default=None)),
                _seconds(target),
                str(len(others)),
                _seconds(max(others, default=None)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(_cells(row, widths)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _violations(report: Report) -> str:
    kept = f"\njournal, logs of the workers and of the server: {report.kept}" if report.kept else ""
    if not report.violations:
        return "no violation" + kept
    kinds = Counter(violation.kind for violation in report.violations)
    lines = ["violations: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items())]
    for kind, number in kinds.items():
        lines += [f"  {violation}" for violation in report.violations if violation.kind == kind][:MOST_SHOWN]
        if number > MOST_SHOWN:
            lines.append(f"  ... and {number - MOST_SHOWN} more of this kind")
    return "\n".join(lines) + kept
