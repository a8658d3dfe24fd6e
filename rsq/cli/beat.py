"""`rsq beat`: fire schedules."""

from __future__ import annotations

import sys

import click

from rsq.beat.process import run_beat
from rsq.cli.common import Context, pass_context
from rsq.cli.worker import LEVELS
from rsq.worker.logs import log_to_stderr


@click.command()
@click.option("-l", "--loglevel", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@pass_context
def beat(context: Context, loglevel: str) -> None:
    """Turn the slots of schedules into calls, until SIGTERM or Ctrl-C.

    Any number of beats may run: each slot is fired once. Run two or more, on different hosts, and no one of them is
    needed. The schedules of the app's code are written to the server at the start.

    \b
    Example:
      rsq -A shop.tasks:app beat
      RSQ_APP=shop.tasks rsq beat -l warning
    """
    log_to_stderr(loglevel)
    sys.exit(run_beat(context.app, lambda text: click.echo(text, err=True)))
