"""A test in eager mode and with a worker alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rsq import App, Signature
from tests.helpers import wait_until

MODES = ("eager", "worker")


@contextmanager
def running(app: App, request: pytest.FixtureRequest) -> Iterator[str]:
    """Have the calls of this app run, in the mode that is the fixture's parameter; gives it."""
    if request.param == "eager":
        with app.testing.eager(propagate=False):
            yield "eager"
    else:
        with app.testing.worker(url=request.getfixturevalue("url")) as worker:
            yield "worker"
            worker.wait_idle(timeout=60)


def noted_in(noted: list[Any], behind: Signature[Any], count: int) -> list[Any]:
    """What was noted, as soon as it is so much; that no more comes is seen by a call behind it."""
    wait_until(lambda: len(noted) >= count, 60, "the notes")
    behind.delay().get(timeout=60)
    return noted
