"""Whoever does not use an inbox need not have its library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rsq

ROOT = Path(rsq.__file__).parent


@pytest.mark.parametrize("library", ["django", "sqlalchemy"])
def test_only_its_inbox_imports_it(library: str) -> None:
    statement = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    users = {path.relative_to(ROOT) for path in ROOT.rglob("*.py") if statement.search(path.read_text())}
    assert users
    assert [path for path in users if not str(path).startswith((f"contrib/inbox/{library}", "contrib/sse"))] == []
