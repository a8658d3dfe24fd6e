"""A proxy between rsq and a real server that loses what it is told to lose."""

from __future__ import annotations

import random
import re
import selectors
import socket
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from rsq.broker.scripts import Script
from tests.clusters import Cluster
from tests.servers import Server

REQUEST, REPLY = "request", "reply"

# What a node tells of others: rows of CLUSTER SLOTS, and the ends of MOVED.
_PLACE = re.compile(
    rb"(?P<before>\$9\r\n127\.0\.0\.1\r\n:|^-MOVED \d+ 127\.0\.0\.1:)(?P<port>\d+)(?=\r\n)", re.MULTILINE
)


class Proxy:
    """Listens on a unix socket of its own and forwards to the server's.

    Of a cluster it stands before each node, on a port of its own, and puts these ports into what nodes tell of others.

    Faults wait in a queue and strike one after the other, each at the next chunk of data of its direction:

        cut_request      the request is not forwarded; both sides are closed
        cut_reply        the request was carried out, its reply is lost; both sides are closed
        truncate_reply   half of the reply arrives, then both sides are closed
        stall_reply      the reply never arrives; the connection stays open, and silent
        pass_request     nothing: it goes through, and the next fault is for the one after it
        hold_request     the request lies in a buffer until `release`, whatever its sender does meanwhile

    The line itself may be slow: `delay_s` before each reply, `bytes_per_s` of requests (0 = as fast as it can).
    """

    def __init__(self, server: Server | Cluster) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rsq-proxy-", dir="/tmp")
        self._targets: dict[socket.socket, Any] = {}
        self._ports: dict[int, int] = {}
        if isinstance(server, Cluster):
            for node in server.nodes:
                listener = socket.create_server(("127.0.0.1", 0), backlog=100)
                self._targets[listener] = ("127.0.0.1", node.port)
                self._ports[node.port] = listener.getsockname()[1]
            places = ",".join(f"127.0.0.1:{port}" for port in self._ports.values())
            self.url = f"redis+cluster://{places}"
        else:
            path = str(Path(self._directory.name) / "s")
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(100)
            self._targets[listener] = str(server.socket)
            self.url = f"unix://{path}?db=0"
        self._faults: deque[tuple[str, bytes]] = deque()
        self._rate = 0.0
        self.delay_s = 0.0
        self.bytes_per_s = 0
        self._rng = random.Random()
        self.struck = 0
        self._peers: dict[socket.socket, socket.socket] = {}
        self._client_sides: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._asked: socket.socket | None = None
        self._held: list[tuple[socket.socket, socket.socket, bytes]] = []
        self._selector = selectors.DefaultSelector()
        self._stop_read, self._stop_write = socket.socketpair()
        for listener in self._targets:
            self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def plan(self, *faults: str, at: bytes = b"") -> None:
        """Let these strike from now on, in this order, each at the next request that contains `at`, or at its reply."""
        self._faults.extend((fault, at) for fault in faults)

    def heal(self) -> None:
        """What was planned and has not struck never does."""
        self._faults.clear()

    def at_random(self, rate: float, seed: int) -> None:
        """From now on a fault of any kind but stalling strikes with this probability at each chunk; 0 = no more."""
        self._rng, self._rate = random.Random(seed), rate

    def sha(self, script: Script) -> bytes:
        """By which requests on their way through here call a script."""
        return (script.sharded if self._ports else script).sha.encode()

    @property
    def pending(self) -> int:
        """Planned faults that have not struck yet."""
        return len(self._faults)

    def swallow(self) -> None:
        """From now on the connections that stand now are half open: what either side sends is lost without a word."""
        self._silent.update(list(self._peers))

    def release(self) -> int:
        """Forward what was held; gives how many requests of those the server still took and answered."""
        answered = 0
        held, self._held = self._held, []
        for client, server, data in held:
            try:
                server.sendall(data)
                answered += bool(server.recv(1 << 16))
            except OSError:
                pass
            client.close()
            server.close()
        return answered

    def close(self) -> None:
        self._stop_write.send(b"x")
        self._thread.join(10)
        held = [each for client, server, _ in self._held for each in (client, server)]
        for each in [*self._targets, self._stop_read, self._stop_write, *self._peers, *held]:
            each.close()
        self._selector.close()
        self._directory.cleanup()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._stop_read:
                    return
                if sock in self._targets:
                    self._accept(sock)
                elif sock in self._peers:
                    self._forward(sock)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        server = socket.socket(listener.family)
        try:
            server.connect(self._targets[listener])
        except OSError:
            client.close()
            server.close()
            return
        self._client_sides.add(client)
        for mine, other in ((client, server), (server, client)):
            self._peers[mine] = other
            self._selector.register(mine, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        target = self._peers[source]
        try:
            data = source.recv(1 << 16)
            if not data:
                self._drop(source)
                return
            if source in self._silent:
                return
            direction = REQUEST if source in self._client_sides else REPLY
            if direction == REPLY:
                data = _PLACE.sub(self._own_port, data) if self._ports else data
                time.sleep(self.delay_s)
            elif self.bytes_per_s:
                time.sleep(len(data) / self.bytes_per_s)
            fault = self._fault(direction, source, data)
            if fault in ("cut_request", "cut_reply"):
                self._drop(source)
            elif fault == "truncate_reply":
                target.sendall(data[: len(data) // 2])
                self._drop(source)
            elif fault == "stall_reply":
                self._silent.add(source)
            elif fault == "hold_request":
                self._forget(source)
                self._held.append((source, target, data))
            else:
                target.sendall(data)
        except OSError:
            self._drop(source)

    def _own_port(self, place: re.Match[bytes]) -> bytes:
        port = int(place["port"])
        return b"%s%d" % (place["before"], self._ports.get(port, port))

    def _fault(self, direction: str, source: socket.socket, data: bytes) -> str | None:
        if self._faults:
            fault, at = self._faults[0]
            of_reply = fault.endswith(REPLY)
            if direction == REPLY:
                strikes = of_reply and (not at or source is self._asked)
            else:
                strikes = not of_reply and at in data
                if of_reply and at and at in data:
                    self._asked = self._peers[source]
            if strikes:
                self._asked = None
                self.struck += 1
                return self._faults.popleft()[0]
        if self._rate and self._rng.random() < self._rate:
            self.struck += 1
            return "cut_request" if direction == REQUEST else self._rng.choice(["cut_reply", "truncate_reply"])
        return None

    def _drop(self, sock: socket.socket) -> None:
        for each in self._forget(sock):
            each.close()

    def _forget(self, sock: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Look no more at either side of a connection."""
        both = sock, self._peers[sock]
        for each in both:
            self._selector.unregister(each)
            self._peers.pop(each)
            self._client_sides.discard(each)
            self._silent.discard(each)
        return both
