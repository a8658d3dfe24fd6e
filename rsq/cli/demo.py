"""`rsq demo`: the main job on real input, and how its run is shown."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import asdict

import click

from rsq.cli.common import Context, json_option, pass_context, plural
from rsq.cli.out import EXIT_NO, block, document, interrupted, progress, say, table
from rsq.demo.run import BAD_FILES, SUMMED, Advance, Report, run
from rsq.errors import WorkerLost

MOST_PROBLEMS = 20
"""So many are shown; a broken run can have one for each file."""


@click.command()
@json_option
@pass_context
def demo(context: Context, as_json: bool) -> None:
    """Index Python's standard library with two workers, kill a child at work, and check the sums.

    It runs on an embedded server of its own, or on that of --url in a namespace of its own, and leaves nothing behind.
    The task that it runs is rsq/demo/tasks.py. Exit code 1: the sums differ, or an outcome is missing or doubled.

    \b
    Example:
      rsq demo
      rsq --url redis://localhost:6379/0 demo --json
    """
    try:
        report = run(context.overrides, _Terminal(err=as_json))
    except KeyboardInterrupt:
        interrupted("stopped; workers, server and files of the demo are gone")
    except WorkerLost as error:
        block(f"rsq: {error}", err=True)
        sys.exit(EXIT_NO)
    if as_json:
        document(asdict(report))
    else:
        _print(report)
    if report.problems:
        hidden = len(report.problems) - MOST_PROBLEMS
        more = [f"and {plural(hidden, 'more line')} of this kind"] if hidden > 0 else []
        say("rsq: this is not as it must be:", *report.problems[:MOST_PROBLEMS], *more, err=True)
        block(report.log, err=True)
        sys.exit(EXIT_NO)
    if not as_json:
        say("", "Every file has one outcome, and the sums are equal.")
        say("Next: rsq --help, and README.md for a task of your own.")


class _Terminal:
    """Shows a run."""

    def __init__(self, err: bool) -> None:
        self._err = err

    def say(self, text: str) -> None:
        block(text, err=self._err)

    def progress(self, label: str, length: int) -> AbstractContextManager[Advance]:
        return progress(label, length, err=self._err)


def _print(report: Report) -> None:
    at_work = "what the child ran was run again" if report.interrupted else "the child was between two calls"
    rows = [
        ("files", report.files, ""),
        ("succeeded", report.succeeded, ""),
        ("dead", sum(report.dead.values()), f"{len(BAD_FILES)} of them are the demo's own bad files"),
        *((f"  {error}", number, "") for error, number in report.dead.items()),
        ("retries", report.retries, "each of the dead was tried three times"),
        ("duplicates refused", report.duplicates, "every file was sent twice"),
        ("crashes survived", report.crashes, f"kill -9; {at_work}"),
        ("tasks/s", round(report.tasks_per_s), ""),
    ]
    say("")
    table(("OUTCOME", "NUMBER", ""), [(name, f"{number:,}", note) for name, number, note in rows], right=[1])
    say("")
    table(
        ("SUM", "THROUGH THE QUEUE", "WITHOUT A QUEUE"),
        [
            *((name, f"{report.with_queue[name]:,}", f"{report.without_queue[name]:,}") for name in SUMMED),
            ("seconds", f"{report.queue_s:.1f}", f"{report.direct_s:.1f}"),
        ],
        right=[1, 2],
    )
