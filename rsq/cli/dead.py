"""`rsq dead`: look at dead letters, send them again, delete them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from rsq.broker import dead_letters as letters
from rsq.broker.connection import Link
from rsq.broker.dead_letters import DeadLetter
from rsq.broker.queue import Queue
from rsq.calls.retry import error_of
from rsq.cli.common import (
    Context,
    json_option,
    local_time,
    pass_context,
    plural,
    queue_of,
    queue_option,
    shortened,
)
from rsq.cli.out import EXIT_NO, block, confirm, document, fail, say, shown, table
from rsq.errors import DecodeError, DuplicateCall, FlowGone, SettingsError


@click.group()
def dead() -> None:
    """Dead letters: calls that were given up, kept for you.

    \b
    Example:
      rsq dead list
      rsq dead redrive --task shop.tasks.send_welcome
    """


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--reason", help="Only those with this reason, such as failed or worker-lost."),
        click.option("--task", help="Only those of this task."),
        queue_option,
    ):
        command = option(command)
    return command


@dead.command("list")
@_filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@json_option
@pass_context
def list_(context: Context, queue: str | None, task: str | None, reason: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first.

    \b
    Example:
      rsq dead list -Q mail --reason failed
    """
    client = context.app_or_plain().client
    with client.link() as link:
        letters = []
        for letter in _chosen(link, queue_of(client, queue), task, reason):
            letters.append(letter)
            if len(letters) == limit:
                break
    if as_json:
        document([_plain(letter) for letter in letters])
        return
    if not letters:
        say(f"no dead letters in queue {queue_of(client, queue).name}")
        return
    table(
        ("ID", "TASK", "REASON", "ATTEMPTS", "DIED", "ERROR"),
        [
            (
                letter.id,
                letter.task or "-",
                letter.reason,
                letter.attempts,
                local_time(letter.died_ms),
                shortened(error_of(letter.error), 60),
            )
            for letter in letters
        ],
    )


@dead.command()
@click.argument("task_id", metavar="ID")
@queue_option
@json_option
@pass_context
def show(context: Context, task_id: str, queue: str | None, as_json: bool) -> None:
    """Show one dead letter, with its arguments and traceback.

    \b
    Example:
      rsq dead show 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1
    """
    client = context.app_or_plain().client
    with client.link() as link:
        letter = letters.dead_letter(link, queue_of(client, queue), task_id)
    if letter is None:
        fail(f"no dead letter {task_id} in queue {queue_of(client, queue).name}; see rsq dead list", code=EXIT_NO)
    if as_json:
        document(_plain(letter))
        return
    arguments = letter.arguments()
    rows = [
        ("id", letter.id),
        ("task", letter.task or "-"),
        ("queue", letter.queue),
        ("reason", letter.reason),
        ("attempts", letter.attempts),
        ("priority", letter.priority),
        ("flow", letter.flow or "-"),
        *([("event", " of stream ".join(letter.event[::-1]))] if letter.event else []),
        ("last sent", local_time(letter.sent_ms) if letter.sent_ms else "-"),
        ("died", local_time(letter.died_ms)),
        ("error", error_of(letter.error)),
        ("args", shown(arguments[0] if arguments else letter.body)),
        ("kwargs", shown(arguments[1]) if arguments else "-"),
    ]
    for name, value in rows:
        say(f"{name:<10} {value}")
    if letter.error.get("traceback"):
        say("")
        block(str(letter.error["traceback"]).rstrip())


@dead.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="All of the queue, without naming ids.")
@click.option("--alone", is_flag=True, help="Without the flow that it was part of, which nothing of this carries on.")
@pass_context
def redrive(
    context: Context,
    task_ids: tuple[str, ...],
    queue: str | None,
    task: str | None,
    reason: str | None,
    everything: bool,
    alone: bool,
) -> None:
    """Send dead letters again, each under its old id and as a first attempt.

    \b
    Example:
      rsq dead redrive 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1
      rsq dead redrive -Q mail --task shop.tasks.send_welcome
    """
    client = context.app_or_plain().client
    target = queue_of(client, queue)
    sent = refused = 0
    missing = dict.fromkeys(task_ids)
    with client.link() as link:
        for letter in _named(link, target, task_ids, task, reason, everything):
            _strike(letter, missing)
            try:
                sent += letters.redrive(link, target, letter, alone)
            except (DecodeError, DuplicateCall, FlowGone) as error:
                refused += 1
                say(f"rsq: {error}", err=True)
    _say_missing(missing, target)
    say(f"sent {plural(sent, 'dead letter')} of queue {target.name} again")
    sys.exit(1 if refused or (task_ids and not sent) else 0)


@dead.command()
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="All of the queue, without naming ids.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def purge(
    context: Context,
    task_ids: tuple[str, ...],
    queue: str | None,
    task: str | None,
    reason: str | None,
    everything: bool,
    yes: bool,
) -> None:
    """Delete dead letters for good.

    \b
    Example:
      rsq dead purge -Q mail --reason undecodable --yes
    """
    client = context.app_or_plain().client
    target = queue_of(client, queue)
    with client.link() as link:
        named = list(_named(link, target, task_ids, task, reason, everything))
        missing = dict.fromkeys(task_ids)
        for letter in named:
            _strike(letter, missing)
        _say_missing(missing, target)
        if named and not yes:
            confirm(f"Delete {plural(len(named), 'dead letter')} of queue {target.name}?")
        deleted = letters.delete_dead(link, target, named)
    say(f"deleted {plural(deleted, 'dead letter')} of queue {target.name}")
    sys.exit(1 if task_ids and not deleted else 0)


def _chosen(link: Link, queue: Queue, task: str | None, reason: str | None, **order: bool) -> Iterator[DeadLetter]:
    for letter in letters.dead_letters(link, queue, **order):
        if (task is None or letter.task == task) and (reason is None or letter.reason == reason):
            yield letter


def _named(
    link: Link, queue: Queue, ids: tuple[str, ...], task: str | None, reason: str | None, everything: bool
) -> Iterator[DeadLetter]:
    """The letters that a command means, oldest first. Raises SettingsError when it names none."""
    if not ids and not task and not reason and not everything:
        raise SettingsError("say which: task ids, --task, --reason, or --all for the whole queue")
    for letter in _chosen(link, queue, task, reason, newest_first=False):
        if not ids or letter.id in ids or letter.entry_id in ids:
            yield letter


def _strike(letter: DeadLetter, missing: dict[str, None]) -> None:
    """It has been found."""
    missing.pop(letter.id, None)
    missing.pop(letter.entry_id, None)


def _say_missing(missing: Iterable[str], queue: Queue) -> None:
    for task_id in missing:
        say(f"rsq: no such dead letter: {task_id} in queue {queue.name}; see rsq dead list", err=True)


def _plain(letter: DeadLetter) -> dict[str, Any]:
    arguments = letter.arguments()
    return {
        "entry_id": letter.entry_id,
        "id": letter.id,
        "task": letter.task,
        "queue": letter.queue,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "priority": letter.priority,
        "flow": letter.flow,
        "event": letter.event,
        "sent_ms": letter.sent_ms,
        "died_ms": letter.died_ms,
        "args": arguments[0] if arguments else None,
        "kwargs": arguments[1] if arguments else None,
        "raw": None if arguments else letter.body,
    }
