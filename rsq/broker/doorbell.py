"""A subscribed connection that only says "look": what there is to see stands in a key, so a lost ring loses nothing.

What comes is thrown away unread, the answer to SUBSCRIBE too: whatever came before it may have been missed.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
from collections.abc import Callable

from rsq.broker.channel import Channel
from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.faults import FAULTS
from rsq.broker.wire import packed_texts
from rsq.errors import BrokerError

log = logging.getLogger("rsq.broker")


class Doorbell:
    """Rings by becoming readable: it stands in `selector`, with itself as data, as long as it is connected.

    rung  is called when it has rung, with False when that was the end of the connection
    """

    def __init__(
        self,
        endpoint: Endpoint,
        channel: str,
        timeout_s: float,
        selector: selectors.BaseSelector,
        rung: Callable[[bool], None],
    ) -> None:
        self._endpoint = endpoint
        self._channel = channel
        self._timeout_s = timeout_s
        self._selector = selector
        self._rung = rung
        self._open: Channel | None = None
        self._socket: socket.socket | None = None

    def hang(self) -> None:
        """Connect, unless it is. What fails is tried again with the next call: without a bell the key is read later."""
        if self._socket is not None:
            return
        try:
            deadline = Deadline(self._timeout_s)
            self._open, _ = self._endpoint.open(deadline)
            self._open.send(packed_texts("SUBSCRIBE", self._channel), deadline)
            self._socket = self._open.socket
            self._socket.setblocking(False)
            self._selector.register(self._socket, selectors.EVENT_READ, self)
        except (BrokerError, *FAULTS) as error:
            log.debug("cannot subscribe to %s: %s", self._channel, error)
            self.take_down()

    def on_readable(self, fd: int) -> None:
        """Throw away what came, and tell of it."""
        if self._socket is not None:
            self._rung(self._still_connected(self._socket))

    def _still_connected(self, connected: socket.socket) -> bool:
        try:
            while data := connected.recv(4096):
                if data.startswith(b"-"):
                    log.warning("%s cannot be subscribed to: %s", self._channel, data.decode(errors="replace").strip())
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        self.take_down()
        return False

    def take_down(self) -> None:
        """Drop the connection."""
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket = None
        channel, self._open = self._open, None
        if channel is not None:
            channel.close()
