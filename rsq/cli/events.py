"""`rsq events`: what is in a stream of events, and the same events once more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from rsq.broker.connection import Endpoint
from rsq.broker.event_stream import EventStream
from rsq.calls.source import BEGINNING, NEW, before
from rsq.cli.common import Context, json_option, local_time, pass_context, plural
from rsq.cli.out import record, say
from rsq.errors import BrokerUnavailable, SettingsError
from rsq.streams.replay import TIMEOUT_S, Replay, source_of

LONGEST_VALUE = 200
"""Characters of a name or value that are shown; JSON has all."""

MOST_FIELDS = 50
"""Fields of an event that are shown; JSON has all."""

PAGE, BLOCK_MS = 100, 1000

AGAIN_S = 1.0
"""Between two tries while the server is away."""


@click.group()
def events() -> None:
    """Streams of events that others write: look at one, and have its events run again."""


@events.command()
@click.argument("stream")
@click.option("-n", "--number", type=click.IntRange(0, 100_000), default=10, show_default=True, help="So many events.")
@click.option("--from", "first", metavar="ID", help="From this event on; default: the newest ones.")
@click.option("-f", "--follow", is_flag=True, help="Then show what comes, until Ctrl-C.")
@json_option
@pass_context
def tail(context: Context, stream: str, number: int, first: str | None, follow: bool, as_json: bool) -> None:
    """Show the newest events of STREAM, the oldest of them first. It changes nothing.

    Long names and values are cut, and so is an event of very many fields. With --json each event is a document on a
    line of its own, with all that it has.

    \b
    Example:
      rsq events tail user_events -n 3
      rsq events tail user_events --follow --json | jq .event
    """
    position = before(first) if first is not None else None
    source = EventStream(Endpoint.of(context.app_or_plain().settings), stream, "", TIMEOUT_S)
    look = source.look()
    if look.last is None and not follow:
        raise SettingsError(f"there is no stream {stream}")
    if position is None:
        position = look.last or BEGINNING
        newest: list[tuple[bytes, list[bytes]]] = []
        while len(newest) < number:
            end = f"({newest[-1][0].decode()}" if newest else position
            page = source.newest(min(PAGE, number - len(newest)), end)
            newest += page
            if not page:
                break
        _show(newest[::-1], as_json)
    else:
        while number > 0 and (page := source.read(position, min(PAGE, number))):
            _show(page, as_json)
            number, position = number - len(page), page[-1][0].decode()
    while follow:
        try:
            page = source.read(position, PAGE, BLOCK_MS)
        except BrokerUnavailable as error:
            say(f"rsq: {error}; trying again", err=True)
            time.sleep(AGAIN_S)
            continue
        _show(page, as_json)
        position = page[-1][0].decode() if page else position


def _show(page: Sequence[tuple[bytes, list[bytes]]], as_json: bool) -> None:
    for number, fields in page:
        text = number.decode()
        values = [part.decode("utf-8", "backslashreplace") for part in fields]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if as_json:
            record({"id": text, "event": dict(pairs)})
        else:
            when = local_time(int(text.partition("-")[0]))
            shown = [f"{_short(name)}={_short(value)}" for name, value in pairs[:MOST_FIELDS]]
            more = [f"... and {len(pairs) - MOST_FIELDS} more"] if len(pairs) > MOST_FIELDS else []
            say("  ".join((text, when, *shown, *more)))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


@events.command()
@click.argument("stream")
@click.option("--group", metavar="NEW", required=True, help="Group for this alone, which nobody has had before.")
@click.option("--from", "first", metavar="ID", required=True, help="From this event on; 0 for all that are there.")
@click.option("--of", "of", metavar="GROUP", help="Group whose function runs, where the app reads it for several.")
@pass_context
def replay(context: Context, stream: str, group: str, first: str, of: str | None) -> None:
    """Have the events of STREAM run again, from one on and up to the last that is there now.

    They go into the queue of the group whose function runs, as other calls than before: NEW has ids and markers of its
    own. Where this is ended on its way, the same command goes on.

    \b
    Example:
      rsq -A shop.tasks events replay user_events --group again-1 --from 1732702630000-0
      rsq -A shop.tasks events replay user_events --group again-2 --from 0 --of registration
    """
    app = context.app()
    task: Any = source_of(app, stream, of)
    if first == NEW:
        raise SettingsError("--from takes the id of an event, or 0 for all that are there")
    run = Replay(app, task, group, first)
    fed = run.run(lambda what: say(f"rsq: {what}", err=True))
    say(f"{plural(fed, 'event')} of stream {stream} went into queue {task.options.queue} as those of group {group}")
