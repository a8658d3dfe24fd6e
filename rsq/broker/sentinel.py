"""Which node is the master now: asked of the sentinels anew for every connection, and checked with the node itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from rsq.broker.address import SentinelAddress
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Dial, Opening
from rsq.broker.faults import FAULTS, Refusal
from rsq.broker.stragglers import entrance
from rsq.broker.wire import packed

Place: TypeAlias = "tuple[str, int]"

SENTINEL_TIMEOUT_S = 0.5
"""One sentinel may take this long: a dead one must not use up the time of a call."""


class Sentinels:
    """The sentinels of one service. Holds no connection; for any number of threads and event loops.

    Each is asked the question that is meant for clients, and one that answered well is asked first the next time. The
    client library's own search reads the whole state of all services, and does not tell a name that nobody knows from
    sentinels that are down.
    """

    def __init__(self, address: SentinelAddress) -> None:
        self._address = address
        self._order = address.sentinels

    def master(self, deadline: Deadline) -> Opening[tuple[Place, Callable[[Any], None]]]:
        """The master's host and port, and what judges that node's answer to ROLE.

        Raises  an error of the client library: no sentinel answered, or none knows the service
        """
        search = _Search(self._address.service)
        options = self._address.sentinel
        for place in self._order:
            own = deadline.within(min(SENTINEL_TIMEOUT_S, deadline.seconds / (len(self._order) + 1)))
            try:
                yield Dial(self._address.kind, options | {"host": place[0], "port": place[1]}, own)
                *entered, reply = yield [*entrance(options), search.question], own
                node = search.heard(reply, entered)
            except FAULTS as error:
                search.missed(place, error)
                node = None
            self._put(place, first=False)
            if node is not None:
                return node, self._judge(place, node)
        raise search.failure()

    def _judge(self, place: Place, node: Place) -> Callable[[Any], None]:
        """Whether the sentinel told the truth. A connection that finds no master there counts as a fault."""

        def judge(role: Any) -> None:
            if isinstance(role, Refusal):
                raise role
            if role[0] != b"master":
                raise RedisConnectionError(
                    f"sentinel {_shown(place)} names {_shown(node)}, which says that it is a {role[0].decode()}: "
                    "a failover is under way"
                )
            self._put(place, first=True)

        return judge

    def _put(self, place: Place, first: bool) -> None:
        # One that answered comes last until its answer was seen to be true: it may know of no failover yet.
        others = tuple(each for each in self._order if each != place)
        self._order = (place, *others) if first else (*others, place)


class _Search:
    """One question to sentinel after sentinel, and what they said."""

    def __init__(self, service: str) -> None:
        self.question = packed("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        self._service = service
        self._unknown = 0
        self._faults: list[str] = []
        self._refused = False

    def heard(self, reply: Any, entered: list[Any]) -> Place | None:
        """The node that an answer names; None where this sentinel does not know the service."""
        for each in (*entered, reply):
            if isinstance(each, Refusal):
                raise each
        if reply is None:
            self._unknown += 1
            return None
        host, port = reply
        return host.decode(), int(port)

    def missed(self, place: Place, error: Exception) -> None:
        text = str(error)
        self._refused = self._refused or "NOAUTH" in text or "WRONGPASS" in text or "password" in text
        self._faults.append(f"{_shown(place)}: {text.rstrip('.') or type(error).__name__}")

    def failure(self) -> Exception:
        """The error of a search that found nothing."""
        faults = "; ".join(self._faults)
        if self._unknown and not faults:
            return Refusal(f"no sentinel knows a service {self._service!r}: check the name in the URL")
        if self._unknown:
            return RedisConnectionError(f"no sentinel that answered knows a service {self._service!r} ({faults})")
        if self._refused:
            return Refusal(f"sentinel {self._faults[0]}; it takes sentinel_username and sentinel_password")
        return RedisError(f"no sentinel answered ({faults})")


def _shown(place: Place) -> str:
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
