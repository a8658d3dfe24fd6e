"""`rsq status`, `rsq pause`, `rsq resume` and `rsq purge`: what the queues hold, and acts on whole queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from rsq.broker import queue_control
from rsq.broker.source_status import MOST_COUNTED, SourceInfo, sources
from rsq.broker.status import counts, workers
from rsq.broker.trimming import TrimInfo, trimmed
from rsq.cli.common import Context, ago, json_option, pass_context, plural, queue_of
from rsq.cli.out import confirm, document, say, table
from rsq.errors import SettingsError
from rsq.streams.retain import WHY, retentions_of


@click.command()
@click.option("-Q", "--queue", help="Only this queue.")
@json_option
@pass_context
def status(context: Context, queue: str | None, as_json: bool) -> None:
    """Show queues, the streams of events that feed them, and workers.

    \b
    Example:
      rsq status
      rsq status --json | jq '.queues[] | select(.dead > 0)'
    """
    app = context.app_or_plain()
    client = app.client
    names = [queue] if queue else client.queue_names()
    with client.link() as link:
        located = client.located(names)
        queues = [counts(link, queue) for queue in located]
        streams = sources(link, located)
        kept = [] if queue else [each.stream for each in retentions_of(app)]
        short = trimmed(link, list(dict.fromkeys([*(each.stream for each in streams), *kept])))
    alive = workers(client)
    if as_json:
        found: dict[str, Sequence[Any]] = {"queues": queues, "sources": streams, "trimmed": short, "workers": alive}
        document({name: [asdict(each) for each in some] for name, some in found.items()})
        return
    rows = [
        (
            q.queue + (" (paused, refuses calls)" if q.refusing else " (paused)" if q.paused else ""),
            q.ready,
            q.running,
            q.delayed,
            q.dead,
            q.counters.get("succeeded", 0),
            q.counters.get("retried", 0),
        )
        for q in queues
    ]
    table(("QUEUE", "READY", "RUNNING", "DELAYED", "DEAD", "SUCCEEDED", "RETRIED"), rows, right=range(1, 7))
    say("")
    if streams:
        show_sources(streams)
        say("")
    if short:
        show_trimmed(short)
        say("")
    if not alive:
        say("no workers: start one with rsq -A your.module worker")
        return
    table(
        ("WORKER", "APP", "QUEUES", "CHILDREN", "RUNNING", "STARTED"),
        [
            (
                w.id + (" (stopping)" if w.stopping else ""),
                w.app,
                ",".join(w.queues),
                f"{w.children} {w.executor}",
                len(w.running),
                ago(w.started_ms),
            )
            for w in alive
        ],
    )


def show_sources(streams: Sequence[SourceInfo]) -> None:
    """The table of the streams of events, and what is to be said of them."""
    table(
        ("STREAM", "GROUP", "QUEUE", "LENGTH", "UNREAD", "OLDEST"),
        [
            (
                s.stream,
                s.group,
                s.queue,
                "?" if s.problem else "missing" if s.length is None else s.length,
                f"{s.unread}{'+' * (s.unread >= MOST_COUNTED)}",
                "" if s.oldest_ms is None else ago(s.oldest_ms),
            )
            for s in streams
        ],
        right=(3, 4),
    )
    for s in streams:
        if s.problem:
            say(f"stream {s.stream}: {s.problem}")
        if s.lost:
            lost = f"{plural(s.lost, 'event')} or more were deleted before group {s.group} had read them"
            say(f"stream {s.stream}: {lost}")
        if s.foreign:
            say(f"{', '.join(s.foreign)} read stream {s.stream} in group {s.group}, too, and are not of rsq")


def show_trimmed(short: Sequence[TrimInfo]) -> None:
    """The table of the streams that are kept short, and who holds them back."""
    table(
        ("STREAM", "LENGTH", "TRIMMED", "DROPPED UNREAD"),
        [(each.stream, each.length, each.trimmed, each.dropped) for each in short],
        right=(1, 2, 3),
    )
    for each in short:
        if each.held_by:
            say(f"stream {each.stream} is held back by group {each.held_by}, which {WHY.get(each.why, each.why)}")


@click.command()
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--refuse", is_flag=True, help="Refuse calls, too: sending one raises QueuePaused.")
@pass_context
def pause(context: Context, queues: tuple[str, ...], refuse: bool) -> None:
    """Have workers take nothing more from each QUEUE, until rsq resume. What runs goes on.

    It works within a second, on all workers, those that start later included.

    \b
    Example:
      rsq pause mail
      rsq pause mail newsletters --refuse
    """
    context.app_or_plain().pause(*queues, refuse=refuse)
    say(f"paused {', '.join(queues)}{' (refuses calls)' if refuse else ''}")


@click.command()
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@pass_context
def resume(context: Context, queues: tuple[str, ...]) -> None:
    """End the pause of each QUEUE.

    \b
    Example:
      rsq resume mail
    """
    resumed = context.app_or_plain().resume(*queues)
    for queue in queues:
        say(f"resumed {queue}" if queue in resumed else f"{queue} was not paused")


@click.command()
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def purge(context: Context, queue: str, yes: bool) -> None:
    """Drop all messages that wait in QUEUE, delayed ones included. What runs goes on; dead letters stay.

    \b
    Example:
      rsq purge default --yes
    """
    client = context.app_or_plain().client
    target = queue_of(client, queue)
    names = client.queue_names()
    if queue not in names:
        raise SettingsError(f"no queue is called {queue!r}; there are: {', '.join(names)}")
    with client.link() as link:
        held = counts(link, target)
        waiting = plural(held.ready + held.delayed, "message")
        if not yes:
            confirm(f"Drop {waiting} of queue {queue}?")
        dropped = queue_control.purge(link, target)
    say(f"dropped {plural(dropped, 'message')} of queue {queue}")
