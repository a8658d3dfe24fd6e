"""Dead letters: reading them, sending them again, deleting them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rsq import codec
from rsq.broker import scripts
from rsq.broker.connection import Link
from rsq.broker.queue import Queue
from rsq.calls.event import about
from rsq.calls.message import pack_meta, unpack_meta
from rsq.errors import DecodeError, DuplicateCall, FlowGone

PAGE = 500
"""Letters in one step, so that no call holds the server up."""


@dataclass(frozen=True)
class DeadLetter:
    """A call that was given up, with all that is known about it.

    entry_id  names the letter; its first part is the time of death, ms since the epoch
    body      packed arguments, or, for reason ``undecodable``, the packed fields of the entry
    sent_ms   when its last attempt was made ready, or None
    """

    entry_id: str
    queue: str
    id: str
    task: str
    reason: str
    error: dict[str, Any]
    attempts: int
    priority: int
    sent_ms: int | None
    body: bytes
    meta: bytes

    @property
    def died_ms(self) -> int:
        return int(self.entry_id.partition("-")[0])

    @property
    def flow(self) -> str | None:
        """Id of the flow that it was part of, or None."""
        place = self._known.get("flow") or [None]
        return str(place[0]) if place[0] is not None else None

    @property
    def event(self) -> tuple[str, str] | None:
        """Stream and id of the event that it is about, or None."""
        return about(self.body)

    @property
    def _known(self) -> Mapping[str, Any]:
        try:
            return unpack_meta(self.meta)
        except DecodeError:
            return {}

    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """(args, kwargs), or None when they cannot be read."""
        try:
            return codec.decode_call(self.body)
        except DecodeError:
            return None


def dead_letters(link: Link, queue: Queue, newest_first: bool = True) -> Iterator[DeadLetter]:
    """The dead letters of a queue, read page by page."""
    command, start, end = ("XREVRANGE", "+", "-") if newest_first else ("XRANGE", "-", "+")
    while True:
        page = link.call(command, queue.keys.dead, start, end, "COUNT", PAGE)
        for entry_id, fields in page:
            yield _letter(queue.name, entry_id, fields)
        if len(page) < PAGE:
            return
        start = f"({page[-1][0].decode()}"


def dead_letter(link: Link, queue: Queue, name: str) -> DeadLetter | None:
    """One dead letter by its entry id or its task id; the newest of those that carry the task id."""
    return next((letter for letter in dead_letters(link, queue) if name in (letter.entry_id, letter.id)), None)


def redrive(link: Link, queue: Queue, letter: DeadLetter, alone: bool = False) -> bool:
    """Send a dead letter again, as a first attempt, with its dedupe key if it had one. False: somebody was quicker.

    One that was part of a flow carries that on when it succeeds; `alone` it is a call like any other.

    Raises  DecodeError for a letter that was no message to begin with, DuplicateCall where another call has its key,
            FlowGone where its flow does not wait for it any more
    """
    if not letter.task:
        raise DecodeError(
            f"dead letter {letter.entry_id} cannot be sent again: it was never a message ({letter.reason})"
        )
    left = {"attempt", "deferred_since", "expires", *(("flow",) if alone else ())}
    meta = {k: v for k, v in unpack_meta(letter.meta).items() if k not in left}
    word, winner = link.run(scripts.REDRIVE, queue.keys.prefix, letter.entry_id, pack_meta(meta))
    if word == b"duplicate":
        raise DuplicateCall(
            f"dead letter {letter.id} was not sent again: {winner.decode()} stands under its dedupe key or id; "
            "send it when that has ended",
            winner.decode(),
        )
    if word == b"ended":
        raise FlowGone(
            f"dead letter {letter.id} was not sent again: its flow {winner.decode()} does not wait for it any more; "
            "alone it can be sent all the same: rsq dead redrive --alone"
        )
    return bool(word == b"sent")


def delete_dead(link: Link, queue: Queue, letters: list[DeadLetter]) -> int:
    """Delete dead letters; gives how many were there."""
    if not letters:
        return 0
    return int(link.call("XDEL", queue.keys.dead, *(letter.entry_id for letter in letters)))


def _letter(queue: str, entry_id: bytes, fields: list[bytes]) -> DeadLetter:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        error = codec.decode(values[b"error"])
    except (DecodeError, KeyError) as problem:
        error = {"type": "", "message": f"unreadable: {problem}", "traceback": ""}
    sent = values.get(b"sent", b"")
    return DeadLetter(
        entry_id=entry_id.decode(),
        queue=queue,
        id=values.get(b"id", b"").decode("utf-8", "replace"),
        task=values.get(b"task", b"").decode("utf-8", "replace"),
        reason=values.get(b"reason", b"").decode("utf-8", "replace"),
        error=error,
        attempts=int(values.get(b"attempts", b"0")),
        priority=int(values.get(b"priority", b"0")),
        sent_ms=int(sent) if sent else None,
        body=values.get(b"body", b""),
        meta=values.get(b"meta", b""),
    )
