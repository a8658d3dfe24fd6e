"""One write of commands in a cluster: which go where, and what becomes of them when a node is gone or names another.

Written once for threads and coroutines, as a talk (see `rsq.broker.exchange`) of which each step is for one tag.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from rsq.broker.cluster import loads_script, tag_of
from rsq.broker.deadline import Deadline
from rsq.broker.faults import SlotMoved
from rsq.errors import BrokerError

T = TypeVar("T")

Spreading: TypeAlias = "Generator[tuple[str, list[bytes], Deadline | None], list[Any], T]"
"""A step is a tag, packed commands for its master, and by when; it is sent their replies."""

MOVES = 3
"""So often a command is sent to the node that another one names, in one try."""

TRY = 2 / 3
"""This share of the time that is left is given to one try: a node that hangs is replaced, and its successor asked.

More than half of it, since a WAIT takes that.
"""

BESIDE_S = 1.0
"""What goes to a second node may take this long: one that is gone must not use up the time of the first."""


def spreading(requests: Sequence[bytes], home: str, deadline: Deadline | None) -> Spreading[list[Any]]:
    """Send each command to the master of its tag; give the replies in order.

    Where one of several masters is away its commands are answered by that fault; it is raised where all of them are.

    home  tag of a partition, which comes first; the fleet comes last
    """
    replies: list[Any] = [None] * len(requests)
    faults: list[BrokerError] = []
    parts = by_tag(requests, home)
    own = deadline and deadline.share(TRY)
    for tag, numbers in parts.items():
        try:
            for _ in range(MOVES):
                answers = yield tag, [requests[number] for number in numbers], own
                for number, answer in zip(numbers, answers, strict=True):
                    replies[number] = answer
                numbers = to_repeat(requests, numbers, replies)
                if not numbers:
                    break
        except BrokerError as fault:
            faults.append(fault)
            for number in numbers:
                replies[number] = fault
        own = Deadline(BESIDE_S) if deadline is None else deadline.within(BESIDE_S)
    if faults and len(faults) == len(parts):
        raise faults[0]
    return replies


def of_one_try(deadline: Deadline | None, answer_s: float) -> Deadline | None:
    """By when one try is over: what has less time than for two is one."""
    return deadline if deadline is None or deadline.seconds < 2 * answer_s else deadline.share(TRY)


def by_tag(requests: Sequence[bytes], home: str) -> dict[str, list[int]]:
    """Which of these go where: their numbers by tag, those of the home first, and those of the fleet last.

    One without a key goes with the one before it; a script is loaded for the call behind it.
    """
    found: dict[str, list[int]] = {home: []}
    last = next((tag for request in requests if (tag := tag_of(request))), home)
    for number, request in enumerate(requests):
        last = tag_of(requests[number + 1] if loads_script(request) else request) or last
        found.setdefault(last, []).append(number)
    # A call goes before what makes its queue known: where the fleet's master is away, that one waits.
    tags = sorted(found, key=lambda tag: (tag != home, ":" not in tag))
    return {tag: found[tag] for tag in tags if found[tag]}


def to_repeat(requests: Sequence[bytes], numbers: Sequence[int], replies: Sequence[Any]) -> list[int]:
    """Which of these commands go to the node that another one has named: those that were not done there.

    What has no key is done anywhere. Behind one that was not done it goes along: WAIT is about the writes before it.
    """
    first = next((i for i, number in enumerate(numbers) if isinstance(replies[number], SlotMoved)), len(numbers))
    return [
        number for number in numbers[first:] if isinstance(replies[number], SlotMoved) or not tag_of(requests[number])
    ]
