"""What the listeners of threads and of event loops share: who waits for what, what is said on a connection that is
subscribed, and when silence is suspicious.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange, asking
from rsq.broker.faults import Refusal
from rsq.broker.flow_looks import outcomes_of
from rsq.broker.wire import packed, packed_texts
from rsq.keys import is_flow

W = TypeVar("W")
R = TypeVar("R")

LOOK_STEP = 1000
"""Keys that are asked for in one write."""

RECONNECT_S = 0.2
"""Pause between two tries to reach a server that is away."""

SILENCE_S = 3
"""After so long without a word the server is asked for one; after as long again the connection is made anew."""

LAST_LOOK_S = 1.0
"""So long the last look may take, at the end of a timeout: a push that was lost costs time, and never an answer."""


class Waiting(Generic[W]):
    """Who waits, by key. A waiter may wait for several: the queue of its call is not known."""

    def __init__(self) -> None:
        self._each: dict[bytes, list[W]] = {}

    def __bool__(self) -> bool:
        return bool(self._each)

    def keys(self) -> list[bytes]:
        return list(self._each)

    def of(self, key: bytes) -> Sequence[W]:
        """Those who wait for this key."""
        return self._each.get(key, ())

    def all(self) -> Iterable[W]:
        return dict.fromkeys(waiter for waiters in self._each.values() for waiter in waiters)

    def another(self, waiter: W) -> W | None:
        """One of them that is not this one."""
        return next((each for waiters in self._each.values() for each in waiters if each is not waiter), None)

    def join(self, waiter: W, keys: Iterable[bytes]) -> list[bytes]:
        """Add one. Gives the keys for which nobody waited before: their channels are to be subscribed."""
        fresh = []
        for key in keys:
            if key not in self._each:
                fresh.append(key)
            self._each.setdefault(key, []).append(waiter)
        return fresh

    def leave(self, waiter: W, keys: Iterable[bytes]) -> list[bytes]:
        """Remove one, if it is there. Gives the keys for which nobody waits any more."""
        idle = []
        for key in keys:
            others = self._each.get(key, [])
            if waiter in others:
                others.remove(waiter)
                if not others:
                    del self._each[key]
                    idle.append(key)
        return idle


class Channels:
    """What is said on one subscribed connection.

    sharded  its channels are those of a cluster's shards: of a slot that it loses a node ends the subscriptions
    """

    def __init__(self, sharded: bool) -> None:
        self._prefix = "S" if sharded else ""
        self._ending: Counter[bytes] = Counter()

    def subscribe(self, keys: Sequence[bytes]) -> bytes:
        """The packed command."""
        return packed_texts(f"{self._prefix}SUBSCRIBE", *keys)

    def unsubscribe(self, keys: Sequence[bytes]) -> bytes:
        """The packed command; it is to be sent, as its answers are waited for."""
        self._ending.update(keys)
        return packed_texts(f"{self._prefix}UNSUBSCRIBE", *keys)

    def heard(self, reply: Any) -> tuple[bytes, bytes, bytes]:
        """Kind (``message``, ``subscribe``, ``unsubscribe``), channel and payload of what was pushed.

        The kind is ``late`` for what is of a subscription that has been ended since: its channel may have another one
        now, of somebody who waits for what comes after.

        Raises Refusal, and ConnectionError where the server has ended a subscription by itself.
        """
        if isinstance(reply, Refusal):
            raise reply
        kind, channel, payload = reply
        kind = kind.removeprefix(self._prefix.lower().encode()) if self._prefix else kind
        if kind == b"unsubscribe":
            self._ending[channel] -= 1
            if self._ending[channel] < 0:
                raise ConnectionError("another node serves this slot now")
            if not self._ending[channel]:
                del self._ending[channel]
        elif channel in self._ending:
            kind = b"late"
        return kind, channel, payload


class Silence:
    """Judges how long the server has said nothing while somebody waited. A peer may be gone without a word."""

    def __init__(self) -> None:
        self.heard()

    def heard(self) -> None:
        """It has just said something."""
        self._since = monotonic()
        self._asked = False

    def asks(self) -> bool:
        """Whether the server is to be asked for a word now: any subscription is answered, also one that stands."""
        if self._asked or monotonic() - self._since < SILENCE_S:
            return False
        self._asked = True
        self._since = monotonic()
        return True

    @property
    def lost(self) -> bool:
        """Whether it was asked, and has said nothing for as long again."""
        return self._asked and monotonic() - self._since >= SILENCE_S


class Awaited(ABC, Generic[R]):
    """What one caller waits for.

    arrived  what has come for him and he has not got yet, in order
    renews   his timeout begins anew with each of these
    """

    renews = False

    def __init__(self) -> None:
        self.arrived: deque[R] = deque()

    @abstractmethod
    def __bool__(self) -> bool:
        """Whether anything has not come yet."""

    @property
    @abstractmethod
    def keys(self) -> list[bytes]:
        """The channels by which it comes, which are keys, too."""

    @property
    def behind(self) -> bool:
        """Whether something is there that no push has brought, or will: it is to be looked for."""
        return False

    @abstractmethod
    def came(self, key: bytes, data: bytes) -> None:
        """Take what was pushed by a channel."""

    @abstractmethod
    def questions(self) -> list[bytes]:
        """The packed commands by which to look for what is there."""

    @abstractmethod
    def answered(self, request: bytes, reply: Any) -> None:
        """Take the reply to one of these."""

    def looking_on(self, deadline: Deadline) -> Exchange[None]:
        """Look for what takes more than one question, once those are answered."""
        yield from ()


class InFlow(NamedTuple):
    """Where a call stands that never runs if another one fails: who waits for it hears of that, and finds it there."""

    key: str
    number: int


class Wanted(Awaited["tuple[int, bytes]"]):
    """Several values, each of which may come by one of several keys: pairs of its number and the value, each once.

    places  for each, in order, where else it may be found, or None; may be shorter
    """

    def __init__(self, wanted: Sequence[Sequence[str]], places: Sequence[InFlow | None] = ()) -> None:
        super().__init__()
        self._places = {number: place for number, place in enumerate(places) if place is not None}
        self._open = dict.fromkeys(range(len(wanted)))
        self._numbers: dict[bytes, list[int]] = {}
        self._asked: dict[bytes, bytes] = {}
        for number, names in enumerate(wanted):
            for name in names:
                self._numbers.setdefault(name.encode(), []).append(number)

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def keys(self) -> list[bytes]:
        return list(self._numbers)

    def came(self, key: bytes, data: bytes) -> None:
        for number in self._numbers.get(key, ()):
            self._take(number, data)

    def _take(self, number: int, data: bytes) -> None:
        if self._open.pop(number, 0) is None:  # in one step, since several threads may read for one caller
            self.arrived.append((number, data))

    def questions(self) -> list[bytes]:
        is_open = self._open.__contains__
        self._asked = {_look_at(key): key for key, numbers in self._numbers.items() if any(map(is_open, numbers))}
        return list(self._asked)

    def answered(self, request: bytes, reply: Any) -> None:
        if reply is not None:
            self.came(self._asked[request], bytes(reply))

    def looking_on(self, deadline: Deadline) -> Exchange[None]:
        by_flow: dict[str, list[tuple[int, int]]] = {}
        for number, place in self._places.items():
            if number in self._open:
                by_flow.setdefault(place.key, []).append((number, place.number))
        for key, members in by_flow.items():
            for first in range(0, len(members), LOOK_STEP):
                some = members[first : first + LOOK_STEP]
                found = yield from outcomes_of(key, [node for _, node in some], deadline)
                for (number, _), data in zip(some, found, strict=True):
                    if data is not None:
                        self._take(number, bytes(data))


def _look_at(key: bytes) -> bytes:
    """Of a flow one asks when it has ended, once it has; of all else the value."""
    return packed("HGET", key, "ended") if is_flow(key.decode()) else packed("GET", key)


def looking(each: Collection[Awaited[Any]], deadline: Deadline) -> Exchange[None]:
    """Look for what is there of all these, so many questions in a write."""
    asked: dict[bytes, list[Awaited[Any]]] = {}
    for awaited in each:
        for request in awaited.questions():
            asked.setdefault(request, []).append(awaited)
    requests = list(asked)
    for first in range(0, len(requests), LOOK_STEP):
        some = requests[first : first + LOOK_STEP]
        for request, reply in zip(some, (yield from asking(some, deadline)), strict=True):
            for awaited in asked[request]:
                awaited.answered(request, reply)
    for awaited in each:
        yield from awaited.looking_on(deadline)


def first_value(replies: Sequence[Any]) -> bytes | None:
    """The first of several values that is there, or None."""
    return next((bytes(reply) for reply in replies if reply is not None), None)
