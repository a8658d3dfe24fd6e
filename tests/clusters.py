"""Real clusters for the tests: three masters, each with a replica; slots are moved and masters lost at will."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import redis

from tests.cluster_client import SLOTS, ClusterClient, Ranges, all_channels, slot_of
from tests.helpers import free_port, wait_until
from tests.servers import READY_S, Server

MASTERS = 3

HOME = "rsq:0"
"""The tag of what most tests look at."""

NODE_TIMEOUT_MS = 1500

ANSWER_S = 2.0
"""A node that does not tell what it sees within this time is passed over: it hangs."""

SETTLE_S = 60
"""Nodes meet, elect and follow within seconds; a slow machine gets this long."""


class Node(Server):
    """A server that can be a node of a cluster.

    certificates  directory with `ca.pem`, `localhost.pem` and `localhost.key`: nodes talk TLS with each other, and with
                  clients at their `peer_port`
    """

    def __init__(
        self,
        binary: Path,
        *,
        config: Mapping[str, str] | None = None,
        certificates: Path | None = None,
        **options: Any,
    ) -> None:
        password = options.get("password")
        tls = {}
        if certificates is not None:
            tls = {
                "tls-port": str(free_port(10_000)),
                "tls-cluster": "yes",
                "tls-replication": "yes",
                "tls-auth-clients": "no",
                "tls-ca-cert-file": str(certificates / "ca.pem"),
                "tls-cert-file": str(certificates / "localhost.pem"),
                "tls-key-file": str(certificates / "localhost.key"),
            }
        config = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-announce-ip": "127.0.0.1",
            "repl-diskless-sync-delay": "0",
            **({"masterauth": f'"{password}"'} if password else {}),
            **tls,
            **(config or {}),
        }
        super().__init__(binary, tcp=True, config=config, **options)


class WholeNode(Node):
    """A cluster of this one node, for tests that stop, kill and freeze their server."""

    @property
    def url(self) -> str:
        return self.address.replace("redis://", "redis+cluster://").removesuffix("/0")

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until it serves its slots, too: a master that comes again lets others go first."""
        super().wait_ready(timeout_s)
        with self.client(decode_responses=True, socket_timeout=timeout_s) as client:
            client.response_callbacks.clear()
            if "cluster_slots_assigned:0" in client.execute_command("CLUSTER", "INFO"):
                client.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS))
            wait_until(lambda: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), timeout_s, "its slots")


def channels(server: Server, pattern: str) -> list[bytes]:
    """Those of one server, or of a cluster of one node, that somebody listens to."""
    with server.client() as client:
        found: list[bytes] = client.pubsub_channels(pattern)
        return all_channels(client, pattern) if isinstance(server, WholeNode) else found


class Cluster:
    """Three masters and three replicas, settled when it is entered.

    binary      of the server
    password    of every node
    config      further settings of every node, written as in redis.conf
    appendonly  each node keeps an append-only file
    certificates  with them all talk TLS, see `Node`, and nodes go by the name ``localhost``
    """

    def __init__(
        self,
        binary: Path,
        password: str | None = None,
        config: Mapping[str, str] | None = None,
        appendonly: bool = True,
        certificates: Path | None = None,
    ) -> None:
        self._binary = binary
        self.password = password
        self._appendonly = appendonly
        self._certificates = certificates
        by_name = {"cluster-announce-hostname": "localhost", "cluster-preferred-endpoint-type": "hostname"}
        self._config = {**(by_name if certificates else {}), **(config or {})}
        self.nodes: list[Server] = []
        self._names: dict[Server, str] = {}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        for _ in range(2 * MASTERS):
            node: Server = Node(
                self._binary,
                appendonly=self._appendonly,
                password=self.password,
                config=self._config,
                certificates=self._certificates,
            )
            self.nodes.append(node)
            node.start()
            self._names[node] = str(self.ask(node, "CLUSTER", "MYID"))
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        share = SLOTS // MASTERS
        for number, node in enumerate(masters):
            last = SLOTS - 1 if number == MASTERS - 1 else (number + 1) * share - 1
            self.ask(node, "CLUSTER", "ADDSLOTS", *range(number * share, last + 1))
            self.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self._meet()
        for master, replica in zip(masters, replicas, strict=True):
            self.ask(replica, "CLUSTER", "REPLICATE", self.id_of(master))
        self.settle()

    def _meet(self) -> None:
        for node in self.nodes[1:]:
            self.ask(self.nodes[0], "CLUSTER", "MEET", node.host, node.peer_port)
        wait_until(
            lambda: all(len(self.rows(node)) == 2 * MASTERS for node in self.nodes), SETTLE_S, "the nodes to meet"
        )

    # -- looking

    @property
    def url(self) -> str:
        credentials = f":{self.password}@" if self.password else ""
        if self._certificates:
            places = ",".join(f"localhost:{node.peer_port}" for node in self.nodes)
            return f"rediss+cluster://{credentials}{places}?ssl_ca_certs={self._certificates / 'ca.pem'}"
        places = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"redis+cluster://{credentials}{places}"

    def client(self, **options: Any) -> Any:
        """`Server.client` for all masters; see `ClusterClient`."""
        ranges = self.ranges()
        return ClusterClient(_owner(ranges, slot_of(HOME)), ranges, **options)

    def ask(self, node: Server, *command: Any) -> Any:
        """What one node answers, in text; a refusal is raised."""
        with node.client(decode_responses=True) as client:
            # By its words: under its full name the client library would turn an answer into something of its own.
            return client.execute_command(command[0], *command[1:])

    def id_of(self, node: Server) -> str:
        return self._names[node]

    def rows(self, node: Server) -> list[list[str]]:
        """The lines of CLUSTER NODES, as this node sees them; none while it does not answer."""
        try:
            with node.client(socket_timeout=ANSWER_S) as client:
                client.response_callbacks.clear()
                text = client.execute_command("CLUSTER", "NODES").decode()
        except redis.RedisError:
            return []
        return [line.split() for line in text.splitlines() if "handshake" not in line and "noaddr" not in line]

    def master(self, tag: str) -> Server:
        """The node that holds the slot of a hash tag, as the first that runs sees it."""
        return _owner(self.ranges(), slot_of(tag))

    def ranges(self) -> Ranges:
        """First slot, last slot, and the master of these."""
        for node in self.nodes:
            rows = self.rows(node) if node.running else []
            if found := [(*_ends(part), self._named(row[0])) for row in rows if _is_master(row) for part in _held(row)]:
                return found
        raise LookupError("no master holds any slot")

    def replica_of(self, master: Server) -> Server:
        """Also where it was away until now, and the master has not heard of it yet."""
        name = self.id_of(master)

        def heard_of() -> list[str]:
            return [row[0] for row in self.rows(master) if row[3] == name and "fail" not in row[2].split(",")]

        return self._named(wait_until(heard_of, SETTLE_S, f"{name} to have a replica")[0])

    def other_master(self, than: Server) -> Server:
        """A master that is another one."""
        for row in self.rows(than):
            if _is_master(row) and (node := self._named(row[0])) is not than:
                return node
        raise LookupError("no other master")

    def _named(self, name: str) -> Server:
        return next(node for node, its in self._names.items() if its == name)

    def settle(self) -> None:
        """Wait until every running node says that all is well, and the same of the slots, and replicas follow their
        masters.
        """

        def is_settled() -> bool:
            running = [node for node in self.nodes if node.running]
            # One that was replaced while it hung still takes itself for a master when it is back.
            return all(map(self._is_settled, running)) and len({*map(self._owners, running)}) == 1

        wait_until(is_settled, SETTLE_S, "the cluster to settle")

    def _owners(self, node: Server) -> frozenset[tuple[str, str]]:
        """Ranges of slots and the names of their masters, by the word of a node."""
        return frozenset((part, row[0]) for row in self.rows(node) if _is_master(row) for part in _held(row))

    def _is_settled(self, node: Server) -> bool:
        try:
            with node.client(decode_responses=True) as client:
                client.response_callbacks.clear()
                info = client.execute_command("CLUSTER", "INFO")
                link = client.execute_command("INFO", "replication")
        except redis.RedisError:
            return False
        # It calls itself well also where a part of the slots has no master, if it is told not to care.
        whole = "cluster_state:ok" in info and "cluster_slots_ok:16384" in info
        return whole and ("role:master" in link or "master_link_status:up" in link)

    # -- what happens to clusters

    def fail_over(self, tag: str) -> Server:
        """Have the replica of a tag's master take over, though nothing is wrong; gives the new master."""
        old = self.master(tag)
        new = self.replica_of(old)
        self.ask(new, "CLUSTER", "FAILOVER")
        return self.await_other_master(tag, old)

    @contextmanager
    def behind(self, tag: str) -> Iterator[None]:
        """What the master of a tag does in the block is unknown to its replica, which takes its place at the end."""
        master = self.master(tag)
        replica, denied = self.replica_of(master), ("-psync", "-sync", "-replconf")
        self.ask(master, "ACL", "SETUSER", "default", *denied)
        self.ask(master, "CLIENT", "KILL", "TYPE", "replica")
        yield
        self.ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        self.await_other_master(tag, master)
        self.ask(master, "ACL", "SETUSER", "default", *(f"+{each[1:]}" for each in denied))

    def await_other_master(self, tag: str, old: Server) -> Server:
        """Wait until all running nodes hold another one for the master of this tag."""
        slot = slot_of(tag)

        def owners() -> set[str]:
            return {
                row[0]
                for node in self.nodes
                if node.running and node is not old
                for row in self.rows(node)
                if "master" in row[2] and any(first <= slot <= last for first, last in map(_ends, _held(row)))
            }

        def settled() -> bool:
            found = owners()
            return len(found) == 1 and self._named(found.pop()) is not old

        wait_until(settled, SETTLE_S, "another master")
        return self.master(tag)

    @contextmanager
    def moving(self, tag: str, target: Server) -> Iterator[Server]:
        """The slot of a tag is on the move, key by key: MIGRATING at its master (given), IMPORTING at `target`.

        At the end of the block its keys have moved and it belongs to the target.
        """
        slot, source = slot_of(tag), self.master(tag)
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        yield source
        self.move_keys(source, target, slot)
        for node in (target, source, *(each for each in self.nodes if each not in (source, target))):
            if node.running and "role:master" in self._role(node):
                self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))
        self.await_other_master(tag, source)

    def move_whole(self, tag: str, target: Server) -> None:
        """Move the slot of a tag at once, with all its keys, as Valkey 9 can."""
        slot, source = slot_of(tag), self.master(tag)
        self.ask(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(target))
        self.await_other_master(tag, source)

    def move_keys(self, source: Server, target: Server, slot: int, part: float = 1.0) -> None:
        """Move all keys of a slot that is on the move, or about such a part of them."""
        left = 0 if part == 1.0 else int(self.ask(source, "CLUSTER", "COUNTKEYSINSLOT", slot) * (1 - part))
        auth = ["AUTH", self.password] if self.password else []
        with source.client() as client:
            while names := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, left + 100)[left:]:
                client.execute_command("MIGRATE", target.host, target.peer_port, "", 0, 5000, *auth, "KEYS", *names)

    def _role(self, node: Server) -> str:
        with node.client() as client:
            client.response_callbacks.clear()
            return str(client.execute_command("INFO", "replication").decode())

    def relocate(self, hosts: Sequence[str]) -> None:
        """All nodes are stopped and come again at other addresses, as where the pods of a namespace are restarted."""
        following = [(self._named(row[0]), row[3]) for row in self.rows(self.nodes[0]) if "slave" in row[2]]
        for node in self.nodes:
            node.stop()
        for node, host in zip(self.nodes, hosts, strict=True):
            node.host = node.config["bind"] = node.config["cluster-announce-ip"] = host
            node.start()
        self._meet()
        here = {f"{node.host}:{node.peer_port}" for node in self.nodes}
        wait_until(
            lambda: all({row[1].partition("@")[0] for row in self.rows(node)} == here for node in self.nodes),
            SETTLE_S,
            "all to know where all are",
        )
        for replica, master in following:
            self.ask(replica, "CLUSTER", "REPLICATE", master)  # else it may look for it at the old address for ever
        self.settle()

    def flush(self) -> None:
        """Delete all keys of all masters."""
        for node in self.nodes:
            if "role:master" in self._role(node):
                self.ask(node, "FLUSHALL")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


AnyServer: TypeAlias = "Server | Cluster"
"""Where what runs on a cluster runs elsewhere, too."""


def _is_master(row: list[str]) -> bool:
    """Whether a line of CLUSTER NODES tells of a master that is not given up."""
    flags = row[2].split(",")
    return "master" in flags and "fail" not in flags


def _held(row: list[str]) -> list[str]:
    """The ranges of slots in a line of CLUSTER NODES, without those on the move."""
    return [part for part in row[8:] if not part.startswith("[")]


def _ends(part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    return int(first), int(last or first)


def _owner(ranges: Ranges, slot: int) -> Server:
    for first, last, node in ranges:
        if first <= slot <= last:
            return node
    raise LookupError(f"no master holds slot {slot}")
