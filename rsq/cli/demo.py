"""`rsq demo`: the main job on real input, and how its run is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TextIO

import click

from rsq.cli.common import Context, json_option, pass_context, plural, print_json, print_table
from rsq.demo.run import BAD_FILES, SUMMED, Advance, Report, run
from rsq.errors import WorkerLost

EXIT_INTERRUPTED = 130

MOST_PROBLEMS = 20
"""So many are shown; a broken run can have one for each file."""


@click.command()
@json_option
@pass_context
@click.pass_context
def demo(ctx: click.Context, context: Context, as_json: bool) -> None:
    """Index Python's standard library with two workers, kill a child at work, and check the sums.

    It runs on an embedded server of its own, or on that of --url in a namespace of its own, and leaves nothing behind.
    The task that it runs is rsq/demo/tasks.py. Exit code 1: the sums differ, or an outcome is missing or doubled.

    \b
    Example:
      rsq demo
      rsq --url redis://localhost:6379/0 demo --json
    """
    try:
        report = run(context.overrides, _Terminal(sys.stderr if as_json else sys.stdout))
    except KeyboardInterrupt:
        click.echo("\nstopped; workers, server and files of the demo are gone", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    except WorkerLost as error:
        click.echo(f"rsq: {error}", err=True)
        ctx.exit(1)
    if as_json:
        print_json(asdict(report))
    else:
        _print(report)
    if report.problems:
        hidden = len(report.problems) - MOST_PROBLEMS
        more = [f"and {plural(hidden, 'more line')} of this kind"] if hidden > 0 else []
        lines = ["rsq: this is not as it must be:", *report.problems[:MOST_PROBLEMS], *more, report.log]
        click.echo("\n".join(lines), err=True)
        ctx.exit(1)
    if not as_json:
        click.echo("\nEvery file has one outcome, and the sums are equal.")
        click.echo("Next: rsq --help, and README.md for a task of your own.")


class _Terminal:
    """Shows a run on a stream; where that is no terminal, a bar is just its label."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, text: str) -> None:
        click.echo(text, file=self._stream)

    @contextmanager
    def progress(self, label: str, length: int) -> Iterator[Advance]:
        with click.progressbar(
            length=length,
            label=label,
            width=24,  # the whole line fits into 80 columns
            show_eta=False,
            show_pos=True,
            item_show_func=lambda note: note,
            file=self._stream,
        ) as bar:
            yield lambda done, note: bar.update(done - bar.pos, note)


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
    click.echo()
    print_table(("OUTCOME", "NUMBER", ""), [(name, f"{number:,}", note) for name, number, note in rows], right=[1])
    click.echo()
    print_table(
        ("SUM", "THROUGH THE QUEUE", "WITHOUT A QUEUE"),
        [
            *((name, f"{report.with_queue[name]:,}", f"{report.without_queue[name]:,}") for name in SUMMED),
            ("seconds", f"{report.queue_s:.1f}", f"{report.direct_s:.1f}"),
        ],
        right=[1, 2],
    )
