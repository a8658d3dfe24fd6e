"""`rsq worker`: consume queues."""

from __future__ import annotations

import logging
import os
import sys

import click

from rsq.cli.common import Context, pass_context
from rsq.errors import SettingsError
from rsq.worker.children import WorkerOptions
from rsq.worker.solo import run_solo
from rsq.worker.supervisor import Supervisor

LEVELS = ("debug", "info", "warning", "error")


@click.command()
@click.option("-Q", "--queues", help="Queues, the first first: critical,default. Default: all that the tasks name.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 1000), help="Child processes; default: the number of processors."
)
@click.option("-P", "--pool", type=click.Choice(["prefork", "solo"]), default="prefork", show_default=True)
@click.option("-l", "--loglevel", type=click.Choice(LEVELS, case_sensitive=False), default="info", show_default=True)
@click.option("-B", "--beat", is_flag=True, help="Run a beat beside the children, for small set-ups. See rsq beat.")
@click.option("--max-tasks-per-child", type=click.IntRange(1), help="Replace a child after this many tasks.")
@click.option("--shutdown-timeout", type=click.FloatRange(0), help="Seconds that running tasks have to end on SIGTERM.")
@click.option(
    "--lease", type=click.FloatRange(0.5), help="Seconds of silence after which a worker's messages go to others."
)
@click.option("--log-arguments", is_flag=True, default=None, help="Write the arguments of calls into the log.")
@pass_context
def worker(
    context: Context,
    queues: str | None,
    concurrency: int | None,
    pool: str,
    loglevel: str,
    beat: bool,
    max_tasks_per_child: int | None,
    shutdown_timeout: float | None,
    lease: float | None,
    log_arguments: bool | None,
) -> None:
    """Run tasks until SIGTERM or Ctrl-C.

    The first signal stops reading, hands back what has not begun, and lets running tasks end; the second one hands
    those back, too, with no attempt counted.

    \b
    Example:
      rsq -A shop.tasks:app worker -Q critical,default -c 4
      RSQ_APP=shop.tasks rsq worker -Q default -l warning
    """
    logging.basicConfig(
        level=loglevel.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(process)d %(message)s"
    )
    given = {"shutdown_timeout_s": shutdown_timeout, "lease_s": lease, "log_arguments": log_arguments}
    overrides = context.overrides | {name: value for name, value in given.items() if value is not None}
    names = tuple(dict.fromkeys(name.strip() for name in queues.split(",") if name.strip())) if queues else ()
    children = concurrency or os.cpu_count() or 1
    options = WorkerOptions(context.app_name, names, children, overrides, max_tasks_per_child, beat)
    if beat and pool == "solo":
        raise SettingsError("-B needs -P prefork: beside -P solo run rsq beat")

    def announce(text: str) -> None:
        click.echo(text, err=True)

    sys.exit(run_solo(options, announce) if pool == "solo" else Supervisor(options, announce).run())
