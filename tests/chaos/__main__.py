"""``python -m tests.chaos --seconds 60 --seed 7``: a chaos run, a table, and exit code 1 on any violation.

``--runs`` makes one table of many runs, each with the next seed; what each came to is told meanwhile. Half an hour,
with the figures as they stand in `docs/guarantees.md`:

    python -m tests.chaos --seconds 120 --runs 15 --markdown

Who takes part can be chosen: `--only poison`, or `--without late_repeats --without freeze_server`.
"""

from __future__ import annotations

import sys
from functools import reduce
from operator import add

import click

from tests.chaos.driver import ACTORS, Chaos, Report
from tests.chaos.table import render, render_markdown
from tests.servers import CLUSTERS, ServerMissing


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long calls are sent.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is drawn.")
@click.option(
    "--runs", type=click.IntRange(1), default=1, show_default=True, help="Runs of so long, each with the next seed."
)
@click.option(
    "--server", type=click.Choice(["redis", "valkey", "redis62", *CLUSTERS]), help="Default: what the tests run on."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, each recovery included.")
@click.option(
    "--haste",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Share of the faults that do not wait for the end of others; what these hold up is not measured.",
)
@click.option("--only", multiple=True, type=click.Choice(ACTORS), help="Beside the producers; again for more of them.")
@click.option("--without", multiple=True, type=click.Choice(ACTORS), help="Leave one out; again for more of them.")
@click.option("--markdown", is_flag=True, help="Print the recovery as docs/guarantees.md has it.")
@click.option("--keep", is_flag=True, help="Keep journal and logs though nothing was violated.")
def main(
    seconds: float,
    seed: int,
    runs: int,
    server: str | None,
    as_json: bool,
    haste: float,
    only: tuple[str, ...],
    without: tuple[str, ...],
    markdown: bool,
    keep: bool,
) -> None:
    """Producers and workers at work, and a saboteur among them; then the check that nothing was lost or doubled."""
    actors = set(only or ACTORS) - set(without)
    reports: list[Report] = []
    for number in range(seed, seed + runs):
        try:
            reports.append(Chaos(seconds, number, server, haste, keep, actors).run())
        except ServerMissing as error:
            raise click.ClickException(str(error)) from None
        click.echo(f"seed {number}: {len(reports[-1].violations)} violations", err=True)
    report = reduce(add, reports)
    click.echo(report.as_json() if as_json else render_markdown(report) if markdown else render(report))
    sys.exit(1 if report.violations else 0)


main()
