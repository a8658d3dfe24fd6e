"""``python -m tests.chaos --seconds 60 --seed 7``: one chaos run, a table, and exit code 1 on any violation."""

from __future__ import annotations

import sys

import click

from tests.chaos.driver import Chaos
from tests.chaos.table import render
from tests.servers import ServerMissing


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long calls are sent.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is drawn.")
@click.option("--server", type=click.Choice(["redis", "valkey", "redis62"]), help="Default: what the tests run on.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, each recovery included.")
@click.option("--keep", is_flag=True, help="Keep journal and logs though nothing was violated.")
def main(seconds: float, seed: int, server: str | None, as_json: bool, keep: bool) -> None:
    """Producers and workers at work, and a saboteur among them; then the check that nothing was lost or doubled."""
    try:
        report = Chaos(seconds, seed, server, keep=keep).run()
    except ServerMissing as error:
        raise click.ClickException(str(error)) from None
    click.echo(report.as_json() if as_json else render(report))
    sys.exit(1 if report.violations else 0)


main()
