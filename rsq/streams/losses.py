"""Events that others deleted before rsq had read them: noticed by what the server tells of a stream."""

from __future__ import annotations

from collections.abc import Sequence

from rsq.broker.event_stream import StreamLook
from rsq.calls.source import BEGINNING, order_of


class Losses:
    """What was lost of one stream, as one who reads it sees it.

    From Redis 7.0 on the server counts what was ever added, so the number is exact while one process reads; after
    another has taken over, and on older servers, it is what must have been lost at least.
    """

    def __init__(self) -> None:
        self._added: int | None = None
        self._first: str | None = None

    def forget(self) -> None:
        """Somebody else has read, or it is another stream."""
        self._added = self._first = None

    def read(self, numbers: Sequence[str], position: str) -> None:
        """Events were read, up to this position.

        numbers  the position before, and the ids of the events
        """
        if position not in numbers:
            self.forget()  # somebody else has read
        elif self._added is not None:
            self._added += numbers.index(position)

    def look(self, look: StreamLook, position: str, first_unread: str | None) -> int:
        """How many were lost since the last look.

        first_unread  id of the first event behind the position; None: there is none, or the server counts by itself
        """
        at = order_of(position)
        if look.added is None:
            before, self._first = self._first, first_unread
            was_unread = before is not None and order_of(before) > at
            return int(was_unread and (first_unread is None or order_of(first_unread) > order_of(before or BEGINNING)))
        if order_of(look.last or BEGINNING) <= at:
            unread = 0
        elif look.first is None or order_of(look.first) > at:
            unread = look.length
        else:
            return 0  # nobody knows how many of them are unread, but none is missing before the first of these
        read, self._added = self._added, look.added - unread
        if read is None:
            # What was gone before the first look is none of it, nor what went before anything was read.
            return int(position != BEGINNING and order_of(look.deleted or BEGINNING) > at)
        return max(0, self._added - read)
