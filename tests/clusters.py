"""Real clusters for the tests: three masters, each with a replica; slots are moved and masters lost at will."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

from tests.helpers import free_port, wait_until
from tests.servers import Server

MASTERS = 3
SLOTS = 16384

NODE_TIMEOUT_MS = 1500

SETTLE_S = 60
"""Nodes meet, elect and follow within seconds; a slow machine gets this long."""


def slot_of(tag: str) -> int:
    """The hash slot of a hash tag, written without its braces."""
    return crc_hqx(tag.encode(), 0) % SLOTS


class Cluster:
    """Three masters and three replicas, settled when it is entered. Each node keeps an append-only file.

    binary    a Redis 7.0 or Valkey server
    password  of every node
    config    further settings of every node, written as in redis.conf
    """

    def __init__(self, binary: Path, password: str | None = None, config: Mapping[str, str] | None = None) -> None:
        self._binary = binary
        self.password = password
        self._config = dict(config or {})
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
            bus = free_port()
            config = {
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                "cluster-port": str(bus),
                "cluster-announce-ip": "127.0.0.1",
                "repl-diskless-sync-delay": "0",
                **({"masterauth": f'"{self.password}"'} if self.password else {}),
                **self._config,
            }
            node = Server(self._binary, tcp=True, appendonly=True, password=self.password, config=config)
            self.nodes.append(node)
            node.start()
            self._names[node] = str(self.ask(node, "CLUSTER", "MYID"))
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        share = SLOTS // MASTERS
        for number, node in enumerate(masters):
            last = SLOTS - 1 if number == MASTERS - 1 else (number + 1) * share - 1
            self.ask(node, "CLUSTER", "ADDSLOTSRANGE", number * share, last)
            self.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.ask(self.nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port, node.config["cluster-port"])
        wait_until(
            lambda: all(len(self.rows(node)) == 2 * MASTERS for node in self.nodes), SETTLE_S, "the nodes to meet"
        )
        for master, replica in zip(masters, replicas, strict=True):
            self.ask(replica, "CLUSTER", "REPLICATE", self.id_of(master))
        self.settle()

    # -- looking

    @property
    def url(self) -> str:
        credentials = f":{self.password}@" if self.password else ""
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{credentials}{places}"

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
            with node.client() as client:
                client.response_callbacks.clear()
                text = client.execute_command("CLUSTER", "NODES").decode()
        except redis.RedisError:
            return []
        return [line.split() for line in text.splitlines() if "handshake" not in line and "noaddr" not in line]

    def master(self, tag: str) -> Server:
        """The node that holds the slot of a hash tag, as most nodes see it."""
        slot = slot_of(tag)
        for node in self.nodes:
            if not node.running:
                continue
            for row in self.rows(node):
                if (
                    "master" in row[2]
                    and "fail" not in row[2].split(",")
                    and any(_holds(part, slot) for part in row[8:])
                ):
                    return self._named(row[0])
        raise LookupError(f"no master holds slot {slot}")

    def replica_of(self, master: Server) -> Server:
        name = self.id_of(master)
        for row in self.rows(master):
            if row[3] == name and "fail" not in row[2].split(","):
                return self._named(row[0])
        raise LookupError(f"{name} has no replica")

    def other_master(self, than: Server) -> Server:
        """A master that is another one."""
        for row in self.rows(than):
            if _is_master(row) and (node := self._named(row[0])) is not than:
                return node
        raise LookupError("no other master")

    def _named(self, name: str) -> Server:
        return next(node for node, its in self._names.items() if its == name)

    def settle(self) -> None:
        """Wait until every running node says that all is well, and replicas follow their masters."""
        wait_until(
            lambda: all(self._is_settled(node) for node in self.nodes if node.running),
            SETTLE_S,
            "the cluster to settle",
        )

    def _is_settled(self, node: Server) -> bool:
        try:
            with node.client(decode_responses=True) as client:
                client.response_callbacks.clear()
                info = client.execute_command("CLUSTER", "INFO")
                link = client.execute_command("INFO", "replication")
        except redis.RedisError:
            return False
        return "cluster_state:ok" in info and ("role:master" in link or "master_link_status:up" in link)

    # -- what happens to clusters

    def fail_over(self, tag: str) -> Server:
        """Have the replica of a tag's master take over, though nothing is wrong; gives the new master."""
        old = self.master(tag)
        new = self.replica_of(old)
        self.ask(new, "CLUSTER", "FAILOVER")
        return self.await_other_master(tag, old)

    def await_other_master(self, tag: str, old: Server) -> Server:
        """Wait until all running nodes hold another one for the master of this tag."""
        slot = slot_of(tag)

        def owners() -> set[str]:
            return {
                row[0]
                for node in self.nodes
                if node.running and node is not old
                for row in self.rows(node)
                if "master" in row[2] and any(_holds(part, slot) for part in row[8:])
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

    def move_keys(self, source: Server, target: Server, slot: int) -> None:
        """Move all keys of a slot that is on the move."""
        auth = ["AUTH", self.password] if self.password else []
        with source.client() as client:
            while names := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *auth, "KEYS", *names)

    def _role(self, node: Server) -> str:
        with node.client() as client:
            client.response_callbacks.clear()
            return str(client.execute_command("INFO", "replication").decode())

    def flush(self) -> None:
        """Delete all keys of all masters."""
        for node in self.nodes:
            if "role:master" in self._role(node):
                self.ask(node, "FLUSHALL")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _is_master(row: list[str]) -> bool:
    """Whether a line of CLUSTER NODES tells of a master that is not given up."""
    flags = row[2].split(",")
    return "master" in flags and "fail" not in flags


def _holds(part: str, slot: int) -> bool:
    """Whether a range of slots in a line of CLUSTER NODES holds this one."""
    first, _, last = part.partition("-")
    return not part.startswith("[") and int(first) <= slot <= int(last or first)
