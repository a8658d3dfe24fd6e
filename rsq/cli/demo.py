"""`rsq demo`: the main job on real input, and how its run is shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

import click

from rsq.cli.common import Context, json_option, pass_context, plural
from rsq.cli.out import EXIT_NO, block, document, interrupted, progress, say, table
from rsq.demo.flow import FlowReport, run_flow
from rsq.demo.run import BAD_FILES, Report, run
from rsq.demo.stage import Advance
from rsq.errors import WorkerLost

MOST_PROBLEMS = 20
"""So many are shown; a broken run can have one for each file."""


@click.command()
@click.option("--flow", is_flag=True, help="One flow instead of single calls: a chord of chords that sums up.")
@json_option
@pass_context
def demo(context: Context, flow: bool, as_json: bool) -> None:
    """Index Python's standard library with two workers, kill a child at work, and check the sums.

    It runs on an embedded server of its own, or on that of --url in a namespace of its own, and leaves nothing behind.
    The task that it runs is rsq/demo/tasks.py. Exit code 1: the sums differ, or an outcome is missing or doubled.

    \b
    Example:
      rsq demo
      rsq demo --flow
      rsq --url redis://localhost:6379/0 demo --json
    """
    report: Report | FlowReport
    try:
        report = (run_flow if flow else run)(context.overrides, _Terminal(err=as_json))
    except KeyboardInterrupt:
        interrupted("stopped; workers, server and files of the demo are gone")
    except WorkerLost as error:
        block(f"rsq: {error}", err=True)
        sys.exit(EXIT_NO)
    if as_json:
        document(asdict(report))
    elif isinstance(report, FlowReport):
        _print_flow(report)
    else:
        _print(report)
    if report.problems:
        hidden = len(report.problems) - MOST_PROBLEMS
        more = [f"and {plural(hidden, 'more line')} of this kind"] if hidden > 0 else []
        say("rsq: this is not as it must be:", *report.problems[:MOST_PROBLEMS], *more, err=True)
        block(report.log, err=True)
        sys.exit(EXIT_NO)
    if not as_json:
        say("", f"Every {'call' if flow else 'file'} has one outcome, and the sums are equal.")
        say("Next: rsq --help, and README.md for a task of your own.")


class _Terminal:
    """Shows a run."""

    def __init__(self, err: bool) -> None:
        self._err = err

    def say(self, text: str) -> None:
        block(text, err=self._err)

    def progress(self, label: str, length: int) -> AbstractContextManager[Advance]:
        return progress(label, length, err=self._err)


def _print_flow(report: FlowReport) -> None:
    rows = [
        ("files", report.files, "one call for each, all side by side"),
        ("packages", report.packages, "one call for each, which waits for its files, and sums up"),
        ("calls", report.calls, "and one that waits for the packages"),
        ("succeeded", report.succeeded, "none twice"),
        ("crashes survived", report.crashes, f"kill -9; {_at_work(report)}"),
        ("calls/s", round(report.calls_per_s), ""),
    ]
    _print_rows(rows)
    _print_sums("AS A FLOW", report.with_flow, report.without_flow, report.flow_s, report.direct_s)


def _at_work(report: Report | FlowReport) -> str:
    return "what the child ran was run again" if report.interrupted else "the child was between two calls"


def _print_rows(rows: Sequence[tuple[str, int, str]]) -> None:
    say("")
    table(("OUTCOME", "NUMBER", ""), [(name, f"{number:,}", note) for name, number, note in rows], right=[1])


def _print_sums(
    head: str, queued: Mapping[str, int], direct: Mapping[str, int], queue_s: float, direct_s: float
) -> None:
    say("")
    table(
        ("SUM", head, "WITHOUT A QUEUE"),
        [
            *((name, f"{queued[name]:,}", f"{number:,}") for name, number in direct.items()),
            ("seconds", f"{queue_s:.1f}", f"{direct_s:.1f}"),
        ],
        right=[1, 2],
    )


def _print(report: Report) -> None:
    rows = [
        ("files", report.files, ""),
        ("succeeded", report.succeeded, ""),
        ("dead", sum(report.dead.values()), f"{len(BAD_FILES)} of them are the demo's own bad files"),
        *((f"  {error}", number, "") for error, number in report.dead.items()),
        ("retries", report.retries, "each of the dead was tried three times"),
        ("duplicates refused", report.duplicates, "every file was sent twice"),
        ("crashes survived", report.crashes, f"kill -9; {_at_work(report)}"),
        ("tasks/s", round(report.tasks_per_s), ""),
    ]
    _print_rows(rows)
    _print_sums("THROUGH THE QUEUE", report.with_queue, report.without_queue, report.queue_s, report.direct_s)
