"""`rsq partitions`: where queues lie, and how one that was never used is put into another partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsq import keys
from rsq.broker import scripts
from rsq.broker.cluster import shown_place
from rsq.broker.partitions import proposed_numbers
from rsq.broker.queue import MOVED, Queue
from rsq.errors import BrokerError, SettingsError

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.wire import Command


@dataclass(frozen=True)
class Placement:
    """Where one queue lies.

    master  of its partition, ``host:port``; '' = there is no cluster, or nobody tells
    length  entries in its streams, those that run included; None = the server does not answer
    """

    queue: str
    partition: int
    master: str
    length: int | None


def placements(client: Client) -> list[Placement]:
    """All queues that were ever used. A server that is away hides none of those of the others. Raises BrokerError."""
    found = []
    names = {*client.queue_names(), *client.queues.names()}  # one that is pinned may be used later
    for queue in client.located(names):
        commands: list[Command] = [("XLEN", stream) for stream in queue.keys.streams()]
        length: int | None = None
        try:
            with client.link() as link:
                lengths = link.pipeline(commands)
            length = None if any(isinstance(each, BrokerError) for each in lengths) else sum(lengths)
        except BrokerError:
            pass
        found.append(Placement(queue.name, queue.partition, _master(client, queue.partition), length))
    return sorted(found, key=lambda each: (each.partition, each.queue))


def pin(client: Client, name: str, number: int) -> None:
    """Have a queue that was never used lie in the partition of this number.

    Where it is interrupted it is done again: until then what is sent to the queue is not accepted.
    Raises SettingsError, BrokerError.
    """
    numbers = _numbers(client)
    if number not in numbers:
        raise SettingsError(
            f"there is no partition {number}, only {', '.join(map(str, numbers))}: the setting partitions says how many"
        )
    (old,) = client.located([name])
    new = Queue(name, client.settings, number)
    if old.partition != number:
        (answer,) = client.run([(scripts.VACATE, old.keys.prefix, ())])
        if answer != b"moved":
            raise SettingsError(f"queue {name} stays in partition {old.partition}: {_REFUSALS[answer]}")
    if client.ask(("GET", new.keys.paused)) == [MOVED]:
        client.ask(("DEL", new.keys.paused))
    client.ask(("HSET", keys.partitions(client.settings.namespace), name, number))
    client.queues.learn({name: number})


_REFUSALS = {
    b"used": "it holds calls, or has held some, whose keys and results are looked for there; take a new queue",
    b"worked": "a worker reads it; stop that first",
    b"paused": "it is paused; rsq resume it first",
}


def _numbers(client: Client) -> list[int]:
    """The partitions over which new queues are spread, and those that were taken before."""
    (taken,) = client.ask(("HGET", keys.partitions(client.settings.namespace), ""))
    numbers = [int(number) for number in (taken or b"").split()]
    new = [number for number in proposed_numbers(client.settings, client.endpoint) if number not in numbers]
    return [*numbers, *new[: max(0, client.settings.partitions - len(numbers))]]


def _master(client: Client, partition: int) -> str:
    cluster = client.endpoint.cluster
    place = cluster and cluster.holder(keys.tag(client.settings.namespace, partition))
    return shown_place(place) if place else ""
