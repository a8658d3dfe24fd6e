"""`rsq beat`: fire schedules."""

from __future__ import annotations

import logging
import sys

import click

from rsq.beat.process import run_beat
from rsq.cli.common import Context, pass_context
from rsq.cli.worker import LEVELS


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
    logging.basicConfig(
        level=loglevel.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(process)d %(message)s"
    )
    sys.exit(run_beat(context.app(), lambda text: click.echo(text, err=True)))
