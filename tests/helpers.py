"""Small helpers that tests of every part share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

POLL_S = 0.005


def wait_until(condition: Callable[[], T], timeout_s: float = 10, what: str = "the condition to hold") -> T:
    """Call `condition` every few milliseconds until it answers something true, and return that.

    what   names what is waited for, as in "waited 10 s for <what>"; with it the test fails when time is up
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {timeout_s:g} s for {what}; the last answer was {answer!r}")
        time.sleep(POLL_S)
    return answer


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
