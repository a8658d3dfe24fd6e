"""A master, its replica, and three real sentinels that watch them, all of the binary under test."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers import free_port, wait_until
from tests.servers import STOP_S, Server

SERVICE = "shop"

SETTLE_S = 60
"""Sentinels find each other, agree and fail over within seconds; a slow machine gets this long."""


class Sentinel:
    """One sentinel process. Every server binary can be one.

    master    port of the node that it watches in the beginning
    password  that of the nodes
    own       what the sentinel itself asks of its clients
    """

    def __init__(self, binary: Path, master: int, password: str | None = None, own: str | None = None) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="rsq-", dir="/tmp"))
        self.port = free_port()
        self.log = self._home / "sentinel.log"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f'dir "{self._home}"',
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 3000",
            *([f"sentinel auth-pass {SERVICE} {password}"] if password else []),
            *([f"requirepass {own}", f"sentinel sentinel-pass {own}"] if own else []),
        ]
        settings = self._home / "sentinel.conf"
        settings.write_text("\n".join(lines) + "\n")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, settings, "--sentinel"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._client = redis.Redis(
            port=self.port, password=own, protocol=2, retry=Retry(NoBackoff(), 0), decode_responses=True
        )

    def sees(self, replicas: int) -> bool:
        """Whether it watches the master with so many replicas that are up, together with two others."""
        try:
            (state,) = self.ask("MASTERS")
            nodes = self.ask("REPLICAS", SERVICE)
        except redis.RedisError:
            return False
        up = [node for node in nodes if node["flags"] == "slave" and node["master-link-status"] == "ok"]
        return state["flags"] == "master" and state["num-other-sentinels"] == "2" and len(up) == replicas

    def master_port(self) -> int:
        """Port of the node that this sentinel holds for the master."""
        (state,) = self.ask("MASTERS")
        return int(state["port"])

    def answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def fail_over(self) -> None:
        """Have a replica promoted, though nothing is wrong."""
        self._client.execute_command("SENTINEL", "FAILOVER", SERVICE)

    def ask(self, *words: str) -> list[dict[str, str]]:
        """Rows of a `SENTINEL` command."""
        # The words apart: under its full name the client library would turn the answer into something of its own.
        rows: Any = self._client.execute_command("SENTINEL", *words)
        return [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]

    def freeze(self) -> None:
        """SIGSTOP: it takes connections and answers nobody."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self._home, ignore_errors=True)


class Service:
    """A master, its replica and three sentinels, settled when it is entered."""

    def __init__(self, binary: Path, password: str | None = None, sentinel_password: str | None = None) -> None:
        self._binary = binary
        self.password = password
        self._own = sentinel_password
        self.nodes: list[Server] = []
        self.sentinels: list[Sentinel] = []

    def __enter__(self) -> Service:
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
        config = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
        if self.password:
            config["masterauth"] = self.password
        self._add(config)
        self._add(config | {"replicaof": f"127.0.0.1 {self.nodes[0].port}"})
        for _ in range(3):
            self.sentinels.append(Sentinel(self._binary, self.nodes[0].port, self.password, self._own))
        self.settle()

    def _add(self, config: dict[str, str]) -> None:
        self.nodes.append(Server(self._binary, tcp=True, appendonly=True, password=self.password, config=config))
        self.nodes[-1].start()

    @property
    def url(self) -> str:
        credentials = f":{self.password}@" if self.password else ""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        query = f"?sentinel_password={self._own}" if self._own else ""
        return f"redis+sentinel://{credentials}{places}/{SERVICE}/0{query}"

    def settle(self, replicas: int = 1) -> None:
        """Wait until all sentinels see each other, one master, and so many replicas that follow it."""
        wait_until(lambda: all(each.sees(replicas) for each in self.sentinels), SETTLE_S, "the sentinels to settle")

    def master(self) -> Server:
        """The node that the sentinels hold for the master."""
        port = self.sentinels[0].master_port()
        return next(node for node in self.nodes if node.port == port)

    def replica(self) -> Server:
        """The other one."""
        master = self.master()
        return next(node for node in self.nodes if node is not master)

    def await_failover(self, old: Server) -> Server:
        """Wait until all sentinels name another master than `old`, and that node has taken over. Gives it."""
        new = next(node for node in self.nodes if node is not old)
        wait_until(
            lambda: {each.master_port() for each in self.sentinels} == {new.port} and role(new) == "master",
            SETTLE_S,
            "the replica to be promoted",
        )
        return new

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for node in self.nodes:
            node.close()


def role(node: Server) -> str:
    """``master`` or ``slave``; nothing while the node cannot say. A sentinel cuts its clients off when that changes."""
    try:
        with node.client(decode_responses=True) as client:
            return str(client.role()[0])
    except redis.RedisError:
        return ""
