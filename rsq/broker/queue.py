"""One queue: its keys, and what producers and people ask of it, as Python calls over the scripts.

What workers ask is in `rsq.broker.worker_queue`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rsq import keys
from rsq.broker import scripts
from rsq.broker.wire import Argument, packed, packed_texts
from rsq.calls.message import Message, pack_meta
from rsq.calls.outcome import REVOKED_TTL_MS, pack_failure
from rsq.calls.placement import Placement
from rsq.errors import BrokerRefused
from rsq.settings import Settings
from rsq.states import State

if TYPE_CHECKING:
    from rsq.broker.connection import ScriptCall

PAUSE, REFUSE, MOVED = b"pause", b"refuse", b"moved"
"""What the key `paused` holds: nothing is handed out; with the second one nothing is taken in, either; and with the
third one that is so for good, since the queue lies in another partition."""

FORGET_MS = 86_400_000
"""How long it is remembered that a call was revoked of which nobody knows where it is."""

BARRIER_TTL_MS = 1000
"""Life of the key that is written before a WAIT. Nobody reads it."""


def ends_of(dedupe_until: str) -> str:
    """What ends a dedupe marker before its time, as scripts take it."""
    return "" if dedupe_until == "ttl" else dedupe_until


def repeat_window_ms(settings: Settings) -> int:
    """For so long after a send that got no answer its producer can ask what became of it."""
    return int(min(settings.broker_timeout_s, 900.0) * 4000)  # an hour at most, as in _common.lua


def replication(barrier: str, replicas: int, left_s: float) -> list[bytes]:
    """The packed commands after a send that wait for replicas; the last one answers how many have it.

    WAIT counts from the last write of its own connection, and a send that finds itself repeated writes nothing: so
    something is written here, under the key `barrier`, that surely goes to the replicas. It takes half of the time that
    is left, for there has to be some for a repeat.
    """
    return [packed("SET", barrier, "", "PX", BARRIER_TTL_MS), packed("WAIT", replicas, max(1, int(left_s * 500)))]


class QueueMoved(BrokerRefused):
    """A queue was looked for in a partition in which it does not lie any more."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"queue {name} lies in another partition now: what knows it from before is to be started again"
        )


class Queue:
    """One queue: its name, its partition, its keys and its transitions. Holds no connection and no state."""

    def __init__(self, name: str, settings: Settings, partition: int = keys.PARTITION) -> None:
        self.name = keys.check_queue(name)
        self.partition = partition
        self.keys = keys.QueueKeys(settings.namespace, name, partition)
        self.settings = settings
        self._repeat_window_ms = repeat_window_ms(settings)
        self._streams = [self.keys.stream(priority) for priority in keys.PRIORITIES]

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"

    def plain_enqueue(self, message: Message) -> bytes:
        """The packed command of the hot path: no delay, no marker, no bound, a fresh id."""
        meta = pack_meta(message.meta) if message.meta else b""
        stream = self._streams[message.priority]
        texts = ("id", message.id, "task", message.task, "body", message.body, "meta", meta)
        return packed_texts("XADD", stream, "*", *texts)

    def introduce(self) -> bytes:
        """The packed command that makes the queue known to `rsq status` and to those who look for results."""
        return packed("SADD", keys.queues(self.settings.namespace), self.name)

    def promise(self) -> bytes:
        """The packed command by which it counts as used, before calls come: so it stays where it lies."""
        return packed("HINCRBY", self.keys.stats, "wakes", 0)

    def enqueue_call(self, message: Message, placement: Placement, repeated: bool = False) -> ScriptCall:
        """The script call for everything else. `repeated`: an earlier try did not arrive."""
        arguments = (
            message.id,
            message.task,
            message.body,
            pack_meta(message.meta),
            message.priority,
            "" if placement.delay_ms is None else placement.delay_ms,
            "" if placement.eta_ms is None else placement.eta_ms,
            placement.max_length,
            int(placement.unique),
            placement.dedupe_key,
            placement.dedupe_ttl_ms,
            self._repeat_window_ms,
            ends_of(placement.dedupe_until),
            int(placement.replaces),
            "" if placement.debounce_ms is None else placement.debounce_ms,
            int(repeated),
        )
        return scripts.ENQUEUE, self.keys.prefix, arguments

    def arrived_call(self, sends: Iterable[tuple[Message, Placement]], from_ms: int) -> ScriptCall:
        """Look whether calls arrived that were sent at `from_ms` or later, by the server's clock.

        Answers for each 1, 0, or -1 where nobody can tell.
        """
        rows: list[Argument] = []
        for message, placement in sends:
            marker = int(placement.unique), placement.dedupe_key, placement.dedupe_ttl_ms
            rows += (message.id, message.priority, *marker)
        return scripts.ARRIVED, self.keys.prefix, (from_ms, *rows)

    def revoke_call(self, ids: Sequence[str], terminate: bool) -> ScriptCall:
        """Revoke calls; answers what became of each."""
        result = pack_failure(State.REVOKED, 1, 0.0, "revoked")
        return scripts.REVOKE, self.keys.prefix, (int(terminate), FORGET_MS, result, REVOKED_TTL_MS, *ids)
