"""What children say when they have loaded the app: read as it comes, for the supervisor waits for no user code."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from typing import Any

from rsq import codec
from rsq.errors import DecodeError
from rsq.worker.children import Child
from rsq.worker.part import Part
from rsq.worker.stop import LENGTH_BYTES

MOST_BYTES = 1 << 16
"""Read at once."""


class Hellos(Part):
    """heard  is given each child with its whole hello, or with {} where what it said cannot be read"""

    def __init__(self, selector: selectors.BaseSelector, heard: Callable[[Child, dict[str, Any]], None]) -> None:
        self._selector = selector
        self._heard = heard
        self._speaking: dict[int, Child] = {}

    def expect(self, child: Child) -> None:
        """A child was born."""
        assert child.hello is not None, "it has not spoken yet"
        self._speaking[child.hello] = child
        self._selector.register(child.hello, selectors.EVENT_READ, self)

    def on_readable(self, fd: int) -> None:
        """Take in what a child says. It has died where there is nothing, which is found by other means."""
        child = self._speaking.get(fd)
        if child is not None and (not self._read(child) or self._is_whole(child)):
            self._part_with(child)

    def last_words(self, child: Child) -> None:
        """It has died: what it has not said by now it will not say."""
        while child.hello is not None and self._read(child):
            pass
        if child.hello is not None:
            self._part_with(child)

    def _read(self, child: Child) -> bool:
        """False: there is nothing more."""
        assert child.hello is not None, "it has not been parted with"
        try:
            data = os.read(child.hello, MOST_BYTES)
        except BlockingIOError:
            return False
        child.heard += data
        return bool(data)

    def _is_whole(self, child: Child) -> bool:
        heard = child.heard
        return len(heard) >= LENGTH_BYTES and len(heard) - LENGTH_BYTES >= int.from_bytes(heard[:LENGTH_BYTES], "big")

    def _part_with(self, child: Child) -> None:
        assert child.hello is not None, "once"
        del self._speaking[child.hello]
        self._selector.unregister(child.hello)
        os.close(child.hello)
        child.hello = None
        if not self._is_whole(child):
            return
        try:
            hello = dict(codec.decode(bytes(child.heard[LENGTH_BYTES:])))
        except (DecodeError, TypeError, ValueError):
            hello = {}
        self._heard(child, hello)
