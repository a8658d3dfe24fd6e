"""Every transition of a message in one queue, as Python calls over the scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rsq import codec, keys
from rsq.broker import scripts
from rsq.broker.scripts import Script
from rsq.broker.wire import Argument, packed, packed_texts
from rsq.calls.message import WAKE, Delivery, Message, pack_meta
from rsq.calls.outcome import REVOKED_TTL_MS, Buried, Completed, Released, Retried, Verdict, pack_failure
from rsq.calls.placement import Placement
from rsq.errors import BrokerError, LeaseLost
from rsq.settings import Settings
from rsq.states import State

if TYPE_CHECKING:
    from rsq.broker.connection import Link, ScriptCall

LONGEST_BLOCK_MS = 1000
"""An idle worker looks at its queues again after this long, whatever happens. `_ready.lua` relies on it."""

TAKEN_TTL_MS = 7 * 86_400_000
"""How long an early-acknowledged call may run and still have its outcome committed."""

PAUSE, REFUSE = b"pause", b"refuse"
"""What the key `paused` holds: nothing is handed out; with the second one nothing is taken in, either."""

FORGET_MS = 86_400_000
"""How long it is remembered that a call was revoked of which nobody knows where it is."""

BARRIER_TTL_MS = 1000
"""Life of the key that is written before a WAIT. Nobody reads it."""


def ends_of(dedupe_until: str) -> str:
    """What ends a dedupe marker before its time, as scripts take it."""
    return "" if dedupe_until == "ttl" else dedupe_until


@dataclass
class Fetched:
    """What one fetch brought.

    now_ms      the server's clock
    next_due_ms  when the next delayed message is due, or None
    paused      nothing is handed out while the queue is paused
    priorities  streams in use, the most urgent first
    deliveries  the messages, now in this consumer's pending list
    wakes       entries without a call, by priority, to be settled silently
    """

    now_ms: int
    next_due_ms: int | None
    paused: bool
    priorities: list[int]
    deliveries: list[Delivery] = field(default_factory=list)
    wakes: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """A call that ran when its process died.

    entry_id  b'' if it was taken early
    limit_s   the time limit for which it was killed; None: it died with the process
    result    what its caller gets if it was taken early
    """

    priority: int
    entry_id: bytes
    task_id: str
    limit_s: float | None
    result: bytes


@dataclass(frozen=True)
class Rules:
    """What is asked before a body may start.

    version   (key, version, ttl in ms): not after a newer version of the key is done
    slot      (name, most at once) of a concurrency limit; ("", 0) = none
    rate      (name, microseconds between two starts, burst) of a rate limit
    reserved  it was put off by the rate limit before: this is its turn
    """

    version: tuple[str, int, int] | None = None
    slot: tuple[str, int] = ("", 0)
    rate: tuple[str, int, int] | None = None
    reserved: bool = False


@dataclass(frozen=True)
class Begin:
    """The answer: ``go`` (with newer arguments, if there are), ``superseded`` (`why`: by which version) or ``wait``."""

    word: str
    body: bytes = b""
    wait_ms: int = 0
    why: str = ""


class Queue:
    """One queue: its name, its keys and its transitions. Holds no connection and no state."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = keys.check_queue(name)
        self.keys = keys.QueueKeys(settings.namespace, name)
        self.settings = settings
        self._streams = [self.keys.stream(priority) for priority in keys.PRIORITIES]

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"

    # -- producers

    def plain_enqueue(self, message: Message) -> bytes:
        """The packed command of the hot path: no delay, no marker, no bound, a fresh id."""
        meta = pack_meta(message.meta) if message.meta else b""
        stream = self._streams[message.priority]
        texts = ("id", message.id, "task", message.task, "body", message.body, "meta", meta)
        return packed_texts("XADD", stream, "*", *texts)

    def introduce(self) -> bytes:
        """The packed command that makes the queue known to `rsq status` and to those who look for results."""
        return packed("SADD", keys.queues(self.settings.namespace), self.name)

    def replication(self, replicas: int, left_s: float) -> list[bytes]:
        """The packed commands after an enqueue that wait for replicas; the last one answers how many have it.

        WAIT counts from the last write of its own connection, and an enqueue that finds its call there writes nothing:
        so something is written here that surely goes to the replicas. It takes half of the time that is left, for there
        has to be some for a repeat.
        """
        wait_ms = max(1, int(left_s * 500))
        return [packed("SET", self.keys.barrier, "", "PX", BARRIER_TTL_MS), packed("WAIT", replicas, wait_ms)]

    def enqueue_call(self, message: Message, placement: Placement, since_ms: int | None = None) -> ScriptCall:
        """The script call for everything else, and for a repeat: `since_ms` after a first try whose reply was lost."""
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
            "" if since_ms is None else since_ms,
            ends_of(placement.dedupe_until),
            int(placement.replaces),
            "" if placement.debounce_ms is None else placement.debounce_ms,
        )
        return scripts.ENQUEUE, self.keys.prefix, arguments

    # -- workers

    def register(self, link: Link, consumer: str) -> None:
        """Begin as a consumer, with a lease."""
        # A full server adds nothing to a set, not even what it holds, and must be given workers to be emptied.
        if not link.call("SISMEMBER", keys.queues(self.settings.namespace), self.name):
            link.call_packed(self.introduce())
        link.run(scripts.REGISTER, self.keys.prefix, consumer, self.settings.lease_ms)

    def renew_call(self, consumers: Sequence[str]) -> ScriptCall:
        """Prolong the leases of a worker's consumers; answers those that have lost theirs."""
        return scripts.RENEW, self.keys.prefix, (self.settings.lease_ms, *consumers)

    def retire_call(self, consumer: str, how: str, ttl_ms: int, running: Iterable[Ended]) -> ScriptCall:
        """Hand on all that a consumer holds that left or died.

        how      how it ended, such as ``signal SIGKILL``
        ttl_ms   how long the results of calls are kept that were taken early
        running  the calls that ran when it died
        """
        rows: list[Argument] = []
        for each in running:
            limit_s = "" if each.limit_s is None else f"{each.limit_s:g}"
            rows += (each.priority, each.entry_id, each.task_id, limit_s, each.result)
        return scripts.RETIRE, self.keys.prefix, (consumer, how, ttl_ms, *rows)

    def reconcile_call(self) -> ScriptCall:
        """Find consumers of the group that have no lease record; answers those whose entries others may claim now.

        It goes through all of them, so it does so once in the life of a lease, however many workers ask. They ask as
        often, and none should come a moment too soon.
        """
        lease_ms = self.settings.lease_ms
        return scripts.RECONCILE, self.keys.prefix, (lease_ms, max(1, lease_ms * 9 // 10))

    def fetch(self, link: Link, consumer: str, room: int) -> Fetched:
        """Do what is due, and get up to `room` messages. Raises LeaseLost for a consumer that is not registered."""
        reply = link.run(scripts.FETCH, self.keys.prefix, consumer, room)
        if reply == -1:
            raise LeaseLost(f"consumer {consumer} is not registered on queue {self.name} any more")
        now_ms, next_due_ms, paused, priorities, claimed, fresh, revoked = reply
        fetched = Fetched(now_ms, None if next_due_ms < 0 else next_due_ms, bool(paused), priorities)
        for priority, entry_id, fields, deliveries, crashes, overdue in claimed:
            if fields[0] == WAKE:
                fetched.wakes.append(entry_id)
                continue
            delivery = Delivery(self.name, priority, entry_id, fields)
            delivery.deliveries = deliveries
            _mark_killed(delivery, crashes, overdue)
            fetched.deliveries.append(delivery)
        for priority, entries in fresh:
            self.sort(priority, entries, fetched.deliveries, fetched.wakes)
        if revoked:
            names = {name.decode(errors="replace") for name in revoked}
            for delivery in fetched.deliveries:
                delivery.revoked = delivery.id in names
        return fetched

    def read(self, link: Link, consumer: str, room: int) -> tuple[list[Delivery], list[bytes], bool]:
        """Up to `room` new messages of the plain stream alone, at a third of what a fetch costs the server.

        For a busy worker between two fetches, while no other stream is in use.

        Returns  (deliveries, wakes, whether it may be read on like this): False when paused, or with urgent messages
        """
        reply, reasons, some_revoked = link.pipeline(
            [
                ("XREADGROUP", "GROUP", keys.GROUP, consumer, "COUNT", room, "STREAMS", self._streams[0], ">"),
                ("EXISTS", self.keys.paused, *self._streams[1:]),
                ("EXISTS", self.keys.revoked),
            ]
        )
        deliveries: list[Delivery] = []
        wakes: list[bytes] = []
        for error in (reply, reasons, some_revoked):
            if isinstance(error, BrokerError):
                raise error
        if reply:
            self.sort(0, reply[0][1], deliveries, wakes)
        if some_revoked:
            self.mark_revoked(link, deliveries)
        return deliveries, wakes, reasons == 0

    def sort(self, priority: int, entries: Any, deliveries: list[Delivery], wakes: list[bytes]) -> None:
        """Append each entry of one stream to `deliveries`, or to `wakes` where it carries no call."""
        name = self.name
        for entry_id, fields in entries:
            if fields[0] == WAKE:
                wakes.append(entry_id)
            else:
                deliveries.append(Delivery(name, priority, entry_id, fields))

    def mark_killed(self, link: Link, deliveries: Sequence[Delivery]) -> None:
        """Set what is known of processes that ran them before: for messages that no fetch has looked at."""
        if not deliveries:
            return
        ids = [delivery.id for delivery in deliveries]
        marks = link.pipeline([("HMGET", self.keys.crashes, *ids), ("HMGET", self.keys.overdue, *ids)])
        for reply in marks:
            if isinstance(reply, BrokerError):
                raise reply
        for delivery, crashes, overdue in zip(deliveries, *marks, strict=True):
            _mark_killed(delivery, crashes, overdue)
            if crashes or overdue:
                delivery.deliveries = 2  # at least: the one whose process died, and this one

    def mark_revoked(self, link: Link, deliveries: Sequence[Delivery]) -> None:
        """Set `revoked` on those that are: for messages that no fetch has looked at."""
        for delivery, (revoked, _) in zip(deliveries, self.revocations(link, deliveries), strict=True):
            delivery.revoked = revoked

    def revocations(self, link: Link, deliveries: Sequence[Delivery]) -> list[tuple[bool, bool]]:
        """Whether each is revoked, and whether it is to be interrupted where it runs."""
        ids = [delivery.id for delivery in deliveries]
        if not ids or not link.call("EXISTS", self.keys.revoked):
            return [(False, False)] * len(ids)
        marks = link.pipeline([("ZMSCORE", self.keys.revoked, *ids), ("ZMSCORE", self.keys.terminate, *ids)])
        for reply in marks:
            if isinstance(reply, BrokerError):
                raise reply
        return [(revoked is not None, ends is not None) for revoked, ends in zip(*marks, strict=True)]

    def revoke_call(self, ids: Sequence[str], terminate: bool) -> ScriptCall:
        """Revoke calls; answers what became of each."""
        result = pack_failure(State.REVOKED, 1, 0.0, "revoked")
        return scripts.REVOKE, self.keys.prefix, (int(terminate), FORGET_MS, result, REVOKED_TTL_MS, *ids)

    def take(self, link: Link, consumer: str, delivery: Delivery) -> bool:
        """Acknowledge before the body starts. False: somebody else ended it, do not run it. Raises LeaseLost."""
        reply = link.run(
            scripts.TAKE,
            self.keys.prefix,
            consumer,
            delivery.priority,
            delivery.entry_id,
            delivery.id,
            TAKEN_TTL_MS,
        )
        if reply == -1:
            raise LeaseLost(f"consumer {consumer} is not registered on queue {self.name} any more")
        return bool(reply)

    def begin(self, link: Link, consumer: str, task_id: str, rules: Rules) -> Begin:
        """Ask whether a body may start that has rules or limits. Raises LeaseLost."""
        version = ("", 0, 0) if rules.version is None else rules.version
        rate = ("", 0, 0) if rules.rate is None else rules.rate
        reply = link.run(
            scripts.BEGIN, self.keys.prefix, consumer, task_id, *version, *rules.slot, *rate, int(rules.reserved)
        )
        if reply == -1:
            raise LeaseLost(f"consumer {consumer} is not registered on queue {self.name} any more")
        word, value, *why = reply
        if word == b"go":
            return Begin("go", body=value)
        if word == b"superseded":
            return Begin("superseded", why=value.decode())
        return Begin("wait", wait_ms=value, why=why[0].decode())

    def drop_wakes_call(self, consumer: str, entry_ids: Sequence[bytes]) -> ScriptCall:
        """Settle entries that carried no call."""
        arguments: list[Argument] = [consumer, 0, "wakes"]
        for entry_id in entry_ids:
            arguments += (entry_id, "", "", 0)
        return scripts.COMPLETE, self.keys.prefix, tuple(arguments)

    def commit_calls(self, consumer: str, verdicts: Iterable[Verdict]) -> list[ScriptCall]:
        """The script calls that settle these verdicts: one for each kind and stream."""
        batches: dict[tuple[Script, int, str], list[Argument]] = defaultdict(list)
        for verdict in verdicts:
            delivery = verdict.delivery
            if type(verdict) is Completed:
                batches[scripts.COMPLETE, delivery.priority, verdict.counter] += (
                    delivery.entry_id,
                    delivery.id,
                    verdict.result,
                    verdict.ttl_ms,
                )
            elif type(verdict) is Retried:
                batches[scripts.RETRY, delivery.priority, verdict.counter] += (
                    delivery.entry_id,
                    delivery.id,
                    delivery.task,
                    delivery.body,
                    pack_meta(verdict.meta),
                    verdict.delay_ms,
                    *verdict.slot,
                )
            elif type(verdict) is Buried:
                batches[scripts.BURY, delivery.priority, ""] += (
                    delivery.entry_id,
                    delivery.id,
                    delivery.task,
                    delivery.body,
                    delivery.meta_raw,
                    verdict.reason,
                    codec.encode(dict(verdict.error)),
                    delivery.attempt,
                    verdict.result,
                    verdict.ttl_ms,
                )
            elif type(verdict) is Released:
                batches[scripts.RELEASE, delivery.priority, ""].append(delivery.entry_id)
        calls: list[ScriptCall] = []
        for (script, priority, counter), arguments in batches.items():
            head: tuple[Argument, ...] = (consumer, priority)
            if script is scripts.BURY:
                head += (self.settings.dead_max_length, self.settings.dead_max_age_ms)
            elif script is not scripts.RELEASE:
                head += (counter,)
            calls.append((script, self.keys.prefix, (*head, *arguments)))
        return calls


def _mark_killed(delivery: Delivery, crashes: bytes | None, overdue: bytes | None) -> None:
    if crashes:
        number, _, how = crashes.decode().partition(" ")
        delivery.crashes, delivery.crash_how = int(number), how
    if overdue:
        delivery.overdue_s = float(overdue)
