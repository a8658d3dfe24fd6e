"""`rsq revoke`: have calls not run."""

from __future__ import annotations

import sys

import click

from rsq.cli.common import Context, json_option, pass_context, print_json

EXIT_ENDED = 1

_MEANINGS = {
    "revoked": "revoked",
    "marked": "revoked: it will not start, unless it runs already",
    "done": "had ended before",
}
_TERMINATED = "revoked: it will not start, and is interrupted if it runs"


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("-Q", "--queue", help="Queue of the calls; default: all that are known.")
@click.option("--terminate", is_flag=True, help="Interrupt those that run: TaskRevoked is raised in them.")
@json_option
@pass_context
def revoke(context: Context, task_ids: tuple[str, ...], queue: str | None, terminate: bool, as_json: bool) -> None:
    """Have each call not run. Exit code 1 when all had ended before.

    A delayed call ends at once. One that waits never starts: the worker that comes to it settles it as REVOKED. One
    that runs goes on to its end, unless --terminate is given.

    \b
    Example:
      rsq revoke 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1
      rsq revoke 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1 --terminate
    """
    answers = context.app_or_plain().revoke(*task_ids, terminate=terminate, queue=queue)
    if as_json:
        print_json(answers)
    else:
        for task_id, answer in answers.items():
            click.echo(f"{task_id} {_TERMINATED if terminate and answer == 'marked' else _MEANINGS[answer]}")
    sys.exit(EXIT_ENDED if set(answers.values()) == {"done"} else 0)
