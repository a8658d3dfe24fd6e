"""Several lanes as one: what the executor takes from, and where it puts outcomes, when its child has more than one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rsq.bell import Bell
from rsq.calls.message import Delivery
from rsq.calls.outcome import Verdict
from rsq.worker.committer import Committer
from rsq.worker.inbox import Inbox

T = TypeVar("T")


class Inboxes:
    """The inboxes of several lanes, as one `Inbox`: each gives one message in its turn. It has one reader at a time.

    So a call waits behind as many of another lane as its own lane has before it, and no longer, however busy that is.
    """

    def __init__(self, parts: Sequence[Inbox]) -> None:
        self._parts = list(parts)
        # From each turn on: the lanes, and whose turn it is after each.
        numbers = [(part, (number + 1) % len(parts)) for number, part in enumerate(parts)]
        self._orders = [(*numbers[turn:], *numbers[:turn]) for turn in range(len(parts))]
        self._turn = self._next_turn = 0
        self._shown = parts[0]
        self._idle = False
        self._arrived = Bell()
        self.ring: Callable[[], None] = self._arrived.set
        """As of `Inbox`."""
        for part in parts:
            part.ring = self._ring

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def peek(self) -> Delivery | None:
        """The next message, left in place; waits for one. None when the inboxes are closed."""
        while True:
            delivery = self.poll()
            if delivery is not None or self.closed:
                return delivery
            self._arrived.wait()

    def poll(self) -> Delivery | None:
        """`peek` without waiting. After None the executor is rung for when something comes."""
        if self._idle:
            self._idle = False
            for part in self._parts:
                part.idle = False
        found = self._next()
        if found is None and not self.closed:
            self._idle = True
            for part in self._parts:
                part.await_more()
            found = self._next()  # what came before that has not rung
        return found

    def _next(self) -> Delivery | None:
        for part, next_turn in self._orders[self._turn]:
            delivery = part.first()
            if delivery is not None:
                self._shown, self._next_turn = part, next_turn
                return delivery
        return None

    def remove(self, delivery: Delivery) -> bool:
        """Take the message that was shown; see `Inbox.remove`. The next one is of another lane, if that has any."""
        self._turn = self._next_turn
        return self._shown.remove(delivery)

    def held(self) -> list[Delivery]:
        """What waits here now."""
        return [delivery for part in self._parts for delivery in part.held()]

    @property
    def closed(self) -> bool:
        """Nothing is handed out any more."""
        return self._parts[0].closed

    def close(self) -> None:
        """Nothing more is handed out; whoever waits gets None."""
        for part in self._parts:
            part.close()

    def _ring(self) -> None:
        self.ring()


class Committers:
    """The committers of several lanes, as one `Committer`: each verdict goes to that of its queue.

    by_queue  the name of a queue -> the committer of its lane
    left      always False: the thread that brings verdicts writes none itself, for one server may keep it waiting
    """

    left = False

    def __init__(self, by_queue: Mapping[str, Committer]) -> None:
        self._by_queue = by_queue
        self._all = list(dict.fromkeys(by_queue.values()))

    def put(self, verdict: Verdict) -> None:
        """Have a verdict written as soon as possible."""
        self._by_queue[verdict.delivery.queue].put(verdict)

    def leave_to_me(self) -> None:
        """Nothing is left to anybody; see `left`."""

    def write_left(self, idle: bool) -> None:
        """There is nothing left; see `left`."""

    def write_all(self) -> None:
        """Return when all outcomes are written that wait now, or the leases of those have run out that are not."""
        for committer in self._all:
            committer.write_all()

    def held(self) -> list[Delivery]:
        """Deliveries whose verdict is not known to be written."""
        return [delivery for committer in self._all for delivery in committer.held()]


def side_by_side(acts: Iterable[Callable[[], T]]) -> list[T]:
    """Do all these at once; gives what each has given, in order. One alone is done in this thread."""
    first, *others = acts
    results: dict[int, T] = {}

    def do(number: int, act: Callable[[], T]) -> None:
        results[number] = act()

    threads = [threading.Thread(target=do, args=each, daemon=True) for each in enumerate(others, 1)]
    for thread in threads:
        thread.start()
    do(0, first)
    for thread in threads:
        thread.join()
    return [result for _, result in sorted(results.items())]
