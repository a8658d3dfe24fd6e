"""Connections to the server: made from a URL, used by one thread at a time, with every error translated here.

The client library opens the socket, and no more: its own retries would resend a write that had arrived, which counts
twice, so each caller repeats what it knows to be safe (see `rsq.broker.dialling`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from time import sleep
from typing import Any, TypeAlias, TypeVar

from rsq import keys
from rsq.broker import embedded
from rsq.broker.address import cluster_address, plain_options, sentinel_address
from rsq.broker.channel import Channel, OnLate
from rsq.broker.cluster import Cluster, tag_of
from rsq.broker.deadline import Deadline
from rsq.broker.dialling import dial
from rsq.broker.exchange import Dial, Exchange, Opening
from rsq.broker.faults import FAULTS, Refusal, ScriptMissing, SlotMoved, translated
from rsq.broker.scripts import Script
from rsq.broker.sentinel import Sentinels
from rsq.broker.spread import of_one_try, spreading
from rsq.broker.stragglers import Identity, Stragglers
from rsq.broker.wire import Argument, Command, packed
from rsq.errors import BrokerError, BrokerUnavailable
from rsq.settings import Settings
from rsq.url import redacted

T = TypeVar("T")

ScriptCall: TypeAlias = "tuple[Script, str, tuple[Argument, ...]]"
"""A script, the tag of the queue that it works on, and its arguments."""

ANSWER_S = 2.0
"""Where another node may take the server's place one try waits so long: what was under way when the server hung, or
vanished without a word, goes to its successor soon after there is one."""

LOADS = 3
"""So often a script is loaded for one call: the server may forget it again before the call (SCRIPT FLUSH, failover)."""


class Endpoint:
    """Where the server is, or the cluster. Makes connections; knows nothing of queues.

    home      tag of a partition: on a cluster, where commands without a key go
    answer_s  how long one try of what has a deadline waits for its answer; see `ANSWER_S`
    """

    def __init__(self, url: str, home: str = "rsq:0") -> None:
        self.url = url
        self.home = home
        self.cluster: Cluster | None = None
        self._stragglers = Stragglers()
        self.embedded = embedded.from_url(url) if url.startswith("embedded:") else None
        self._kind, self._sentinels = "unix", None
        self._options: dict[str, Any] = {}
        if url.partition("://")[0].endswith("+sentinel"):
            address = sentinel_address(url)
            self._kind, self._sentinels, self._options = address.kind, Sentinels(address), address.node
        elif url.partition("://")[0].endswith("+cluster"):
            self.cluster = Cluster(cluster_address(url), redacted(url))
        elif self.embedded is None:
            self._kind, self._options = url.partition("://")[0], plain_options(url)
        else:
            self._options = {"path": str(self.embedded.socket_path)}
        self.answer_s = math.inf if self._sentinels is None and self.cluster is None else ANSWER_S

    @classmethod
    def of(cls, settings: Settings) -> Endpoint:
        """Where these settings lead to."""
        return cls(settings.url, keys.tag(settings.namespace))

    def at(self, home: str) -> Endpoint:
        """The same server or cluster, with another tag for its home."""
        other = copy(self)
        other.home = home
        return other

    def __str__(self) -> str:
        return self.embedded.describe() if self.embedded else redacted(self.url)

    def opening(self, deadline: Deadline, tag: str | None = None) -> Opening[Identity | None]:
        """How a connection is made: its last `Dial` leads to it. Gives its identity.

        With sentinels it leads to the node that is the master now, and only if that node says so, too; in a cluster to
        the master of `tag`, or of the home.
        """
        if self.cluster is not None:
            return (yield from self.cluster.opening(tag or self.home, deadline))
        options, judge = self._options, None
        if self._sentinels is not None:
            (host, port), judge = yield from self._sentinels.master(deadline)
            options = options | {"host": host, "port": port}
        yield Dial(self._kind, options, deadline)
        return (yield from self._stragglers.greeting(options, deadline, judge))

    def fitting(self, calls: list[ScriptCall]) -> list[ScriptCall]:
        """These calls, with the scripts that are for this kind of server."""
        if self.cluster is None:
            return calls
        return [(script.sharded, tag, arguments) for script, tag, arguments in calls]

    def by_shard(self, channels: Sequence[bytes]) -> dict[str | None, list[bytes]]:
        """These channels by the connection that hears them: that of a tag in a cluster, else one for all (None)."""
        found: dict[str | None, list[bytes]] = {}
        for channel in channels:
            found.setdefault(None if self.cluster is None else tag_of(channel), []).append(channel)
        return found

    @property
    def sharded(self) -> bool:
        """Whether its channels are sharded ones; it is known once a connection stands."""
        return self.cluster is not None and self.cluster.sharded

    def broke(self, identity: Identity | None) -> None:
        """A connection broke with a request under way."""
        if identity is not None:
            identity.server.add(identity)
        if self.cluster is not None:
            self.cluster.doubt()

    def open(self, deadline: Deadline, tag: str | None = None) -> tuple[Channel, Identity | None]:
        """A connection that has been greeted. Raises one of `FAULTS`, or BrokerError."""
        if self.embedded is not None:
            self.embedded.ensure(deadline.left_s())
        steps, channel = self.opening(deadline, tag), None
        try:
            step = next(steps)
            while True:
                try:
                    reply = None
                    if isinstance(step, Dial):
                        if channel is not None:
                            channel.close()
                        channel = dial(step)
                    else:
                        assert channel is not None, "an opening begins by dialling"
                        reply = channel.ask(*step)
                except FAULTS as fault:
                    step = steps.throw(fault)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            assert channel is not None, "an opening dials"
            return channel, end.value
        except BaseException:
            if channel is not None:
                channel.close()
            raise

    def translate(self, replies: list[Any]) -> bool:
        """Put rsq's error in place of each refusal. Whether one of them says that this node cannot serve now."""
        away = False
        for i, reply in enumerate(replies):
            if isinstance(reply, Refusal):
                replies[i] = fault = translated(reply, self.url)
                if self.cluster is not None and isinstance(fault, BrokerUnavailable):
                    self.cluster.hear(str(reply))
                away = away or isinstance(fault, BrokerUnavailable)
        return away


def _pause(seconds: float) -> list[Any]:
    sleep(seconds)
    return []


def running(
    calls: Sequence[ScriptCall],
    deadline: Deadline | None,
    then: Callable[[], Sequence[bytes]] = tuple,
    first: Sequence[bytes] = (),
    known: bool = True,
) -> Exchange[list[Any]]:
    """Call scripts in one write, with the packed commands around them. Those that the server does not know are called
    again in a second one, each behind its text; `then` is asked again, and sent behind them.

    known  the server most likely knows the scripts; else their texts go with the first write, lest `then` waits twice

    Gives the replies in order, a refused one as its exception: of `first`, the calls, and what `then` gives.
    """
    if any(script.sharded is not script for script, _, _ in calls):
        calls = yield list(calls)
    requests = [packed("EVALSHA", script.sha, "1", tag, *arguments) for script, tag, arguments in calls]
    texts = [] if known else [packed("SCRIPT", "LOAD", text) for text in {script.source for script, _, _ in calls}]
    replies: list[Any] = yield [*first, *texts, *requests, *then()], deadline
    head, replies = replies[: len(first)], replies[len(first) + len(texts) :]
    for _ in range(LOADS):
        missing = [i for i, reply in enumerate(replies[: len(calls)]) if isinstance(reply, ScriptMissing)]
        if not missing:
            break
        again: list[bytes] = []
        places: dict[int, tuple[int, int]] = {}
        loads: dict[tuple[Script, str], int] = {}
        for i in missing:
            script, tag, _ = calls[i]
            node = tag.partition("}")[0]
            if (script, node) not in loads:
                loads[script, node] = len(again)
                again.append(packed("SCRIPT", "LOAD", script.source))
            places[i] = loads[script, node], len(again)
            again.append(requests[i])
        answers: list[Any] = yield [*again, *then()], deadline
        for i, (load, place) in places.items():
            # Why it could not be loaded tells more than that it is missing.
            unloaded = isinstance(answers[place], ScriptMissing) and isinstance(answers[load], BrokerError)
            replies[i] = answers[load if unloaded else place]
        replies[len(calls) :] = answers[len(again) :]
    forgetful = "cannot serve now: it forgets scripts as soon as they are loaded"
    for i, reply in enumerate(replies[: len(calls)]):
        if isinstance(reply, ScriptMissing):
            replies[i] = BrokerUnavailable(f"{str(reply).partition(' answered: ')[0]} {forgetful}")
    return head + replies


class Link:
    """One connection, for one thread at a time. Connects at the first call and again after any fault.

    Every method raises BrokerUnavailable after a fault of the connection (the call may or may not have been carried
    out) and BrokerRefused when the server said no. `timeout_s` bounds the write and each reply of a call that is given
    no deadline, and the connecting before it. In a cluster a link is one connection for each tag that it is used with,
    and where one of several is away its commands are answered by the fault.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, tag: str | None = None) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._tag = tag
        self._by_tag: dict[str, Link] = {}
        self._last: tuple[bytes, Link | None] = b"", None
        self.lender: object = None
        self.idle_since = 0.0
        self._channel: Channel | None = None
        self._identity: Identity | None = None
        self._opened = 0

    def call(self, *command: Argument) -> Any:
        """Send one command and give its reply."""
        return self.call_packed(packed(*command))

    def call_packed(self, request: bytes) -> Any:
        """Send one command that is packed already and give its reply."""
        (reply,) = self.pipeline_packed((request,))
        if isinstance(reply, BrokerError):
            raise reply
        return reply

    def pipeline(self, commands: Iterable[Command]) -> list[Any]:
        """Send many commands in one write; give their replies in order, a refused command as its exception."""
        return self.pipeline_packed([packed(*command) for command in commands])

    def pipeline_packed(
        self, requests: Sequence[bytes], deadline: Deadline | None = None, on_late: OnLate | None = None
    ) -> list[Any]:
        """`pipeline` for commands that are packed already."""
        link, own = self, deadline
        if self._tag is None and self.endpoint.cluster is not None:
            found = self._way(requests[0]) if len(requests) == 1 else None
            if found is None:
                return self._spread(requests, deadline, on_late)
            link, own = found, of_one_try(deadline, self.endpoint.answer_s)
        try:
            channel = link._channel or link._open(own)
            replies = channel.ask(requests, self.timeout_s if own is None else own, on_late)
        except BrokerError:
            raise
        except FAULTS as error:
            fault = translated(error, self.endpoint.url)
            link._break()
            raise fault from None
        except BaseException:
            # Interrupted between request and reply: the next reply would answer the wrong call.
            link._break()
            raise
        if Refusal in map(type, replies):
            if self.endpoint.translate(replies):
                link.close()
            if link is not self and type(replies[0]) is SlotMoved:  # so nothing was done
                return self._spread(requests, deadline, on_late)
        return replies

    def _way(self, request: bytes) -> Link | None:
        """The connection for a command that goes to one master; None where that is not told by its key.

        Most sends are one command, and begin as the last one did, up to the tag.
        """
        head, link = self._last
        if link is None or not request.startswith(head):
            tag = tag_of(request)
            if tag is None:
                return None
            link = self._at(tag)
            self._last = request[: request.index(b"}") + 1], link
        return link

    def _spread(self, requests: Sequence[bytes], deadline: Deadline | None, on_late: OnLate | None) -> list[Any]:
        """`pipeline_packed` in a cluster; see `spreading`."""
        talk = spreading(requests, self.endpoint.home, deadline)
        try:
            step = next(talk)
            while True:
                tag, some, own = step
                try:
                    replies = self._at(tag).pipeline_packed(some, own, on_late)
                except BrokerError as fault:
                    step = talk.throw(fault)
                else:
                    step = talk.send(replies)
        except StopIteration as end:
            result: list[Any] = end.value
            return result

    def _at(self, tag: str) -> Link:
        link = self._by_tag.get(tag)
        if link is None:
            link = self._by_tag[tag] = Link(self.endpoint, self.timeout_s, tag)
        return link

    def follow(self, talk: Exchange[T]) -> T:
        """Carry on a talk to its end."""
        try:
            step = next(talk)
            while True:
                try:
                    if isinstance(step, tuple):
                        replies = self.pipeline_packed(*step)
                    else:
                        replies = _pause(step) if isinstance(step, float) else self.endpoint.fitting(step)
                except BrokerError as fault:
                    step = talk.throw(fault)
                else:
                    step = talk.send(replies)
        except StopIteration as end:
            result: T = end.value
            return result

    def run(self, script: Script, tag: str, *arguments: Argument) -> Any:
        """Call a script on the queue with this tag. Loads it first where the server does not know it yet."""
        (reply,) = self.run_many([(script, tag, arguments)])
        if isinstance(reply, BrokerError):
            raise reply
        return reply

    def run_one(self, call: ScriptCall) -> Any:
        """`run` for a call that is put together already."""
        script, tag, arguments = call
        return self.run(script, tag, *arguments)

    def run_many(self, calls: Sequence[ScriptCall], then: Sequence[bytes] = ()) -> list[Any]:
        """Call several scripts in one write, and after them the packed commands `then`; see `running`."""
        return self.follow(running(calls, None, lambda: then))

    @property
    def connected(self) -> bool:
        """Whether the last call left a connection behind."""
        return self._channel is not None or any(link.connected for link in self._by_tag.values())

    @property
    def openings(self) -> int:
        """How many connections it has made. The server behind a new one may lack what another has confirmed: it was
        restarted, or takes the place of one that failed.
        """
        return self._opened + sum(link.openings for link in self._by_tag.values())

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        for link in self._by_tag.values():
            link.close()
        channel, self._channel, self._identity = self._channel, None, None
        if channel is not None:
            channel.close()

    def _open(self, deadline: Deadline | None) -> Channel:
        if deadline is None:
            if self.endpoint.embedded is not None:
                self.endpoint.embedded.ensure()  # it may have to load its data first
            deadline = Deadline(self.timeout_s)
        self._channel, self._identity = self.endpoint.open(deadline, self._tag)
        self._opened += 1
        return self._channel

    def _break(self) -> None:
        """Drop the connection while a request may be under way on it."""
        self.endpoint.broke(self._identity)
        self.close()
