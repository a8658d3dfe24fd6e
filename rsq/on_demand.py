"""A thread that works beside others, and begins when there is something to do."""

from __future__ import annotations

import threading
from collections.abc import Callable


class OnDemand:
    """Begun by the first `need`, and anew by a later one where a fault has ended it. `need` is called under a lock.

    It knows nothing of whose thread it is before that: an owner that never needed it goes with its last reference.
    """

    __slots__ = ("_name", "_thread")

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None

    def need(self, run: Callable[[], None]) -> bool:
        """Have it at work, which is this. True when it has just begun."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()
        return True
