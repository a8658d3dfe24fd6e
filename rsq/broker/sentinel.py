"""Which node is the master now: asked of the sentinels anew for every connection, and checked with the node itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from rsq.broker.address import SentinelAddress

if TYPE_CHECKING:
    from redis.asyncio import connection as aio

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

    def master(self, timeout_s: float) -> dict[str, Any]:
        """Arguments of a connection to the master, which looks at the node's role when it connects.

        Raises  an error of the client library: no sentinel answered, or none knows the service
        """
        search = _Search(self._address.service)
        for place in self._order:
            options = self._options(place, timeout_s) | {"retry": Retry(NoBackoff(), 0)}
            connection = SSLConnection(**options) if self._address.kind == "rediss" else Connection(**options)
            try:
                connection.connect()
                connection.send_command(*search.question, check_health=False)
                node = search.heard(connection.read_response(disable_decoding=True))
            except (RedisError, OSError) as error:
                search.missed(place, error)
                node = None
            finally:
                connection.disconnect()
            self._put(place, first=False)
            if node is not None:
                return {"host": node[0], "port": node[1], "redis_connect_func": self._check(place, node)}
        raise search.failure()

    async def async_master(self, timeout_s: float) -> dict[str, Any]:
        """`master` for coroutines."""
        from redis.asyncio import connection as aio
        from redis.asyncio.retry import Retry as AsyncRetry

        search = _Search(self._address.service)
        for place in self._order:
            options = self._options(place, timeout_s) | {"retry": AsyncRetry(NoBackoff(), 0)}
            connection = aio.SSLConnection(**options) if self._address.kind == "rediss" else aio.Connection(**options)
            try:
                await connection.connect()
                await connection.send_command(*search.question, check_health=False)
                node = search.heard(await connection.read_response(disable_decoding=True))
            except (RedisError, OSError) as error:
                search.missed(place, error)
                node = None
            finally:
                await connection.disconnect(nowait=True)
            self._put(place, first=False)
            if node is not None:
                return {"host": node[0], "port": node[1], "redis_connect_func": self._async_check(place, node)}
        raise search.failure()

    def _options(self, place: Place, timeout_s: float) -> dict[str, Any]:
        own_s = min(SENTINEL_TIMEOUT_S, timeout_s / (len(self._order) + 1))
        limits = {"socket_timeout": own_s, "socket_connect_timeout": own_s, "protocol": 2}
        return self._address.sentinel | limits | {"host": place[0], "port": place[1]}

    def _check(self, place: Place, node: Place) -> Any:
        def check(connection: AbstractConnection) -> None:
            connection.on_connect()
            connection.send_command("ROLE", check_health=False)
            self._judge(place, node, connection.read_response(disable_decoding=True))

        return check

    def _async_check(self, place: Place, node: Place) -> Any:
        async def check(connection: aio.AbstractConnection) -> None:
            await connection.on_connect()
            await connection.send_command("ROLE", check_health=False)
            self._judge(place, node, await connection.read_response(disable_decoding=True))

        return check

    def _judge(self, place: Place, node: Place, role: Any) -> None:
        """Whether the sentinel told the truth. A connection that finds no master there counts as a fault."""
        if role[0] != b"master":
            raise RedisConnectionError(
                f"sentinel {_shown(place)} names {_shown(node)}, which says that it is a {role[0].decode()}: "
                "a failover is under way"
            )
        self._put(place, first=True)

    def _put(self, place: Place, first: bool) -> None:
        # One that answered comes last until its answer was seen to be true: it may know of no failover yet.
        others = tuple(each for each in self._order if each != place)
        self._order = (place, *others) if first else (*others, place)


class _Search:
    """One question to sentinel after sentinel, and what they said."""

    def __init__(self, service: str) -> None:
        self.question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        self._service = service
        self._unknown = 0
        self._faults: list[str] = []
        self._refused = False

    def heard(self, reply: Any) -> Place | None:
        """The node that an answer names; None where this sentinel does not know the service."""
        if reply is None:
            self._unknown += 1
            return None
        host, port = reply
        return host.decode(), int(port)

    def missed(self, place: Place, error: Exception) -> None:
        self._refused = self._refused or isinstance(error, AuthenticationError) or "NOAUTH" in str(error)
        self._faults.append(f"{_shown(place)}: {str(error).rstrip('.') or type(error).__name__}")

    def failure(self) -> RedisError:
        """The error of a search that found nothing."""
        faults = "; ".join(self._faults)
        if self._unknown and not faults:
            return ResponseError(f"no sentinel knows a service {self._service!r}: check the name in the URL")
        if self._unknown:
            return RedisConnectionError(f"no sentinel that answered knows a service {self._service!r} ({faults})")
        if self._refused:
            return AuthenticationError(f"sentinel {self._faults[0]}; it takes sentinel_username and sentinel_password")
        return RedisConnectionError(f"no sentinel answered ({faults})")


def _shown(place: Place) -> str:
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
