"""`rsq call` and `rsq result`: send one call, read one result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from rsq.calls.output import WELL, Gap, Item, Seen
from rsq.calls.retry import error_of
from rsq.cli.common import Context, json_option, pass_context, plural, timeout_option
from rsq.cli.out import block, document, record, say, shown
from rsq.cli.params import Seconds, TakesNumbers, mapping_of, value_of
from rsq.errors import EncodeError, ResultTimeout, SettingsError
from rsq.result import AsyncResult
from rsq.states import State

EXIT_FAILED = 1
EXIT_NOT_READY = 3


@click.command(cls=TakesNumbers)
@click.argument("task")
@click.argument("arguments", nargs=-1)
@click.option("-Q", "--queue", help="Queue; default: the task's.")
@click.option("--kwargs", metavar="JSON", help="Keyword arguments as a JSON object.")
@click.option("--countdown", type=Seconds(), help="Seconds to wait before it starts.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, 9 is the most urgent.")
@click.option("--dedupe-key", help="Send it only if no call with this key was sent before.")
@click.option("--task-id", help="An id of your own; the same id is not sent twice.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@timeout_option(60.0, "")
@json_option
@pass_context
def call(
    context: Context,
    task: str,
    arguments: tuple[str, ...],
    queue: str | None,
    kwargs: str | None,
    countdown: float | None,
    priority: int | None,
    dedupe_key: str | None,
    task_id: str | None,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Send a call of TASK with ARGUMENTS: JSON values, or plain text where they are none.

    Without -A the name is sent as it is; with it, the name and the arguments are checked first.

    \b
    Example:
      rsq -A shop.tasks call shop.tasks.add 1 2 --wait
      rsq call shop.tasks.send_welcome 42 --countdown 30
    """
    app = context.app_or_plain()
    if app.tasks:
        app.get_task(task)
    options = {"countdown": countdown, "priority": priority, "dedupe_key": dedupe_key, "task_id": task_id}
    try:
        sent = app.send_task(task, [value_of(text) for text in arguments], mapping_of(kwargs), queue=queue, **options)
    except EncodeError:
        raise
    except TypeError as error:  # arguments that do not fit the signature
        raise SettingsError(str(error)) from None
    if not wait:
        if as_json:
            document({"id": sent.id, "queue": sent.queue, "duplicate": sent.duplicate})
        else:
            say(f"{sent.id}{' (sent before)' if sent.duplicate else ''}")
        return
    _show(sent, timeout, document if as_json else None)


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("-Q", "--queue", help="Queue; default: all that are known.")
@click.option("--wait", is_flag=True, help="Wait until there is a result.")
@click.option("--follow", is_flag=True, help="Print what the call emits as it comes, until its end, then its result.")
@click.option("--after", metavar="CURSOR", help="With --follow: begin behind this item.")
@timeout_option(60.0, "for a result, with --follow for the next item")
@json_option
@pass_context
def result(
    context: Context,
    task_id: str,
    queue: str | None,
    wait: bool,
    follow: bool,
    after: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Print the result of a call. Exit code 0 when it succeeded, 1 when it failed, 3 when there is none yet.

    Without -Q every known queue is searched. With --follow and --json each line is a document of its own.

    \b
    Example:
      rsq result 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1 --wait
      rsq result 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1 --follow
    """
    handle: AsyncResult[Any] = context.app_or_plain().AsyncResult(task_id, queue)
    if after is not None and not follow:
        raise SettingsError("--after says nothing without --follow")
    if follow:
        _follow(handle, after, timeout, as_json)
    tell = (record if follow else document) if as_json else None
    _show(handle, timeout if wait else 0.0, tell)


def _follow(handle: AsyncResult[Any], after: str | None, timeout: float, as_json: bool) -> None:
    """Print what comes of a call, until it ends or nothing has come for too long. Exits where there is no result."""
    stream = handle.stream(after, timeout, propagate=False)
    try:
        for seen in stream:
            _show_seen(seen, as_json)
    except ResultTimeout:
        return
    if handle.result_record() is None:
        if as_json:
            record({"id": handle.id, "ended": stream.ended})
        else:
            say(f"{stream.ended}, without a result", err=True)
        sys.exit(0 if stream.ended in WELL else EXIT_FAILED)


def _show_seen(seen: Seen, as_json: bool) -> None:
    if as_json:
        record({"kind": type(seen).__name__, **vars(seen)})
    elif isinstance(seen, Item):
        say(shown(seen.value))
    elif isinstance(seen, Gap):
        say(f"({plural(seen.count, 'value')} missing)", err=True)
    else:
        say(f"(run {seen.run}: it began anew)", err=True)


def _show(handle: AsyncResult[Any], timeout: float, tell: Callable[[object], None] | None) -> None:
    """Print what has come of a call; by `tell`, where that is to be JSON. Exits."""
    try:
        handle.get(timeout=timeout, propagate=False)
    except ResultTimeout:
        state = handle.state
        if tell is not None:
            tell({"id": handle.id, "state": str(state)})
        else:
            when = f"within {timeout:g} s" if timeout else "yet"
            hint = "; rsq status tells whether a worker reads its queue" if state is State.PENDING else ""
            say(f"{state}: no result of {handle.id} {when}{hint}", err=True)
        sys.exit(EXIT_NOT_READY)
    kept = handle.result_record()
    assert kept is not None, "get() came back with one"
    if tell is not None:
        tell(
            {
                "id": handle.id,
                "state": kept.state.value,
                "attempt": kept.attempt,
                "runtime_s": kept.runtime_s,
                "value": kept.value,
                "error": kept.error,
                "reason": kept.reason,
            }
        )
    elif kept.state is State.SUCCESS:
        say(shown(kept.value))
    elif kept.error is not None:
        say(f"FAILURE (attempt {kept.attempt}): {error_of(kept.error)}", err=True)
        block(str(kept.error.get("traceback", "")).rstrip(), err=True)
    else:
        say(f"REVOKED: {kept.reason}", err=True)
    sys.exit(0 if kept.state is State.SUCCESS else EXIT_FAILED)
