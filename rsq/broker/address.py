"""URLs of the server, taken apart and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.connection import Connection, parse_url
from redis.exceptions import RedisError

from rsq.errors import SettingsError
from rsq.url import check_kind, redacted

SENTINEL_PORT = 26379
PORT = 6379

_FORMS = {
    "redis": "redis://[user:password@]host[:port][/number of the database]",
    "rediss": "rediss://[user:password@]host[:port][/number of the database]",
    "unix": "unix://[user:password@]/path/of/the/socket[?db=0]",
}

# Taken apart by hand: a list of hosts with an IPv6 address in it is no URL to Python's own functions.
_SENTINELS = re.compile(
    r"(?P<kind>rediss?)\+sentinel://(?:(?P<credentials>[^/?#]*)@)?(?P<hosts>[^/?#@]+)"
    r"/(?P<service>[^/?#]+)(?:/(?P<db>\d*))?(?:\?(?P<query>[^#]*))?"
)
_CLUSTER = re.compile(
    r"(?P<kind>rediss?)\+cluster://(?:(?P<credentials>[^/?#]*)@)?(?P<hosts>[^/?#@]+)/?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:\s]+))(?::(?P<port>\d{1,5}))?")


def plain_options(url: str) -> dict[str, Any]:
    """Arguments of a connection to the server of this URL. Raises SettingsError."""
    check_kind(url)
    kind = url.partition("://")[0]
    try:
        # What it says of a part that is wrong could be a part of the password.
        place, options = urlsplit(url), parse_url(url)
    except ValueError:
        place, options = None, {}
    if place is None or not (place.path if kind == "unix" else re.fullmatch(r"(/\d*)?", place.path)):
        raise SettingsError(
            f"URL {redacted(url)!r} cannot be used: its form is {_FORMS[kind]}, and :, /, ?, # or @ in a password are "
            "written as %3A, %2F, %3F, %23 or %40"
        )
    kind_of_connection: Any = options.pop("connection_class", Connection)
    if kind == "rediss":
        # Whoever has any certificate that the authority signed could be the server; old client libraries let him.
        options.setdefault("ssl_check_hostname", str(options.get("ssl_cert_reqs", "")).lower() != "none")
    try:
        kind_of_connection(**options)  # only made; it does not connect
    except (TypeError, ValueError, RedisError) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        what = f"{kind}:// takes no parameter {unknown[1]!r}" if unknown else str(error)
        raise SettingsError(f"URL {redacted(url)!r} cannot be used: {what}") from None
    return dict(options)


@dataclass(frozen=True)
class SentinelAddress:
    """What the URL of a service says that sentinels watch.

    kind       ``redis`` or ``rediss`` (TLS), for the server and for the sentinels
    sentinels  host and port of each
    service    the name by which they know it
    node       arguments of a connection to the server itself, but for its host and port
    sentinel   arguments of a connection to a sentinel, but for its host and port
    """

    kind: str
    sentinels: tuple[tuple[str, int], ...]
    service: str
    node: dict[str, Any] = field(repr=False)
    sentinel: dict[str, Any] = field(repr=False)


def sentinel_address(url: str) -> SentinelAddress:
    """``redis+sentinel://[user:password@]host1[:port],host2[:port]/<service name>[/<db>][?...]``, taken apart.

    Options with the prefix ``sentinel_`` are for the sentinels, and those of TLS for both. Raises SettingsError.
    """
    found = _SENTINELS.fullmatch(url)
    hosts = [_HOST.fullmatch(host) for host in found["hosts"].split(",")] if found else []
    if not found or not all(hosts):
        raise SettingsError(
            f"URL {redacted(url)!r} cannot be used: with sentinels it has the form "
            "redis+sentinel://[user:password@]host1:26379,host2:26379,host3:26379/<service name>/<db>"
        )
    query = parse_qsl(found["query"] or "")
    ours = urlencode([(name, value) for name, value in query if not name.startswith("sentinel_")])
    of_both = [(name, value) for name, value in query if name.startswith("ssl_")]
    theirs = dict(of_both) | {name[9:]: value for name, value in query if name.startswith("sentinel_")}
    credentials = f"{found['credentials']}@" if found["credentials"] else ""
    node = plain_options(f"{found['kind']}://{credentials}-/{found['db'] or ''}?{ours}")
    sentinel = plain_options(f"{found['kind']}://-?{urlencode(theirs)}")
    for options in (node, sentinel):
        del options["host"]
    places = tuple((host["ip6"] or host["name"], int(host["port"] or SENTINEL_PORT)) for host in hosts if host)
    return SentinelAddress(found["kind"], places, unquote(found["service"]), node, sentinel)


@dataclass(frozen=True)
class ClusterAddress:
    """What the URL of a cluster says.

    kind   ``redis`` or ``rediss`` (TLS)
    seeds  host and port of nodes that may be asked for all others
    node   arguments of a connection to any node, but for its host and port
    """

    kind: str
    seeds: tuple[tuple[str, int], ...]
    node: dict[str, Any] = field(repr=False)


def cluster_address(url: str) -> ClusterAddress:
    """``redis+cluster://[user:password@]host1[:port],host2[:port][?...]``, taken apart. Raises SettingsError."""
    found = _CLUSTER.fullmatch(url)
    hosts = [_HOST.fullmatch(host) for host in found["hosts"].split(",")] if found else []
    if not found or not all(hosts):
        raise SettingsError(
            f"URL {redacted(url)!r} cannot be used: that of a cluster has the form "
            "redis+cluster://[user:password@]host1:6379,host2:6379,host3:6379, without a database"
        )
    credentials = f"{found['credentials']}@" if found["credentials"] else ""
    node = plain_options(f"{found['kind']}://{credentials}-?{found['query'] or ''}")
    if node.pop("db", None):
        raise SettingsError(f"URL {redacted(url)!r} cannot be used: a cluster has no numbered databases")
    del node["host"]
    places = tuple((host["ip6"] or host["name"], int(host["port"] or PORT)) for host in hosts if host)
    return ClusterAddress(found["kind"], places, node)
