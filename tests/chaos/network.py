"""The wire between a worker and the server: cut at once, or gone for a while."""

from __future__ import annotations

import socket

from tests.clusters import AnyServer
from tests.proxy import Proxy


class Wire(Proxy):
    """A proxy whose connections can be cut, and that can be taken off the network and put back."""

    def __init__(self, server: AnyServer) -> None:
        self._away = ""
        self._lost: int | None = None
        self._goes_away = False
        super().__init__(server)

    def cut(self) -> None:
        """Close every connection that there is now, but to nodes that nothing has befallen."""
        for sock in list(self._peers):
            if not self._is_lost(sock):
                continue
            try:
                sock.shutdown(socket.SHUT_RDWR)  # the proxy's own thread sees the end and closes both sides
            except OSError:
                pass  # closed this very moment

    def isolate(self, silent: bool, port: int | None = None) -> None:
        """Nothing passes any more. Silent: connections stay open, and nobody answers; else they are cut and refused.

        port  of a cluster's node: to it alone
        """
        self._lost = port
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
        self._lost = None

    def _fault(self, direction: str, source: socket.socket, data: bytes) -> str | None:
        fault = super()._fault(direction, source, data)
        if fault is not None and self._goes_away:
            self.isolate(silent=False)
        return fault

    def _is_lost(self, sock: socket.socket) -> bool:
        """Whether what was said of the nodes is true of the one that this leads to."""
        if self._lost is None:
            return True
        try:
            server = self._peers[sock] if sock in self._client_sides else sock
            return bool(server.getpeername()[1] == self._lost)
        except (KeyError, OSError):
            return False  # closed this very moment

    def _accept(self, listener: socket.socket) -> None:
        if self._away == "refused" and self._lost in (None, self._targets[listener][1]):
            client, _ = listener.accept()
            client.close()
        else:
            super()._accept(listener)

    def _forward(self, source: socket.socket) -> None:
        if self._away == "silent" and self._is_lost(source):
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
