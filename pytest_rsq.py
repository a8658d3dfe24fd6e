"""Fixtures that pytest finds by itself where rsq is installed. See docs/testing.md.

Nothing of rsq is imported before a fixture is used: a test run that uses none pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rsq import App
    from rsq.testing import TemporaryServer, ThreadWorker


@pytest.fixture(scope="session")
def rsq_server() -> TemporaryServer:
    """A real server for this test run, in a temporary directory; `rsq_server.url` names it."""
    from rsq.testing.server import temporary_server

    server = temporary_server()
    server.start()
    return server


@pytest.fixture
def rsq_app() -> Iterator[App]:
    """The project's app, on the server of this run under a namespace of its own. Override it to name another."""
    from rsq.testing import project_app

    with project_app() as app, app.testing.isolated():
        yield app


@pytest.fixture
def rsq_worker(rsq_app: App) -> Iterator[ThreadWorker]:
    """A real worker inside the test, on all queues that the tasks of `rsq_app` name."""
    with rsq_app.testing.worker() as worker:
        yield worker


@pytest.fixture
def rsq_eager(rsq_app: App) -> Iterator[None]:
    """Calls of the tasks of `rsq_app` run inline, and a call that fails raises its error. Needs no server."""
    with rsq_app.testing.eager():
        yield
