"""The wire between a worker and the server: cut at once, or gone for a while."""

from __future__ import annotations

import socket

from tests.clusters import Cluster
from tests.proxy import Proxy
from tests.servers import Server


class Wire(Proxy):
    """A proxy whose connections can be cut, and that can be taken off the network and put back."""

    def __init__(self, server: Server | Cluster) -> None:
        self._away = ""
        self._goes_away = False
        super().__init__(server)

    def cut(self) -> None:
        """Close every connection that there is now."""
        for sock in list(self._peers):
            try:
                sock.shutdown(socket.SHUT_RDWR)  # the proxy's own thread sees the end and closes both sides
            except OSError:
                pass  # closed this very moment

    def isolate(self, silent: bool) -> None:
        """Nothing passes any more. Silent: connections stay open, and nobody answers; else they are cut and refused."""
        self._away = "silent" if silent else "refused"
        if not silent:
            self.cut()

    def lose_reply_and_server(self, at: bytes) -> None:
        """The next reply to a request that contains `at` is lost, and from then on everything is refused."""
        self._goes_away = True
        self.plan("cut_reply", at=at)

    def heal(self) -> None:
        """New connections pass again. Those that were silent meanwhile have lost data: they are cut."""
        self._away = ""
        self._goes_away = False
        self.cut()

    def _fault(self, direction: str, source: socket.socket, data: bytes) -> str | None:
        fault = super()._fault(direction, source, data)
        if fault is not None and self._goes_away:
            self.isolate(silent=False)
        return fault

    def _accept(self, listener: socket.socket) -> None:
        if self._away == "refused":
            client, _ = listener.accept()
            client.close()
        else:
            super()._accept(listener)

    def _forward(self, source: socket.socket) -> None:
        if self._away == "silent":
            self._swallow(source)
        else:
            super()._forward(source)

    def _swallow(self, source: socket.socket) -> None:
        try:
            if source.recv(1 << 16):
                return
        except OSError:
            pass
        self._drop(source)
