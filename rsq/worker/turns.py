"""In what order a child asks its queues, and each for how many messages: strictly, or by weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rsq import keys
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import SettingsError

HEAVIEST = 1000
"""The largest weight: with a larger one the others would hardly ever be asked."""


def parse_queues(text: str) -> dict[str, int]:
    """What -Q says, as queue -> weight: ``a:6,b:3`` weighs, ``a,b`` is a strict order (weight 0).

    Raises SettingsError.
    """
    weights: dict[str, int] = {}
    for part in text.split(","):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if not name and not colon:
            continue  # a comma too many
        keys.check_queue(name)
        if name in weights:
            raise SettingsError(f"-Q {text}: queue {name} is named twice")
        if colon and not (number.isascii() and number.isdigit() and 1 <= int(number) <= HEAVIEST):
            raise SettingsError(
                f"-Q {text}: the weight of queue {name} must be a whole number from 1 to {HEAVIEST}, as in {name}:3, "
                f"not {number!r}"
            )
        weights[name] = int(number) if colon else 0
    if not weights:
        raise SettingsError(f"-Q {text!r} names no queue: say -Q critical,default, or -Q critical:6,default:3")
    if 0 in weights.values() and any(weights.values()):
        name = next(name for name, weight in weights.items() if not weight)
        raise SettingsError(f"-Q {text}: give each queue a weight, {name} too, or give none for a strict order")
    return weights


class Turns:
    """Shares out the room of one fetch after the other.

    With weights each queue has a credit, which grows with all room by its share and shrinks by what it gave; the one
    with most is asked first. Where all have work the shares hold from the first few messages on. A queue that had less
    than it was asked for leaves the rest to the others, and all begin at nothing again: what it could not give then is
    not made up for later.
    """

    def __init__(self, queues: Sequence[WorkerQueue], weights: Mapping[str, int]) -> None:
        self.queues = list(queues)
        whole = sum(weights.get(queue.name, 0) for queue in queues)
        self._shares = {queue.name: weights[queue.name] / whole for queue in queues} if whole else {}
        self._credits = dict.fromkeys(self._shares, 0.0)
        self._given = 0
        self._has_more = False

    @property
    def first(self) -> list[WorkerQueue]:
        """The queues that are asked as long as all have work."""
        return self.queues if self._shares else self.queues[:1]

    def gave(self, number: int, has_more: bool = False) -> None:
        """So many messages came of the queue that was asked last; it may have more, though there was room for them."""
        self._given, self._has_more = number, has_more

    def share_out(self, room: int) -> Iterator[tuple[WorkerQueue, int]]:
        """Whom to ask, and for how many messages; tell `gave` before the next one. It ends when the room is filled.

        Where it is not, each queue was asked and has no more, or one may have more than one call may bring.
        """
        if not self._shares:
            for queue in self.queues:
                yield queue, room
                room -= self._given
                if room <= 0 or self._has_more:
                    return
            return
        credit = self._credits
        asked = self._quotas(room)
        empty: set[str] = set()
        for queue in self.queues:
            if count := asked[queue.name]:
                yield queue, count
                credit[queue.name] -= self._given
                room -= self._given
                if self._given < count and not self._has_more:
                    empty.add(queue.name)
        if not empty:
            return
        for name in credit:
            credit[name] = 0.0
        for queue in sorted(self.queues, key=lambda queue: -self._shares[queue.name]):
            if room > 0 and queue.name not in empty:
                yield queue, room
                room -= self._given

    def _quotas(self, room: int) -> dict[str, int]:
        """Room by queue: the whole part of each credit, and what is left to those with the largest rest."""
        credit, quotas, left = self._credits, {}, room
        for name, share in self._shares.items():
            credit[name] += room * share
        for name in sorted(credit, key=lambda name: -credit[name]):
            quotas[name] = min(left, max(0, int(credit[name])))
            left -= quotas[name]
        for name in sorted(credit, key=lambda name: quotas[name] - credit[name])[:left]:
            quotas[name] += 1
        return quotas
