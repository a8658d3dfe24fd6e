"""What was deleted of a stream before it was read, as it shows in what the server tells."""

from __future__ import annotations

from rsq.broker.event_stream import StreamLook
from rsq.streams.losses import Losses


def seen(first: int, last: int, added: int | None, deleted: int = 0) -> StreamLook:
    """A stream with all entries from `first` to `last`; `added` None: the server does not count."""
    ids = [f"{number}-0" for number in (last, first, deleted)]
    length = max(0, last - first + 1)
    there = ids[1] if length else None
    return StreamLook(ids[0], length, None, False, there, added, ids[2] if added is not None else None)


def test_what_is_read_is_not_lost() -> None:
    losses = Losses()
    assert losses.look(seen(1, 3, 3), "0-0", None) == 0
    losses.read(["0-0", "1-0", "2-0", "3-0"], "3-0")
    assert losses.look(seen(4, 3, 3, deleted=3), "3-0", None) == 0
    assert losses.look(seen(4, 9, 9, deleted=3), "3-0", None) == 0


def test_what_goes_unread_is_counted_once() -> None:
    losses = Losses()
    losses.look(seen(1, 3, 3), "0-0", None)
    losses.read(["0-0", "1-0"], "1-0")
    assert losses.look(seen(1, 3, 3), "1-0", None) == 0, "what is before the position tells nothing"
    assert losses.look(seen(6, 9, 9, deleted=5), "1-0", None) == 4
    assert losses.look(seen(6, 9, 9, deleted=5), "1-0", None) == 0
    losses.read(["1-0", "6-0", "7-0"], "7-0")
    assert losses.look(seen(9, 9, 9, deleted=8), "7-0", None) == 1
    losses.read(["7-0", "9-0"], "9-0")
    assert losses.look(seen(20, 19, 19, deleted=19), "9-0", None) == 10
    assert losses.look(seen(20, 19, 19, deleted=19), "9-0", None) == 0


def test_who_takes_over_tells_what_he_knows() -> None:
    assert Losses().look(seen(6, 9, 9, deleted=5), "1-0", None) == 1
    assert Losses().look(seen(6, 9, 9, deleted=5), "0-0", None) == 0, "it was gone before anything was read"
    losses = Losses()
    losses.look(seen(1, 3, 3), "0-0", None)
    losses.read(["0-0", "1-0"], "7-0")
    assert losses.look(seen(8, 9, 9, deleted=3), "7-0", None) == 0, "another one has read meanwhile"


def test_an_old_server_shows_what_was_seen_and_is_gone() -> None:
    losses = Losses()
    assert losses.look(seen(1, 9, None), "3-0", "4-0") == 0
    assert losses.look(seen(1, 9, None), "3-0", "4-0") == 0
    assert losses.look(seen(7, 9, None), "3-0", "7-0") == 1
    assert losses.look(seen(7, 9, None), "8-0", "9-0") == 0, "it was read"
    assert losses.look(seen(10, 9, None), "8-0", None) == 1
    assert losses.look(seen(10, 9, None), "8-0", None) == 0
