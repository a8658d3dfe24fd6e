"""What a worker asks of the server before it begins, and the line in which it reports what it found."""

from __future__ import annotations

from typing import Any

from rsq.broker.cluster import known_crash
from rsq.broker.connection import Link
from rsq.errors import BrokerRefused, BrokerUnsuitable
from rsq.settings import DEFAULT_URL, Settings

NEEDED = ("XAUTOCLAIM", "EVALSHA", "XREADGROUP")
"""XAUTOCLAIM came with Redis 6.2. Features are asked for by command: version numbers of forks do not tell."""


def check_server(link: Link, settings: Settings) -> str:
    """One line about the server. Raises BrokerUnsuitable, BrokerRefused or BrokerUnavailable."""
    info = _info(link)
    if info.get("cluster_enabled") == "1" and link.endpoint.cluster is None:
        scheme = "rediss+cluster" if settings.url.startswith("rediss") else "redis+cluster"
        raise BrokerUnsuitable(f"{link.endpoint} is a node of a cluster: its URL begins with {scheme}://")
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version', '?')}"
    known = link.call("COMMAND", "INFO", *NEEDED)
    if not all(known):
        raise BrokerUnsuitable(f"{link.endpoint} runs {name}: rsq needs Redis 6.2 or newer, or Valkey 7.2 or newer")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not settings.allow_eviction:
        raise BrokerUnsuitable(
            f"{link.endpoint} has maxmemory-policy {policy}, which may throw queues away: set it to noeviction, or "
            "accept the risk with allow_eviction (RSQ_ALLOW_EVICTION=true)"
        )
    notes = []
    if settings.url == DEFAULT_URL:
        notes.append("RSQ_URL names one of your own")
    if policy != "noeviction":
        notes.append(f"maxmemory-policy {policy} may lose messages")
    if info.get("aof_enabled") != "1":
        notes.append("append-only file off: a crash of the server loses what came after its last snapshot")
    if link.endpoint.cluster is not None:
        notes += _cluster_notes(link, info, settings.lease_s)
    return f"{link.endpoint} ({name}{''.join('; ' + note for note in notes)})"


FAILOVER_S = 3.0
"""So long after its node timeout a cluster has replaced a master that is lost."""


def _cluster_notes(link: Link, info: dict[str, str], lease_s: float) -> list[str]:
    """What a worker says of a cluster at its start, as far as the server tells it."""
    server = "valkey" if "valkey_version" in info else "redis"
    crash = known_crash(server, info.get("valkey_version") or info.get("redis_version", ""))
    notes = [crash] if crash else []
    try:
        given = [link.call("CONFIG", "GET", name) for name in ("cluster-node-timeout", "cluster-require-full-coverage")]
        timeout, coverage = (pair[1].decode() for pair in given)
    except (BrokerRefused, IndexError):
        return notes  # managed servers, and users with few rights
    if coverage == "yes":
        notes.append("cluster-require-full-coverage is yes: one shard without a master stops all")
    replaced_s = int(timeout) / 1000 + FAILOVER_S
    if replaced_s > lease_s:
        notes.append(
            f"cluster-node-timeout {timeout}: a lost master is replaced after {replaced_s:g} s, longer than the lease"
        )
    return notes


def _info(link: Link) -> dict[str, str]:
    try:
        text: Any = link.call("INFO")
    except BrokerRefused as error:
        if "denies" in str(error):
            return {}
        raise
    lines = text.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
