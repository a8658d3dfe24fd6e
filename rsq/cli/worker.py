"""`rsq worker`: consume queues."""

from __future__ import annotations

import sys
from io import TextIOWrapper

import click

from rsq.cli.common import Context, loglevel_option, pass_context
from rsq.cli.out import block
from rsq.cli.params import Seconds, needless
from rsq.errors import SettingsError
from rsq.worker.children import WorkerOptions
from rsq.worker.logs import log_to_stderr
from rsq.worker.processors import processors
from rsq.worker.solo import run_solo
from rsq.worker.supervisor import Supervisor
from rsq.worker.turns import parse_queues

COROUTINES = 100
"""Tasks at once with -P asyncio, where -c says nothing: they wait more than they compute."""

_CELERYS = {
    "-n,--hostname=": "a worker names itself by its host and process, see rsq status",
    "-E,--task-events,--events": "rsq inspect and rsq status ask the server at any time",
    "-O,--optimization=": "a child never holds short tasks back behind a long one",
    "--without-gossip": "workers do not talk to each other",
    "--without-mingle": "workers do not talk to each other",
    "--without-heartbeat": "a worker's lease (--lease) tells that it lives",
    "--heartbeat-interval=": "a worker's lease (--lease) tells that it lives",
    "--autoscale=": "take the greatest number as -c, or rsq control pool-grow while it runs",
    "--prefetch-multiplier=": "a child fetches by time; where that does not fit there is the setting prefetch_ms",
    "--time-limit=": "give it to the tasks, or to all with App(task_defaults={'time_limit': ...})",
    "--soft-time-limit=": "give it to the tasks, or to all with App(task_defaults={'soft_time_limit': ...})",
    "-f,--logfile=": "the log goes to standard error, for whatever keeps it",
    "--pidfile=": "the process stays in the foreground, and rsq health finds it",
    "-S,--statedb=": "what was revoked is remembered by the server",
}


@click.command()
@click.option(
    "-Q",
    "--queues",
    multiple=True,
    help="Queues: in strict order, critical,default, or by weights, critical:6,default:3. Default: all tasks name.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 10_000),
    help="Tasks at once; default: the number of processors, and 100 with -P asyncio.",
)
@click.option(
    "-P",
    "--pool",
    type=click.Choice(["prefork", "threads", "asyncio", "solo"]),
    default="prefork",
    show_default=True,
    help="How tasks run: each in a process of its own, or as threads or coroutines of one process.",
)
@loglevel_option
@click.option("-B", "--beat", is_flag=True, help="Run a beat beside the children, for small set-ups. See rsq beat.")
@click.option("--max-tasks-per-child", type=click.IntRange(1), help="Replace a child after this many tasks.")
@click.option(
    "--max-memory-per-child", type=click.IntRange(1), help="Replace a child that has grown beyond so many MiB."
)
@click.option(
    "--reload", is_flag=True, help="For development: load the code anew when a Python file in this directory changes."
)
@click.option("--shutdown-timeout", type=Seconds(), help="Seconds that running tasks have to end on SIGTERM.")
@click.option("--lease", type=Seconds(0.5), help="Seconds of silence after which a worker's messages go to others.")
@click.option("--log-arguments", is_flag=True, default=None, help="Write the arguments of calls into the log.")
@needless(_CELERYS)
@pass_context
def worker(
    context: Context,
    queues: tuple[str, ...],
    concurrency: int | None,
    pool: str,
    loglevel: str,
    beat: bool,
    max_tasks_per_child: int | None,
    max_memory_per_child: int | None,
    reload: bool,
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
      rsq -A shop.tasks worker -Q critical:6,default:3,low:1
      RSQ_APP=shop.tasks rsq worker -Q default -l warning
    """
    log_to_stderr(loglevel)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what tasks print is seen at once, in a file or a pipe, too
    given = {"shutdown_timeout_s": shutdown_timeout, "lease_s": lease, "log_arguments": log_arguments}
    overrides = context.overrides | {name: value for name, value in given.items() if value is not None}
    weights = parse_queues(",".join(queues)) if queues else {}
    options = WorkerOptions(
        app=context.app_name,
        queues=tuple(weights),
        weights={name: weight for name, weight in weights.items() if weight},
        concurrency=concurrency or (COROUTINES if pool == "asyncio" else processors()),
        overrides=overrides,
        max_tasks=max_tasks_per_child,
        beat=beat,
        pool=pool,
        max_memory_mib=max_memory_per_child,
        reload=reload,
    )
    if beat and pool == "solo":
        raise SettingsError("-B needs a supervisor: beside -P solo run rsq beat")
    if reload and pool == "solo":
        raise SettingsError("--reload needs a supervisor: take another -P")

    def announce(text: str) -> None:
        block(text, err=True)

    sys.exit(run_solo(options, announce) if pool == "solo" else Supervisor(options, announce).run())
