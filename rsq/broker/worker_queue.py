"""What workers ask of a queue: leases, fetching, and the outcomes of calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from struct import iter_unpack
from typing import TYPE_CHECKING

from rsq import codec, keys
from rsq.broker import rows, scripts
from rsq.broker.emitter import emit_call
from rsq.broker.faults import checked
from rsq.broker.flow_pages import PAGE_NODES, Pages
from rsq.broker.queue import Queue, QueueMoved
from rsq.broker.replies import Begin, Fetched, mark_killed, parse_begin, parse_fetched, sort_entries
from rsq.broker.scripts import Script
from rsq.broker.wire import Argument
from rsq.calls.inputs import FAILED, added_to, origin_of, takes_of, too_large, wanted_by
from rsq.calls.message import NO_META, Delivery, changed_meta
from rsq.calls.outcome import Buried, Completed, Released, Replaced, Retried, Verdict, pack_failure, report_of
from rsq.calls.stamps import marks_of
from rsq.errors import BrokerError, FlowExpired, FlowGone, LeaseLost, WorkerLost
from rsq.remote import encode_error
from rsq.states import State

if TYPE_CHECKING:
    from rsq.broker.connection import Link, ScriptCall

LONGEST_BLOCK_MS = 1000
"""An idle worker looks at its queues again after this long, whatever happens. `_ready.lua` relies on it."""

LOST = pack_failure(
    State.FAILURE,
    1,
    0.0,
    encode_error(WorkerLost("the worker that ran this call, or the server that had its outcome, is gone")),
)
"""What the caller gets of a call that was acknowledged early and lost with its worker."""

LOST_TTL_MS = 86_400_000
"""How long that is readable."""


EXPIRED = pack_failure(
    State.FAILURE, 1, 0.0, encode_error(FlowExpired("its flow made no progress for too long, and was ended"))
)
"""What the caller gets of a call that ended with its flow (flow-expired)."""

SKIPPED = pack_failure(State.REVOKED, 1, 0.0, "upstream")

MEMBERS_PAGE = 100
"""Calls of flows that one script settles."""

VALUES_PAGE = 1000
"""Values of a flow in one read."""

LIST_PAGE = 1000
"""Numbers in one field of a list that has grown, as in _flow_stored.lua."""


@dataclass(frozen=True)
class Rules:
    """What is asked before a body may start.

    version   (key, version, ttl in ms): not after a newer version of the key is done
    slot      (name, most at once) of a concurrency limit; ("", 0) = none
    rate      (name, microseconds between two starts, burst) of a rate limit
    """

    version: tuple[str, int, int] | None = None
    slot: tuple[str, int] = ("", 0)
    rate: tuple[str, int, int] | None = None


def _marks_of(delivery: Delivery) -> list[str | bytes]:
    """What in a queue's revocations means this call."""
    meta = delivery.meta
    flow = [f"flow {meta['flow'][0]}"] if "flow" in meta else []
    return [delivery.id, *flow, *marks_of(meta.get("stamps", NO_META))]


def by_partition(queues: Sequence[WorkerQueue]) -> list[list[WorkerQueue]]:
    """The queues of each partition, both in the order in which they are given."""
    found: dict[int, list[WorkerQueue]] = {}
    for queue in queues:
        found.setdefault(queue.partition, []).append(queue)
    return list(found.values())


class WorkerQueue(Queue):
    """A queue as a worker sees it."""

    def register(self, link: Link, consumer: str, former: str = "") -> None:
        """Begin as a consumer, with a lease. Raises QueueMoved: there is nothing to be done here any more.

        former  the name under which it lost its lease: it answers for what it acknowledged early under that and runs;
                what else a read has brought under that is for others
        """
        if link.run(scripts.REGISTER, self.keys.prefix, consumer, self.settings.lease_ms, former) == b"moved":
            raise QueueMoved(self.name)

    def renew_call(self, consumers: Sequence[str]) -> ScriptCall:
        """Prolong the leases of a worker's consumers; answers those that have lost theirs."""
        return scripts.RENEW, self.keys.prefix, (self.settings.lease_ms, *consumers)

    def retire_call(self, consumer: str, how: str, ttl_ms: int, running: Iterable[rows.CutShort]) -> ScriptCall:
        """Hand on all that a consumer holds that left or died.

        how      how it ended, such as ``signal SIGKILL``
        ttl_ms   how long the results of calls are kept that were taken early
        running  the calls that ran when it died
        """
        return scripts.RETIRE, self.keys.prefix, (consumer, how, ttl_ms, *(field for row in running for field in row))

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
            raise self._lost(consumer)
        fetched = parse_fetched(self.name, reply)
        if stamped := [delivery for delivery in fetched.deliveries if "stamps" in delivery.meta]:
            self.mark_revoked(link, stamped)
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
            sort_entries(self.name, 0, reply[0][1], deliveries, wakes)
        if some_revoked:
            self.mark_revoked(link, deliveries)
        return deliveries, wakes, reasons == 0

    def mark_killed(self, link: Link, deliveries: Sequence[Delivery]) -> None:
        """Set what is known of processes that ran them before: for messages that no fetch has looked at."""
        if not deliveries:
            return
        ids = [delivery.id for delivery in deliveries]
        marks = checked(link.pipeline([("HMGET", self.keys.crashes, *ids), ("HMGET", self.keys.overdue, *ids)]))
        for delivery, crashes, overdue in zip(deliveries, *marks, strict=True):
            mark_killed(delivery, crashes, overdue)
            if crashes or overdue:
                delivery.deliveries = 2  # at least: the one whose process died, and this one

    def mark_revoked(self, link: Link, deliveries: Sequence[Delivery]) -> None:
        """Set `revoked` on those that are: for messages that no fetch has looked at, or not at their stamps."""
        for delivery, (revoked, _) in zip(deliveries, self.revocations(link, deliveries), strict=True):
            delivery.revoked = revoked

    def revocations(self, link: Link, deliveries: Sequence[Delivery]) -> list[tuple[bool, bool]]:
        """Whether each is revoked, or its flow or a stamp is, and whether it is to be interrupted where it runs."""
        if not deliveries or not link.call("EXISTS", self.keys.revoked):
            return [(False, False)] * len(deliveries)
        names = [_marks_of(delivery) for delivery in deliveries]
        replies = iter(link.call("ZMSCORE", self.keys.revoked, *(name for each in names for name in each)))
        found = [[float(mark) for mark in islice(replies, len(each)) if mark is not None] for each in names]
        return [(bool(each), any(mark % 1 > 0 for mark in each)) for each in found]

    def flow_values(self, link: Link, delivery: Delivery) -> dict[int, bytes]:
        """The packed values that a call takes by reference, by the number of the node, see `rsq.calls.inputs`.

        Raises  FlowGone; MessageTooLarge where they are more together than a message may hold; DecodeError
        """
        flow_id = delivery.meta["flow"][0]
        key = keys.FlowKeys(self.keys.prefix, flow_id).flow
        added = self._added_numbers(link, key, *added_to(delivery))
        numbers, values, size = sorted({*wanted_by(delivery), *added}), dict[int, bytes](), 0
        for first in range(0, len(numbers), VALUES_PAGE):
            some = numbers[first : first + VALUES_PAGE]
            for number, packed in zip(some, link.call("HMGET", key, *_value_names(some)), strict=True):
                if packed is None:
                    raise FlowGone(
                        f"{delivery.task}[{delivery.id}] takes the value of node {number} of flow {flow_id}, which is "
                        "not kept any more: the flow has ended, or was dropped"
                    )
                size += len(packed)
                if size > self.settings.max_message_bytes:
                    raise too_large(delivery, numbers, self.settings.max_message_bytes)
                values[number] = packed
        if isinstance(takes_of(delivery), str):
            # An errback: of a call that was sent again, and has succeeded since, it gets what that had failed with.
            for number in [each for each in numbers if values[each][:1] != FAILED]:
                values[number] = link.call("HGET", key, f"{number}e")
        origins = {number: origin for number, packed in values.items() if (origin := origin_of(packed)) is not None}
        if origins:
            others = sorted({*origins.values()})
            found = dict(zip(others, link.call("HMGET", key, *_value_names(others)), strict=True))
            values |= {number: found[other] or FAILED + SKIPPED for number, other in origins.items()}
        return values

    def _added_numbers(self, link: Link, key: str, owner: int = 0, count: int = 0) -> Iterator[int]:
        names = [f"{owner}m{page}" for page in range(-(-count // LIST_PAGE))]
        for packed in link.call("HMGET", key, *names) if names else ():
            yield from (number for (number,) in iter_unpack(">I", packed or b""))

    def go_on_call(self) -> ScriptCall:
        """Carry on what is left of flows; answers how much still is."""
        return scripts.GO_ON, self.keys.prefix, (EXPIRED,)

    def take(self, link: Link, consumer: str, delivery: Delivery) -> bool:
        """Acknowledge before the body starts. False: somebody else ended it, do not run it. Raises LeaseLost."""
        entry = (delivery.priority, delivery.entry_id, delivery.id)
        place = delivery.meta.get("flow", ("", 0))[:2]
        reply = link.run(scripts.TAKE, self.keys.prefix, consumer, *entry, LOST, LOST_TTL_MS, *place)
        if reply == -1:
            raise self._lost(consumer)
        return bool(reply)

    def disclaim_call(self, consumer: str, task_ids: Iterable[str]) -> ScriptCall:
        """Calls that this consumer acknowledged early, and does not run: a failover lost what became of them. Answers
        how many have ended by this.
        """
        return scripts.DISCLAIM, self.keys.prefix, (consumer, *task_ids)

    def begin(self, link: Link, consumer: str, delivery: Delivery, rules: Rules, revision: int = 0) -> Begin:
        """Ask whether a body may start that has rules or limits. Raises LeaseLost.

        revision  of the newer arguments that made the rules; 0: those that were sent
        """
        version = ("", 0, 0) if rules.version is None else rules.version
        rate = ("", 0, 0) if rules.rate is None else rules.rate
        call = (delivery.entry_id, delivery.id, revision)
        reply = link.run(scripts.BEGIN, self.keys.prefix, consumer, *call, *version, *rules.slot, *rate)
        if reply == -1:
            raise self._lost(consumer)
        return parse_begin(reply)

    def drop_wakes_call(self, consumer: str, entry_ids: Sequence[bytes]) -> ScriptCall:
        """Settle entries that carried no call."""
        return scripts.DROP_WAKES, self.keys.prefix, (consumer, *entry_ids)

    def commit_calls(self, consumer: str, verdicts: Iterable[Verdict]) -> list[ScriptCall]:
        """The script calls that settle these verdicts: one for each kind, stream and way of acknowledgement; and for so
        many of flows, which are told of theirs. Either all of their bodies have emitted something, or none has.
        """
        verdicts = list(verdicts)
        if verdicts and verdicts[0].delivery.output is not None:
            return [call for verdict in verdicts for call in self._emitting_calls(consumer, verdict)]
        members = [verdict for verdict in verdicts if "flow" in verdict.delivery.meta]
        if not members:
            return self._commit_calls(consumer, verdicts)
        calls = self._commit_calls(consumer, [each for each in verdicts if "flow" not in each.delivery.meta])
        for page in _pages_of(members):
            calls += self._commit_calls(consumer, page, True)
        return calls

    def _emitting_calls(self, consumer: str, verdict: Verdict) -> list[ScriptCall]:
        """Those of a call that has emitted: what the server lacks goes before its outcome, the last of it with that."""
        delivery, of_flow = verdict.delivery, "flow" in verdict.delivery.meta
        earlier: list[bytes] = [] if type(verdict) is Released else delivery.output.rest()
        last = earlier.pop() if earlier and type(verdict) is not Replaced else b""
        calls = [emit_call(self.keys.prefix, delivery, each) for each in earlier]
        return calls + self._commit_calls(consumer, [verdict], of_flow, last)

    def _commit_calls(
        self, consumer: str, verdicts: Iterable[Verdict], of_flows: bool = False, emitted: bytes = b""
    ) -> list[ScriptCall]:
        batches: dict[tuple[Script, int, bool, str], list[Argument]] = defaultdict(list)
        reports: dict[tuple[Script, int, bool, str], list[Argument]] = defaultdict(list)
        pages: dict[tuple[Script, int, bool, str], list[rows.Added]] = defaultdict(list)
        calls: list[ScriptCall] = []
        for verdict in verdicts:
            delivery = verdict.delivery
            if type(verdict) is Completed:
                kind = (scripts.COMPLETE, delivery.priority, delivery.taken, verdict.counter)
                batch = batches[kind]
                if of_flows:
                    if verdict.counter == "succeeded" and hasattr(delivery, "added"):
                        for adding in delivery.added.values():
                            calls += (call for _, call in adding.kept_calls(self.settings, self.keys.prefix, delivery))
                        pages[kind] += self._pages(delivery, len(batch) // len(rows.Completed._fields))
                    # A `rows.Reported`, as below, and as texts: a command without numbers is packed at half the cost.
                    place, (skip, value) = delivery.meta["flow"], report_of(verdict)
                    reports[kind].extend((place[0], str(place[1]), str(skip), value))
                # A `rows.Completed`, without the cost of making one: nearly all that is ever committed.
                batch.extend(
                    (delivery.entry_id, delivery.id, verdict.result if verdict.ttl_ms else b"", str(verdict.ttl_ms))
                )
            elif type(verdict) is Retried:
                batches[scripts.RETRY, delivery.priority, delivery.taken, verdict.counter] += rows.Retried(
                    delivery.entry_id,
                    delivery.id,
                    delivery.task,
                    delivery.body,
                    changed_meta(delivery.meta_raw, delivery.meta, verdict.meta),
                    verdict.delay_ms,
                    *verdict.slot,
                )
            elif type(verdict) is Buried:
                kind = (scripts.BURY, delivery.priority, delivery.taken, "")
                if of_flows:
                    reports[kind] += (*delivery.meta["flow"][:2], *report_of(verdict))
                batches[kind] += rows.Buried(
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
            elif type(verdict) is Replaced:
                calls += self._replace_calls(consumer, verdict)
            elif type(verdict) is Released:
                batches[scripts.RELEASE, delivery.priority, False, ""].append(delivery.entry_id)
        for kind, arguments in batches.items():
            script, priority, taken, counter = kind
            told, added = reports.get(kind, ()), pages.get(kind, ())
            number = len(told) // len(rows.Reported._fields)
            head: tuple[Argument, ...] = (consumer, str(priority))
            if script is scripts.BURY:
                head += (int(taken), self.settings.dead_max_length, self.settings.dead_max_age_ms, number, emitted)
            elif script is scripts.COMPLETE:
                head += ("1" if taken else "0", counter, str(number), str(len(added)), emitted)
            elif script is scripts.RETRY:
                head += (int(taken), counter, emitted)
            calls.append((script, self.keys.prefix, (*head, *arguments, *told, *chain(*added))))
        return calls

    def _replace_calls(self, consumer: str, verdict: Replaced) -> list[ScriptCall]:
        delivery, plan = verdict.delivery, verdict.plan
        above = tuple(delivery.meta["flow"][:2]) if "flow" in delivery.meta else ("", 0)
        *earlier, last = Pages(plan, self.settings, verdict.tail, above)
        calls: list[ScriptCall] = [(scripts.FLOW, self.keys.prefix, (plan.id, *page)) for page in earlier]
        entry = (consumer, delivery.priority, int(delivery.taken), delivery.entry_id, delivery.id)
        return [*calls, (scripts.REPLACE, self.keys.prefix, (*entry, plan.id, *last))]

    def _pages(self, delivery: Delivery, row: int) -> Iterator[rows.Added]:
        for flow_id, adding in delivery.added.items():
            yield rows.Added(row, flow_id, f"of {delivery.id}", *adding.last_page(self.settings))

    def _lost(self, consumer: str) -> LeaseLost:
        return LeaseLost(f"consumer {consumer} is not registered on queue {self.name} any more")


def _pages_of(members: Iterable[Verdict]) -> Iterator[list[Verdict]]:
    """What one script is told of flows: so many outcomes, and so many nodes that they add, or those of one."""
    page: list[Verdict] = []
    held = 0
    for verdict in members:
        delivery = verdict.delivery
        nodes = sum(len(adding.nodes) for adding in delivery.added.values()) if hasattr(delivery, "added") else 0
        if page and (len(page) == MEMBERS_PAGE or held + nodes > PAGE_NODES):
            yield page
            page, held = [], 0
        page.append(verdict)
        held += nodes
    yield page


def _value_names(numbers: Iterable[int]) -> list[str]:
    return [f"{number}v" for number in numbers]
