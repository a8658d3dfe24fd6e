"""`rsq beat`: fire schedules."""

from __future__ import annotations

import sys

import click

from rsq.beat.process import run_beat
from rsq.cli.common import Context, loglevel_option, pass_context
from rsq.cli.out import say
from rsq.cli.params import needless
from rsq.worker.logs import log_to_stderr

_CELERYS = {
    "-S,--scheduler=": "schedules lie on the server, in code or by rsq schedule add",
    "-s,--schedule=": "the server keeps what has been fired, and no file is needed",
    "--max-interval=": "a change is seen within a second",
    "--pidfile=": "any number of beats may run, and each slot is fired once",
    "-f,--logfile=": "the log goes to standard error, for whatever keeps it",
}


@click.command()
@loglevel_option
@needless(_CELERYS)
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
    sys.exit(run_beat(context.app, lambda text: say(text, err=True)))
