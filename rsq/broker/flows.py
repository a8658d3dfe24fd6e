"""Flows as their producer and people see them: starting, looking, cancelling. What workers do is in the scripts.

Starting is written once for threads and coroutines, as a talk (see `rsq.broker.exchange`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from rsq import keys
from rsq.broker import scripts
from rsq.broker.adding import Adding
from rsq.broker.answers import too_few
from rsq.broker.connection import ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange, asking, pauses
from rsq.broker.flow_looks import HEAD, Flow, NodeState, outcomes_of, state_of, unpack_head
from rsq.broker.flow_pages import PAGE_NODES, Pages
from rsq.broker.flow_rows import Stored, above_of, read_node
from rsq.broker.partitions import Queues
from rsq.broker.queue import MOVED, Queue, replication
from rsq.broker.waiting import InFlow
from rsq.broker.wire import Argument, packed
from rsq.broker.worker_queue import EXPIRED
from rsq.calls.message import Delivery, check_id
from rsq.calls.outcome import pack_failure
from rsq.calls.plan import Node, Plan
from rsq.errors import (
    BatchClosed,
    BrokerError,
    BrokerUnavailable,
    LeaseLost,
    NotReplicated,
    QueueFull,
    QueuePaused,
    SettingsError,
)
from rsq.settings import Settings
from rsq.states import State

RELEASED_AT_ONCE = 200
"""Nodes that one script releases, as in _flow.lua."""

LISTED_PAGE = NODES_PAGE = 500
"""Ids of flows, and nodes of one, that are read at once."""

WRITTEN = [b"accepted"], [b"added"]
"""Answers of scripts that have written what they were given, now or before."""

CANCELLED = pack_failure(State.REVOKED, 1, 0.0, "cancelled")


class Flows:
    """The flows of an app, on the server.

    follow   carries a talk on in this thread
    afollow  gives a coroutine that does so
    queue    gives a queue by its name
    queues   those that are known
    """

    def __init__(
        self,
        settings: Settings,
        follow: Callable[[Exchange[Any]], Any],
        afollow: Callable[[Exchange[Any]], Any],
        queue: Callable[[str | None], Queue],
        queues: Queues,
    ) -> None:
        self._settings = settings
        self._follow = follow
        self._afollow = afollow
        self._queue = queue
        self._queues = queues

    def start(self, plan: Plan) -> None:
        """Start a flow: when this returns the server has all of it, else nothing of it runs.

        A repeated start of a plan with the same id, by whomever, changes nothing. Raises SettingsError for a plan that
        is none, QueueFull, QueuePaused, BrokerUnavailable, BrokerRefused.
        """
        self._follow(self._starting(plan))

    async def astart(self, plan: Plan) -> None:
        """`start` for coroutines."""
        await self._afollow(self._starting(plan))

    def look(self, flow_id: str) -> Flow | None:
        """A flow, or None where it is gone."""
        return unpack_head(flow_id, self._ask(("HMGET", self._keys(flow_id).flow, *HEAD))[0])

    def channel(self, flow_id: str) -> str:
        """Where its end is published; a listener finds there what has ended before."""
        return self._keys(flow_id).flow

    def place(self, flow_id: str, number: int) -> InFlow:
        """Where a listener finds what became of a node that ended without a result of its own."""
        return InFlow(self._keys(flow_id).flow, number)

    def ids(self) -> Iterator[str]:
        """The flows that have not succeeded, those first that will be ended or forgotten next."""
        first, listed = 0, self._keys("").listed
        while rows := self._ask(("ZRANGE", listed, first, first + LISTED_PAGE - 1))[0]:
            yield from (flow_id.decode("utf-8", "replace") for flow_id in rows)
            first += LISTED_PAGE

    def outcome(self, flow_id: str, number: int) -> bytes | None:
        """The packed result of a node that ended without one of its own: since another failed, or with its flow."""
        found: bytes | None = self._follow(self._outcome(flow_id, number))
        return found

    async def aoutcome(self, flow_id: str, number: int) -> bytes | None:
        """`outcome` for coroutines."""
        found: bytes | None = await self._afollow(self._outcome(flow_id, number))
        return found

    def outcomes(self, flow_id: str, numbers: Sequence[int]) -> list[bytes | None]:
        """`outcome` of many nodes, in one question or two."""
        found: list[bytes | None] = self._follow(self._outcomes(flow_id, numbers))
        return found

    async def aoutcomes(self, flow_id: str, numbers: Sequence[int]) -> list[bytes | None]:
        """`outcomes` for coroutines."""
        found: list[bytes | None] = await self._afollow(self._outcomes(flow_id, numbers))
        return found

    def pages(self, flow_id: str) -> Iterator[list[NodeState]]:
        """All its nodes, NODES_PAGE at a time; see `nodes`."""
        first = 0
        while page := self.nodes(flow_id, first, NODES_PAGE):
            yield page
            first += NODES_PAGE

    def nodes(self, flow_id: str, first: int, count: int) -> list[NodeState]:
        """Some nodes of a flow that has not succeeded yet, in their order."""
        rows = self.rows(flow_id, range(first, first + count))
        return [state_of(number, row) for number, row in rows.items()]

    def rows(self, flow_id: str, numbers: Sequence[int]) -> dict[int, Stored]:
        """Some nodes of a flow, as they are stored; those that there are."""
        if not numbers:
            return {}
        (found,) = self._ask(("HMGET", self._keys(flow_id).flow, *numbers))
        return {n: read_node(row) for n, row in zip(numbers, found, strict=True) if row is not None}

    def above(self, flow_id: str) -> tuple[int, str, int] | None:
        """Which node stands for a call of another flow; that flow, and the number of that call. None: no node does."""
        (head,) = self._ask(("HGET", self._keys(flow_id).flow, "head"))
        return None if head is None else above_of(head)

    def cancel(self, flow_id: str, terminate: bool = False) -> bool:
        """End a flow: what waits in it never starts, nor what is on its way. False: it had ended, or is gone.

        terminate  what runs is interrupted
        """
        call = self._script(scripts.FLOW_CANCEL, flow_id, int(terminate), CANCELLED)
        return bool(self._follow(self._running(call)))

    def add(self, flow_id: str, key: str, nodes: Sequence[Node]) -> None:
        """Add nodes to a batch, at most 1,000 at once, which count their edges from 0.

        key     names this page: added again under the same one they stand once
        Raises  BatchClosed: it is sealed, has ended, or is gone; SettingsError, BrokerUnavailable, BrokerRefused
        """
        self._follow(self._adding(flow_id, key, nodes))

    async def aadd(self, flow_id: str, key: str, nodes: Sequence[Node]) -> None:
        """`add` for coroutines."""
        await self._afollow(self._adding(flow_id, key, nodes))

    def seal(self, flow_id: str) -> bool:
        """Nothing is added to a batch from now on, but by members that run. False: it was not open any more."""
        return bool(self._follow(self._running(self._script(scripts.FLOW_SEAL, flow_id, 1))))

    async def aseal(self, flow_id: str) -> bool:
        """`seal` for coroutines."""
        return bool(await self._afollow(self._running(self._script(scripts.FLOW_SEAL, flow_id, 1))))

    def keep_open(self, flow_id: str) -> bool:
        """Renew the lease of an open batch. False: it is not open any more."""
        return bool(self._follow(self._running(self._script(scripts.FLOW_SEAL, flow_id, 0))))

    async def akeep_open(self, flow_id: str) -> bool:
        """`keep_open` for coroutines."""
        return bool(await self._afollow(self._running(self._script(scripts.FLOW_SEAL, flow_id, 0))))

    def introduce(self, flow_id: str, queues: Collection[str]) -> None:
        """Make queues known to which calls of a flow go. Raises SettingsError where one lies in another partition."""
        if queues:
            self._follow(self._introducing(flow_id, queues))

    async def aintroduce(self, flow_id: str, queues: Collection[str]) -> None:
        """`introduce` for coroutines."""
        if queues:
            await self._afollow(self._introducing(flow_id, queues))

    def keep(self, delivery: Delivery, adding: Adding) -> None:
        """Keep what a call that runs adds to a flow, but for the last page of it, until it succeeds.

        Raises  LeaseLost: this run is over, and nothing will come of it; BrokerUnavailable, BrokerRefused
        """
        if adding.unsent:
            self._follow(self._keeping(delivery, adding))

    async def akeep(self, delivery: Delivery, adding: Adding) -> None:
        """`keep` for coroutines."""
        if adding.unsent:
            await self._afollow(self._keeping(delivery, adding))

    def revoke(self, flow_id: str, number: int) -> bool:
        """Have a call that waits not run: it ends at once. False: it does not wait, so it is revoked like any other."""
        return bool(self._follow(self._running(self._script(scripts.FLOW_REVOKE, flow_id, number))))

    def drop(self, flow_id: str) -> None:
        """Forget a flow: nobody hears of it any more, and what its members report goes nowhere."""
        flow = self._keys(flow_id)
        self._ask(("UNLINK", flow.flow), ("ZREM", flow.listed, flow_id))

    # -- talks

    def _starting(self, plan: Plan) -> Exchange[None]:
        check_id(plan.id)
        for _ in range(2):
            if (yield from self._sending(plan)):
                return
            if not isinstance(plan.nodes, Sequence):
                break
        raise BrokerUnavailable(f"flow {plan.id} was not started: the server has lost its first pages; start it again")

    def _sending(self, plan: Plan) -> Exchange[bool]:
        """False where it has to be sent anew: pages of it were lost, or its queues lie elsewhere."""
        pages = Pages(plan, self._settings)
        for page in pages:
            call = self._script(scripts.FLOW, plan.id, *page)
            introduction = yield from self._introduction(plan.id, pages.queues)
            last = pages.complete
            answer = yield from self._insist(call, introduction if last else (), pages.replicas if last else 0)
            match answer:
                case [b"full", queue, held]:
                    raise QueueFull(
                        f"queue {queue.decode()!r} holds {held} messages, and the flow would pass its max_length: "
                        "nothing of it was started; try again later"
                    )
                case [b"paused", queue]:
                    raise QueuePaused(
                        f"queue {queue.decode()!r} is paused and refuses calls; nothing of the flow was started: start "
                        f"it again after rsq resume {queue.decode()}"
                    )
                case [b"moved", queue]:
                    yield from self._look_anew(plan.id, queue.decode())
                    return False
                case [b"missing"]:
                    return False
                case [b"accepted"]:
                    break
        yield from self._release(pages.size)
        return True

    def _adding(self, flow_id: str, key: str, nodes: Sequence[Node]) -> Exchange[None]:
        if len(nodes) > PAGE_NODES:
            raise SettingsError(f"{len(nodes)} nodes are too many for one page of adds: {PAGE_NODES} at most")
        pages = Pages(Plan(flow_id, nodes), self._settings)
        call = self._script(scripts.FLOW_ADD, flow_id, key, *pages.added())
        introduction = yield from self._introduction(flow_id, pages.queues)
        match (yield from self._insist(call, introduction, pages.replicas)):
            case [b"moved", queue]:
                yield from self._look_anew(flow_id, queue.decode())
            case [b"closed"]:
                raise BatchClosed(f"batch {flow_id} takes no more calls: it is sealed, has ended, or is gone")
            case [b"full"]:
                most = self._settings.max_flow_calls
                raise SettingsError(
                    f"batch {flow_id} would have more than {most:,} calls (max_flow_calls): make several of it"
                )

    def _introducing(self, flow_id: str, queues: Collection[str]) -> Exchange[None]:
        found = yield from self._located(flow_id, queues)
        looks = [packed("GET", queue.keys.paused) for queue in found]
        replies = yield from asking([*introductions(found), *looks], self._deadline())
        for queue, pause in zip(found, replies[-len(found) :], strict=True):
            if pause == MOVED:
                yield from self._look_anew(flow_id, queue.name)

    def _keeping(self, delivery: Delivery, adding: Adding) -> Exchange[None]:
        for number, call in adding.kept_calls(self._settings, self._queue(delivery.queue).keys.prefix, delivery):
            if (yield from self._running(call)) != 1:
                raise LeaseLost(f"this run of {delivery.task}[{delivery.id}] is over: what it adds comes to nothing")
            adding.unsent.pop(number, None)

    def _look_anew(self, flow_id: str, name: str) -> Exchange[None]:
        """A queue lies in another partition than this process remembers. Raises SettingsError as `_located`."""
        yield from self._queues.finding([name, self._queue(None).name], self._deadline(), use=True)
        yield from self._located(flow_id, [name])

    def _introduction(self, flow_id: str, names: Iterable[str]) -> Exchange[list[bytes]]:
        """The packed commands that make these queues known, before calls go there. Raises as `_located`."""
        return introductions((yield from self._located(flow_id, names)))

    def _located(self, flow_id: str, names: Iterable[str]) -> Exchange[list[Queue]]:
        """These queues. Raises SettingsError: a flow lies in one partition, that of the default queue, so that its
        calls are found there by anybody.
        """
        home = self._queue(None)
        found = {name: queue for name in names if (queue := self._queues.get(name)) is not None}
        if missing := [name for name in names if name not in found]:
            found |= zip(missing, (yield from self._queues.finding(missing, self._deadline(), use=True)), strict=True)
        for name, queue in found.items():
            if queue.partition != home.partition:
                raise SettingsError(
                    f"flow {flow_id} has calls for queue {name!r} in partition {queue.partition}, and flows lie with "
                    f"queue {home.name!r}, in partition {home.partition}: send them to a queue there"
                )
        return list(found.values())

    def _release(self, size: int) -> Exchange[None]:
        """Help the server on with what it has left. Workers do so, too."""
        deadline = self._deadline()
        for _ in range(size // RELEASED_AT_ONCE + 1 if size > RELEASED_AT_ONCE else 0):
            try:
                (left,) = yield from running([self._script(scripts.GO_ON, EXPIRED)], deadline)
            except BrokerError:
                return
            if not isinstance(left, int) or left == 0:
                return

    def _insist(self, call: ScriptCall, introduction: Sequence[bytes] = (), replicas: int = 0) -> Exchange[Any]:
        """Call a script that may be repeated, until it answers or the deadline is over.

        replicas  how many must have what was written so far
        """
        deadline, fault = self._deadline(), None
        barrier = self._queue(None).keys.barrier

        def then() -> list[bytes]:
            return replication(barrier, replicas, deadline.left_s()) if replicas else []

        for pause_s in pauses(deadline):
            try:
                replies = yield from running([call], deadline, then, introduction, known=not replicas)
                reply = replies[len(introduction)]
                if not isinstance(reply, BrokerError):
                    if replicas and reply in WRITTEN:
                        _check_replicated(call, replies[-1], replicas)
                    return reply
                if not isinstance(reply, BrokerUnavailable):
                    raise reply
                fault = fault or reply
            except BrokerUnavailable as error:
                fault = fault or error
            yield max(0.0, min(pause_s, deadline.left_s()))
        raise BrokerUnavailable(
            f"{fault or 'no answer'}; gave up after {deadline.seconds:g} s. The flow may or may not be started: "
            "started again with the same id it is not doubled"
        )

    def _running(self, call: ScriptCall) -> Exchange[Any]:
        return (yield from self._insist(call))

    def _outcome(self, flow_id: str, number: int) -> Exchange[bytes | None]:
        return (yield from self._outcomes(flow_id, [number]))[0]

    def _outcomes(self, flow_id: str, numbers: Sequence[int]) -> Exchange[list[bytes | None]]:
        return (yield from outcomes_of(self._keys(flow_id).flow, numbers, self._deadline()))

    # -- helpers

    def _keys(self, flow_id: str) -> keys.FlowKeys:
        return keys.FlowKeys(self._queue(None).keys.prefix, flow_id)

    def _script(self, script: scripts.Script, *arguments: Argument) -> ScriptCall:
        return script, self._queue(None).keys.prefix, arguments

    def _deadline(self) -> Deadline:
        return Deadline(self._settings.broker_timeout_s)

    def _ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        replies: list[Any] = self._follow(asking([packed(*command) for command in commands], self._deadline()))
        return replies


def _check_replicated(call: ScriptCall, count: Any, replicas: int) -> None:
    """Whether `count`, what WAIT answered, is enough. Raises NotReplicated."""
    why = too_few(count, replicas)
    if why:
        flow_id = str(call[2][0])
        raise NotReplicated(
            f"what was sent of flow {flow_id} is stored on the master, but may be lost if it fails before its replicas "
            f"have caught up: {why}. Sent again with the same id it is not doubled",
            [flow_id],
        )


def introductions(queues: Iterable[Queue]) -> list[bytes]:
    """The packed commands that make queues known to which a flow is going to send, now or late."""
    return [command for queue in queues for command in (queue.introduce(), queue.promise())]
