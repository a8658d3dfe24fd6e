"""A PostgreSQL for the tests of the inbox, and the real workers of the integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.contrib.postgres import Postgres, find_binaries
from tests.integration.conftest import journal, start_worker

__all__ = ["journal", "start_worker"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Where it is not installed, a test that needs it is skipped, but fails in CI (`CI=true`)."""
    binaries = find_binaries()
    if binaries is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up("no PostgreSQL: apt-get install postgresql")
    server = Postgres(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()
