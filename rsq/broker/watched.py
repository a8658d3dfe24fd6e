"""What one caller watches: the output of a call, and its end. Pushes bring the values; what they have not brought is
read page by page: at the beginning, behind a gap, and after a reconnect.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange
from rsq.broker.flow_looks import outcomes_of
from rsq.broker.waiting import Awaited, InFlow
from rsq.broker.wire import packed
from rsq.calls.output import WELL, Gap, Item, NewRun, Place, Seen, place_in, read_push

FIRST_PAGE, LONGEST_PAGE = 20, 500
"""Entries that are read at once, at first and at most."""

PAGE_BYTES = 256 * 1024
"""What a page is to hold, as far as the one before it tells."""

MOST_ARRIVED = 100
"""Where so much waits for a caller nothing more is taken from pushes: he reads on from where he is."""

_BEGINNING = Place(1, 0)


class Watched(Awaited[Seen]):
    """The values are packed ones. Ended once the call has, and all before that has arrived.

    places  the keys of the output and of the result, for each queue where the call may lie
    after   begin behind this
    in_flow  where its end is found, too, if it never ran
    way     how it has ended, where an output tells
    result  the packed result, where there is one by then
    """

    renews = True

    def __init__(
        self, places: Sequence[tuple[str, str]], after: Place | None = None, in_flow: InFlow | None = None
    ) -> None:
        super().__init__()
        self.way = ""
        self.result: bytes | None = None
        self._places = [(output.encode(), result.encode()) for output, result in places]
        self._lock = threading.Lock()  # of several threads one reads for all
        self._at = after or _BEGINNING
        self._in_flow = in_flow
        self._ended = False
        self._seen = False  # something of an output was there
        self._gone = False  # nothing was there, though `after` was: it may begin anew
        self._attached = False  # all was read that was there at the beginning
        self._anew = False  # what was asked goes by a place in an output that is gone
        self._more = False
        self._heard = 0  # up to where there is something, as a push has told that could not be taken
        self._page = FIRST_PAGE
        self._answers: dict[bytes, Callable[[Any], None]] = {}
        self._sure = False  # there was a result before what is there was asked for

    def __bool__(self) -> bool:
        return not self._ended

    @property
    def keys(self) -> list[bytes]:
        return [key for place in self._places for key in place]

    @property
    def behind(self) -> bool:
        told = self._heard > self._at.n or self.result is not None
        return not self._ended and (self._more or (self._attached and told))

    @property
    def lacks_result(self) -> bool:
        """Whether it has not gone well, and why is still to be read."""
        return self.result is None and self.way not in ("", *WELL)

    def conclude(self, result: bytes | None) -> None:
        """It has ended with this packed result, if that is one."""
        if result is not None:
            self.result, self._ended = result, True

    def bring(self, values: Sequence[tuple[Place, bytes]], way: str, result: bytes | None) -> None:
        """All that there is, where there is no server."""
        for place, value in values:
            self._take(place, [value])
        self.way, self.result, self._ended = way, result, bool(way) or result is not None

    # -- pushes

    def came(self, key: bytes, data: bytes) -> None:
        with self._lock:
            if not self._ended and not self._came_with_result(key, data):
                self._pushed(data)

    def _came_with_result(self, key: bytes, data: bytes) -> bool:
        for place in self._places:
            if place[1] == key:
                self._places = [place]
                self._conclude_unless_seen(data)
                return True
        return False

    def _conclude_unless_seen(self, result: bytes) -> None:
        """This is its result. An output would have been told of before."""
        self.result, self._ended = result, self._attached and not self._seen

    def _pushed(self, data: bytes) -> None:
        push = read_push(data)
        if push is None:
            return
        place, values, way = push
        last = place.n + max(1, len(values)) - 1
        if self._gone and last <= self._at.n:
            self._at = _BEGINNING
        self._gone, self._seen = False, True
        reads = self._more or not self._attached or self._heard > self._at.n or len(self.arrived) >= MOST_ARRIVED
        if reads or place.n > self._at.n + 1 or not (values or way):
            self._heard = max(self._heard, last)
        elif way:
            self._end(place, way)
        else:
            self._take(place, values)

    # -- looks

    def questions(self) -> list[bytes]:
        with self._lock:
            self._answers = {}
            for place in self._places:
                # The result first: where it is there, so is the end of the output.
                self._answers[packed("GET", place[1])] = partial(self._read_result, place)
                if not self._attached and self._at != _BEGINNING:
                    self._answers[packed("XREVRANGE", place[0], "+", "-", "COUNT", 1)] = self._read_top
                page = packed("XRANGE", place[0], f"({self._at}", "+", "COUNT", self._page)
                self._answers[page] = partial(self._read_page, place, self._page, self._heard)
            self._sure = self.result is not None
            return list(self._answers)

    def answered(self, request: bytes, reply: Any) -> None:
        with self._lock:
            answer = self._answers.pop(request, None)
            if answer is not None and not self._ended:
                answer(reply)

    def looking_on(self, deadline: Deadline) -> Exchange[None]:
        if self._in_flow is not None and not self._ended and self.result is None:
            (data,) = yield from outcomes_of(self._in_flow.key, [self._in_flow.number], deadline)
            with self._lock:
                if data is not None and not self._ended:
                    self._conclude_unless_seen(data)

    def _read_result(self, place: tuple[bytes, bytes], reply: Any) -> None:
        if reply is not None:
            self._places, self.result, self._sure = [place], bytes(reply), True

    def _read_top(self, reply: Any) -> None:
        if not reply:
            self._gone = len(self._places) == 1
        elif place_in(reply[0][0]) < self._at:
            self._at, self._anew = _BEGINNING, True  # it was deleted since, and is another one

    def _read_page(self, place: tuple[bytes, bytes], count: int, heard: int, reply: Any) -> None:
        if self._anew or place not in self._places:
            self._anew, self._more = False, self._anew
            return
        size = 0
        for entry_id, (kind, value) in reply:
            size += len(value)
            if kind == b"end":
                self._end(place_in(entry_id), value.decode())
            elif kind == b"value":
                self._take(place_in(entry_id), [value])
        if reply:
            self._seen, self._places = True, [place]
            self._page = max(1, min(LONGEST_PAGE, PAGE_BYTES * len(reply) // max(1, size)))
        self._more = len(reply) >= count
        if not self._more:
            self._attached = True
            self._ended = self._ended or self._sure
            if self._heard == heard:
                self._heard = 0  # it is not there any more

    # -- what has come

    def _take(self, place: Place, values: Sequence[bytes]) -> None:
        run, first = place
        skipped = self._at.n + 1 - first
        if skipped >= len(values):
            return
        self._move(run, first)
        for n, value in enumerate(values[max(0, skipped) :], first + max(0, skipped)):
            self.arrived.append(Item(value, f"{run}-{n}", run))
        self._at = Place(run, first + len(values) - 1)

    def _end(self, place: Place, way: str) -> None:
        if place.n > self._at.n + 1:
            self.arrived.append(Gap(place.n - self._at.n - 1))
        self._ended, self.way = True, way

    def _move(self, run: int, n: int) -> None:
        """The next value is this one."""
        if n > self._at.n + 1:
            self.arrived.append(Gap(n - self._at.n - 1))
        if run != self._at.run:
            self.arrived.append(NewRun(run))
