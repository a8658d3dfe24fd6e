"""`rsq inspect`: what the workers do."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import click

from rsq.broker.worker_inspect import Inspect
from rsq.cli.common import (
    Context,
    ago,
    json_option,
    local_time,
    no_workers,
    pass_context,
    plural,
    shortened,
    timeout_option,
    worker_option,
)
from rsq.cli.out import EXIT_NO, document, say, table

_limit = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Most calls of one worker, or queue."
)


@click.group()
def inspect() -> None:
    """Look at workers. Exit code 1 when there is none, or one does not answer: then its last report is shown.

    \b
    Example:
      rsq inspect active
      rsq inspect stats --worker vm-20699-6eb1
    """


def _asks(
    question: Callable[[Inspect], dict[str, Any]], option: Callable[[Any], Any] = lambda command: command
) -> Callable[[Callable[[dict[str, Any]], None]], click.Command]:
    """A command that asks the workers this, and shows by the decorated function what they answered, if they did.

    Standard error tells who did not. option: one that it has beside the usual ones
    """

    def made(show: Callable[[dict[str, Any]], None]) -> click.Command:
        @inspect.command(show.__name__, help=show.__doc__)
        @worker_option
        @timeout_option(1.0, "for workers to answer")
        @option
        @json_option
        @pass_context
        def command(context: Context, /, workers: tuple[str, ...], timeout: float, as_json: bool, **limit: int) -> None:
            look = context.app_or_plain().inspect(workers or None, timeout, **limit)
            found = question(look)
            if as_json:
                document(found)
            elif found:
                show(found)
            for worker, at_ms in look.silent.items():
                say(f"{worker}: no answer; its last report was {ago(at_ms)}", err=True)
            if not found and not look.silent:
                no_workers()
            sys.exit(EXIT_NO if look.silent or not found else 0)

        return command

    return made


@_asks(Inspect.active)
def active(found: dict[str, Any]) -> None:
    """The calls that run now.

    \b
    Example:
      rsq inspect active
      rsq inspect active --worker vm-20699-6eb1 --json
    """
    rows = [
        (worker, row["worker_pid"], row["name"], row["id"], row["queue"], ago(int(row["time_start"] * 1000)))
        for worker, rows in found.items()
        for row in rows
    ]
    _table(("WORKER", "PID", "TASK", "ID", "QUEUE", "STARTED"), rows, "nothing runs")


@_asks(Inspect.reserved, _limit)
def reserved(found: dict[str, Any]) -> None:
    """The calls that a worker has fetched and not begun: about 100 ms of work, and none behind long tasks.

    \b
    Example:
      rsq inspect reserved
    """
    rows = [
        (worker, row["name"], row["id"], row["queue"], row["priority"])
        for worker, rows in found.items()
        for row in rows
    ]
    _table(("WORKER", "TASK", "ID", "QUEUE", "PRIORITY"), rows, "nothing is fetched ahead")


@inspect.command()
@worker_option
@_limit
@json_option
@pass_context
def scheduled(context: Context, workers: tuple[str, ...], limit: int, as_json: bool) -> None:
    """The delayed calls and retries, the next ones first, by queue: no worker holds them. It asks no worker.

    \b
    Example:
      rsq inspect scheduled
      rsq inspect scheduled --limit 1000 --json
    """
    found = context.app_or_plain().inspect(workers or None, limit=limit).scheduled()
    if as_json:
        document(found)
        return
    rows = [
        (queue, row["name"], row["id"], local_time(int(row["eta"] * 1000)), row["attempt"])
        for queue, rows in found.items()
        for row in rows
    ]
    _table(("QUEUE", "TASK", "ID", "DUE", "ATTEMPT"), rows, "nothing is delayed")
    for queue, some in found.items():
        if len(some) == limit:
            say(f"of queue {queue} only {plural(limit, 'call')}: there may be more (--limit)", err=True)


@_asks(Inspect.stats)
def stats(found: dict[str, Any]) -> None:
    """Figures of each worker: what it has done, its processes and their memory.

    \b
    Example:
      rsq inspect stats
      rsq inspect stats --json | jq 'map_values(.pool.processes | length)'
    """
    for worker, each in found.items():
        pool = each["pool"]
        wanted = "" if pool["wanted"] == pool["children"] else f", {pool['wanted']} wanted"
        say(f"{worker}{' (stopping)' if each['stopping'] else ''}")
        say(f"  app       {each['app']}")
        say(f"  queues    {', '.join(each['queues'])}")
        say(f"  host      {each['host']}, pid {each['pid']}, {_mib(each['rss'])}")
        say(f"  uptime    {_duration(each['uptime'])}, lease {each['lease']:g} s")
        say(f"  done      {plural(each['done'], 'task')}")
        at_once = plural(pool["max-concurrency"], "task")
        say(f"  children  {pool['children']} ({pool['implementation']}, {at_once} at once){wanted}")
        for process in pool["processes"]:
            done = plural(process["done"], "task") if process["working"] else "starting"
            say(f"    pid {process['pid']}: {done}, {_mib(process['rss'])}")


@_asks(Inspect.registered)
def registered(found: dict[str, Any]) -> None:
    """The tasks that each worker knows.

    \b
    Example:
      rsq inspect registered
    """
    for worker, names in found.items():
        say(worker)
        for name in names:
            say(f"  {name}")


@_asks(Inspect.ping)
def ping(found: dict[str, Any]) -> None:
    """Which workers answer. A busy one does, too, for its supervisor runs no tasks.

    \b
    Example:
      rsq inspect ping
      rsq inspect ping --worker vm-20699-6eb1 --timeout 3
    """
    for worker in found:
        say(f"{worker}: pong")


def _table(titles: tuple[str, ...], rows: Iterable[tuple[object, ...]], nothing: str) -> None:
    cells = [[shortened(cell, 60) for cell in row] for row in rows]
    if cells:
        table(titles, cells)
    else:
        say(nothing)


def _mib(size: int | None) -> str:
    return "memory unknown" if size is None else f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    return ago(int((time.time() - seconds) * 1000)).removesuffix(" ago")
