"""`rsq partitions`: where the queues lie, for people who run a cluster."""

from __future__ import annotations

from dataclasses import asdict

import click

from rsq.broker import partition_control
from rsq.cli.common import Context, json_option, pass_context
from rsq.cli.out import document, say, table


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def partitions(ctx: click.Context, as_json: bool) -> None:
    """Show in which partition each queue lies, on which master, and how many messages it holds there.

    \b
    Example:
      rsq partitions
      rsq partitions --json
      rsq partitions pin mail 2
    """
    if ctx.invoked_subcommand is not None:
        return
    placements = partition_control.placements(ctx.ensure_object(Context).app_or_plain().client)
    if as_json:
        document([asdict(each) for each in placements])
        return
    table(
        ("QUEUE", "PARTITION", "MASTER", "LENGTH"),
        [
            (each.queue, each.partition, each.master or "-", "away" if each.length is None else each.length)
            for each in placements
        ],
        right=(1, 3),
    )


@partitions.command()
@click.argument("queue")
@click.argument("number", metavar="PARTITION", type=int)
@pass_context
def pin(context: Context, queue: str, number: int) -> None:
    """Have QUEUE, which was never used, lie in PARTITION. No worker may read it meanwhile.

    \b
    Example:
      rsq partitions pin mail 2
    """
    partition_control.pin(context.app_or_plain().client, queue, number)
    say(f"queue {queue} lies in partition {number}")
