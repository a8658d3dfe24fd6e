"""Talks with the server that are written once, and carried on by a thread or by a coroutine.

A talk is a generator. It yields a step, and is sent what came of it; an error is thrown in where it stands:

    (requests, deadline)  packed commands, sent in one write; their replies, a refusal as its exception
    Dial(...)             leave the connection for a new one, of which it is sent nothing
    calls of scripts      a list; the same, with the scripts that are for this kind of server
    a number              a pause of so many seconds

`Link.follow` and `AsyncLink.follow` carry them on. Only the opening of a connection dials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from rsq.broker.deadline import Deadline
from rsq.errors import BrokerError, BrokerUnavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Dial:
    """Where to connect: kind ``redis``, ``rediss`` or ``unix``, and the client library's arguments for it."""

    kind: str
    options: dict[str, Any]
    deadline: Deadline


Step: TypeAlias = "tuple[list[bytes], Deadline | None] | list[Any] | float"
Exchange: TypeAlias = "Generator[Step, Any, T]"
Opening: TypeAlias = "Generator[tuple[list[bytes], Deadline] | Dial, Any, T]"

PAUSE_S = 0.05
"""First wait before something is tried again; it doubles with each further one."""


def pauses(deadline: Deadline) -> Iterator[float]:
    """Waits between tries, until the deadline is over."""
    pause_s = PAUSE_S
    while (left_s := deadline.left_s()) > 0:
        yield min(pause_s, left_s)
        pause_s *= 2


def asking(requests: list[bytes], deadline: Deadline, answer_s: float = math.inf) -> Exchange[list[Any]]:
    """Put questions, which may safely be repeated, until the deadline. Raises what they were refused with."""

    def ask(own: Deadline) -> Exchange[list[Any]]:
        replies: list[Any] = yield requests, own
        return replies

    return repeating(ask, deadline, answer_s)


def repeating(
    ask: Callable[[Deadline], Exchange[list[Any]]], deadline: Deadline, answer_s: float = math.inf
) -> Exchange[list[Any]]:
    """Carry on a talk that may safely be repeated, until it brings answers or the deadline is over.

    answer_s  how long one try waits
    """
    fault: BrokerError | None = None
    for pause_s in pauses(deadline):
        try:
            replies = yield from ask(deadline if answer_s == math.inf else deadline.within(answer_s))
            refusal = next((reply for reply in replies if isinstance(reply, BrokerError)), None)
            if refusal is None:
                return replies
            raise refusal
        except BrokerUnavailable as error:
            if fault is None or deadline.left_s() > 0:  # else it only says that the time was over
                fault = error
        yield max(0.0, min(pause_s, deadline.left_s()))
    raise fault or BrokerUnavailable("there was no time left to ask the server")
