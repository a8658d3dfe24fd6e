"""What people tell queues: pause, resume, purge. A pause stands on the server, so it outlives workers and restarts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rsq import keys
from rsq.broker import scripts
from rsq.broker.queue import PAUSE, REFUSE, Queue

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.connection import Link
    from rsq.broker.wire import Command


PURGE_STEP = 1000
"""Messages dropped in one step, so that no call holds the server up."""


def pause(client: Client, names: Iterable[str], refuse: bool = False) -> None:
    """Have workers take nothing more from these queues, from a second later at most until `resume`.

    refuse  calls are refused, too (QueuePaused)
    Raises  SettingsError for what cannot name a queue, BrokerUnavailable, BrokerRefused
    """
    commands: list[Command] = []
    for queue in client.located(names, use=True):
        commands.append(("SET", queue.keys.paused, REFUSE if refuse else PAUSE))
        # Known from now on, even if nobody has used it yet: `rsq status` has to show it.
        commands.append(("SADD", keys.queues(client.settings.namespace), queue.name))
    if commands:
        client.ask(*commands)


def resume(client: Client, names: Iterable[str]) -> list[str]:
    """End the pause of these queues; gives those that were paused. Raises as `pause` does."""
    queues = client.located(names)
    replies = client.ask(*(("DEL", queue.keys.paused) for queue in queues)) if queues else []
    return [queue.name for queue, deleted in zip(queues, replies, strict=True) if deleted]


def purge(link: Link, queue: Queue) -> int:
    """Drop all messages that wait, delayed ones included; gives their number. What runs goes on."""
    dropped, left = 0, True
    while left:
        step, left = link.run(scripts.PURGE, queue.keys.prefix, PURGE_STEP)
        dropped += int(step)
    return dropped
