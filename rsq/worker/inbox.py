"""Messages that a child has fetched and not started: filled by its fetcher, emptied by its executor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from rsq.bell import Bell
from rsq.calls.message import Delivery


class Inbox:
    """A queue between two threads that costs next to nothing while both are busy. It has one reader at a time.

    `hungry` is set when the inbox has fallen to `low_water`, and when an executor finds it empty: the fetcher waits on
    it. Locks are only touched then.
    """

    def __init__(self) -> None:
        self._waiting = deque[Delivery]()
        self._arrived = Bell()
        self._closed = False
        self.low_water = 0
        self.hungry = Bell()
        self.ring: Callable[[], None] = self._arrived.set
        """Wakes the executor. One that does not wait in `peek` puts its own here, before the first message."""
        self.idle = False
        """An executor is waiting for work."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Add messages at the end."""
        self._waiting.extend(deliveries)
        if self.idle:
            self.ring()

    def peek(self) -> Delivery | None:
        """The next message, left in place; waits for one. None when the inbox is closed."""
        waiting = self._waiting
        while True:
            if waiting and not self._closed:
                try:
                    return waiting[0]
                except IndexError:
                    continue  # drained by the fetcher this very moment
            if self._closed:
                return None
            self._arrived.clear()
            self.await_more()
            if not waiting and not self._closed:
                self._arrived.wait()
            self.idle = False

    def poll(self) -> Delivery | None:
        """`peek` without waiting. After None the executor is rung for when something comes."""
        self.idle = False
        if not self._waiting and not self._closed:
            self.await_more()
        return self.first()  # what came before `idle` was set has not rung

    def await_more(self) -> None:
        """The executor has nothing to do: it is rung for when something comes."""
        self.idle = True
        self.hungry.set()

    def first(self) -> Delivery | None:
        """The next message, left in place; None when there is none, or the inbox is closed."""
        try:
            return None if self._closed else self._waiting[0]
        except IndexError:
            return None

    def remove(self, delivery: Delivery) -> bool:
        """Take the message that `peek` showed. False: the fetcher has taken it back, it must not be started."""
        try:
            taken = self._waiting.popleft()
        except IndexError:
            return False
        if taken is not delivery:
            self._waiting.appendleft(taken)
            return False
        if len(self._waiting) == self.low_water:
            self.hungry.set()
        return True

    def drain(self) -> list[Delivery]:
        """Take everything that has not been started, for others to run."""
        drained: list[Delivery] = []
        while True:
            try:
                drained.append(self._waiting.pop())
            except IndexError:
                return drained[::-1]

    def take_out(self, delivery: Delivery) -> bool:
        """Take this one. False: it is not here, since it has been started or taken back."""
        try:
            self._waiting.remove(delivery)  # compares by identity, so no Python code runs meanwhile
        except ValueError:
            return False
        return True

    def held(self) -> list[Delivery]:
        """What waits here now."""
        return list(self._waiting)

    @property
    def closed(self) -> bool:
        """Nothing is handed out any more."""
        return self._closed

    def close(self) -> None:
        """Nothing more is handed out; whoever waits gets None."""
        self._closed = True
        self.ring()
        self.hungry.set()
