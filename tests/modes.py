"""A test in eager mode and with a worker alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rsq import App

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
