"""Small helpers that tests of every part share."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

POLL_S = 0.005


def patience(seconds: float) -> float:
    """After how long it hangs what takes less than `seconds` on a machine with nothing else to do."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(condition: Callable[[], T], timeout_s: float = 10, what: str = "the condition to hold") -> T:
    """Call `condition` every few milliseconds until it answers something true, and return that.

    timeout_s  see `patience`: more on a machine that is busy
    what       names what is waited for, as in "waited 10 s for <what>"; with it the test fails when time is up
    """
    began = time.monotonic()
    while not (answer := condition()):
        waited_s = time.monotonic() - began
        if waited_s >= timeout_s and waited_s >= patience(timeout_s):
            pytest.fail(f"waited {waited_s:.0f} s for {what}; the last answer was {answer!r}")
        time.sleep(POLL_S)
    return answer


def wait_beside(
    selector: selectors.BaseSelector, tend: Callable[[float], None], condition: Callable[[], bool], timeout_s: float
) -> None:
    """`wait_until`, looking after what is ready in a selector meanwhile, as a supervisor does."""

    def looked() -> bool:
        for key, _ in selector.select(0.01) if selector.get_map() else ():
            key.data.on_readable(key.fd)
        tend(time.monotonic())
        return condition()

    wait_until(looked, timeout_s)


def free_port(above: int = 0) -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, nor on the one that is so far above it."""
    while True:
        with socket.socket() as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + above if above else 0))
            except (OSError, OverflowError):
                continue
            return port
