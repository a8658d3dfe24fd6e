"""`rsq revoke` and `rsq control`: have calls not run, and tell workers what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import click

from rsq.broker.worker_control import Told
from rsq.cli.common import Context, json_option, no_workers, pass_context, plural, timeout_option, worker_option
from rsq.cli.out import EXIT_NO, confirm, document, say
from rsq.cli.params import value_of
from rsq.errors import SettingsError

_MEANINGS = {
    "revoked": "revoked",
    "marked": "revoked: it will not start, unless it runs already",
    "done": "had ended before",
}
_STAMPED = "revoked: no call with this stamp will start, unless it runs already"
_TERMINATED = (
    "revoked: it will not start, and is interrupted if it runs",
    "revoked: no call with this stamp will start, and those that run are interrupted",
)


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1)
@click.option("--stamp", "stamps", metavar="NAME=VALUE", multiple=True, help="All calls with this stamp, for a day.")
@click.option("-Q", "--queue", help="Queue of the calls of these ids; default: all that are known.")
@click.option("--terminate", is_flag=True, help="Interrupt those that run: TaskRevoked is raised in them.")
@json_option
@pass_context
def revoke(
    context: Context,
    task_ids: tuple[str, ...],
    stamps: tuple[str, ...],
    queue: str | None,
    terminate: bool,
    as_json: bool,
) -> None:
    """Have each call not run. Exit code 1 when all had ended before.

    A delayed call ends at once. One that waits never starts: the worker that comes to it settles it as REVOKED. One
    that runs goes on to its end, unless --terminate is given.

    \b
    Example:
      rsq revoke 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1
      rsq revoke 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1 --terminate
      rsq revoke --stamp customer=42
    """
    if not (task_ids or stamps):
        raise click.UsageError("Missing argument 'ID...', or --stamp NAME=VALUE.")
    app = context.app_or_plain()
    wanted = [_stamp_of(text) for text in stamps]
    answers = app.revoke(*task_ids, terminate=terminate, queue=queue) if task_ids else {}
    for name, value in wanted:
        app.control.revoke_by_stamped_headers({name: value}, terminate)
    answers |= dict.fromkeys(stamps, "marked")
    if as_json:
        document(answers)
    else:
        for each, answer in answers.items():
            marked = _STAMPED if each in stamps else _MEANINGS["marked"]
            marked = _TERMINATED[each in stamps] if terminate else marked
            say(f"{each} {marked if answer == 'marked' else _MEANINGS[answer]}")
    sys.exit(EXIT_NO if set(answers.values()) == {"done"} else 0)


def _stamp_of(text: str) -> tuple[str, Any]:
    """Name and value of a stamp. Raises SettingsError."""
    name, given, value = text.partition("=")
    if not (name and given):
        raise SettingsError(f"--stamp takes NAME=VALUE, such as customer=42, not {text!r}")
    return name, value_of(value)


@click.group()
def control() -> None:
    """Tell workers what to do; exit code 1 when one does not answer.

    What is told stands on the server as long as the worker lives: one that is cut off hears of it when it is back.

    \b
    Example:
      rsq control pool-grow 2 --worker vm-20699-6eb1
    """


def _for_workers(command: Callable[..., None]) -> Callable[..., None]:
    """The options of all of these commands."""
    for option in (pass_context, json_option, timeout_option(5.0, "for the effect"), worker_option):
        command = option(command)
    return command


@control.command()
@click.option("--yes", is_flag=True, help="Do not ask, where no worker is named.")
@_for_workers
def shutdown(context: Context, workers: tuple[str, ...], timeout: float, yes: bool, as_json: bool) -> None:
    """Stop workers as SIGTERM does: what has not begun goes to others, running tasks have their time to end.

    \b
    Example:
      rsq control shutdown --worker vm-20699-6eb1
      rsq control shutdown --yes
    """
    app = context.app_or_plain()
    if not workers and not yes:
        live = app.control.workers()
        if live:
            confirm(f"Stop {plural(len(live), 'worker')} ({', '.join(live)})?")
    _show(app.control.shutdown(workers or None, timeout), as_json)


_number = click.argument("number", metavar="[N]", type=click.IntRange(1), default=1)


@control.command("pool-grow")
@_number
@_for_workers
def pool_grow(context: Context, number: int, workers: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Give each worker N children more (1). With threads and asyncio each has as many tasks at once as -c says.

    \b
    Example:
      rsq control pool-grow
      rsq control pool-grow 4 --worker vm-20699-6eb1
    """
    _show(context.app_or_plain().control.pool_grow(number, workers or None, timeout), as_json)


@control.command("pool-shrink")
@_number
@_for_workers
def pool_shrink(context: Context, number: int, workers: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Take N children (1) from each worker, idle ones first. What runs in them ends in its own time.

    \b
    Example:
      rsq control pool-shrink
      rsq control pool-shrink 4 --worker vm-20699-6eb1
    """
    _show(context.app_or_plain().control.pool_shrink(number, workers or None, timeout), as_json)


def _show(told: Mapping[str, Told], as_json: bool) -> None:
    if as_json:
        document({name: asdict(each) for name, each in told.items()})
    elif not told:
        no_workers()
    for name, each in () if as_json else told.items():
        say(f"{name}: {each.says}", err=not each.heard)
    sys.exit(0 if told and all(each.heard for each in told.values()) else EXIT_NO)
