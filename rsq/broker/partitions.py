"""In which partition each queue lies: decided once, at its first use, and stored; a process asks once and remembers.

With one partition nothing is asked. Producers that ask too late, or not at all, find the word ``moved`` where the queue
would have been (see `Sending`), so a call never goes where nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from rsq import keys
from rsq.broker import scripts
from rsq.broker.connection import Endpoint, Link, ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange, asking, repeating
from rsq.broker.queue import MOVED, Queue
from rsq.broker.wire import packed
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.settings import Settings

MARK_S = 0.5
"""So long a mark in the first partition may take, which is for those alone who were told of no other."""


def spread_numbers(count: int, holder: Callable[[int], object]) -> list[int]:
    """Numbers of partitions that lie on as many servers as there are, each with as many as the others.

    0 is always among them: there lie the queues of a time when there was only one.

    holder  gives the server of a number; on one server the numbers are 0, 1, 2 and so on
    """
    found, held = [0], {holder(0): 1}
    tried = range(1, 64 * count)
    while len(found) < count:
        rest = [number for number in tried if number not in found]
        number = min(rest, key=lambda each: (held.get(holder(each), 0), each))
        found.append(number)
        held[holder(number)] = held.get(holder(number), 0) + 1
    return found


def partitions_of(link: Link, settings: Settings, names: Sequence[str]) -> dict[str, int]:
    """The partition of each queue that a worker is going to read. Raises BrokerError.

    With one partition it is as for producers where the one is away that knows: whoever registers is told of another.
    """
    try:
        return link.follow(_assigning(names, settings, link.endpoint, Deadline(link.timeout_s)))
    except BrokerUnavailable:
        if settings.partitions > 1:
            raise
        return dict.fromkeys(names, keys.PARTITION)


def stored_partitions(reply: Sequence[bytes]) -> dict[str, int]:
    """From what HGETALL answers; what can be no queue is passed over."""
    found = {name.decode("utf-8", "replace"): number for name, number in zip(reply[::2], reply[1::2], strict=True)}
    return {name: int(number) for name, number in found.items() if keys.is_queue(name)}


def _locating(
    names: Sequence[str], settings: Settings, endpoint: Endpoint, deadline: Deadline
) -> Exchange[dict[str, int]]:
    """The partitions of those that have one."""
    ask = packed("HMGET", keys.partitions(settings.namespace), *names)
    (found,) = yield from asking([ask], deadline, endpoint.answer_s)
    return {name: int(number) for name, number in zip(names, found, strict=True) if number is not None}


def _assigning(
    names: Sequence[str], settings: Settings, endpoint: Endpoint, deadline: Deadline
) -> Exchange[dict[str, int]]:
    """The partitions of all these; what has none gets one."""
    found = yield from _locating(names, settings, endpoint, deadline)
    new = [name for name in names if name not in found]
    if not new:
        return found
    if settings.partitions == 1:
        return {**dict.fromkeys(new, keys.PARTITION), **found}

    proposed = " ".join(map(str, proposed_numbers(settings, endpoint)))
    call: ScriptCall = (scripts.ASSIGN, keys.fleet(settings.namespace), (settings.partitions, proposed, *new))
    (numbers,) = yield from repeating(partial(running, [call]), deadline, endpoint.answer_s)
    assigned = dict(zip(new, map(int, numbers), strict=True))
    marks = [
        packed("SET", keys.QueueKeys(settings.namespace, name).paused, MOVED, "NX")
        for name, number in assigned.items()
        if number != keys.PARTITION
    ]
    if marks:
        try:
            # Where this server is away nobody else waits for it.
            yield marks, deadline.within(MARK_S)
        except BrokerError:
            pass
    return {**found, **assigned}


def proposed_numbers(settings: Settings, endpoint: Endpoint) -> list[int]:
    """`spread_numbers` for these settings, as far as the masters are known without asking."""

    def holder(number: int) -> object:
        return endpoint.cluster and endpoint.cluster.holder(keys.tag(settings.namespace, number))

    return spread_numbers(settings.partitions, holder)


class Queues:
    """The queues of one process by name, each with its partition. For any number of threads."""

    def __init__(self, settings: Settings, endpoint: Endpoint) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._known: dict[str, Queue] = {}

    def get(self, name: str) -> Queue | None:
        """The queue of this name; None where it has to be found first. Raises SettingsError for no name."""
        queue = self._known.get(name)
        if queue is None and self._settings.partitions == 1:
            queue = self._known[name] = Queue(name, self._settings)
        return queue

    def names(self) -> list[str]:
        """Those that are known here."""
        return list(self._known)

    def learn(self, partitions: Mapping[str, int]) -> None:
        """Some lie there."""
        for name, number in partitions.items():
            if name not in self._known or self._known[name].partition != number:
                self._known[name] = Queue(name, self._settings, number)

    def finding(self, names: Iterable[str], deadline: Deadline, use: bool) -> Exchange[list[Queue]]:
        """These queues, whatever was known of them.

        use  they are going to be used: what has no partition gets one. Else nothing is written, and it is in the first
        """
        names = [keys.check_queue(name) for name in names]
        if use:
            found = yield from _assigning(names, self._settings, self._endpoint, deadline)
        else:
            found = yield from _locating(names, self._settings, self._endpoint, deadline)
        self.learn(found)
        return [self._known[name] if name in found else Queue(name, self._settings) for name in names]
