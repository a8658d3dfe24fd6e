"""A short chaos run in each run of the suite; `python -m tests.chaos` is the long one."""

from __future__ import annotations

import pytest

from tests.chaos.driver import Chaos
from tests.chaos.table import render


@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_or_doubled(seed: int) -> None:
    report = Chaos(seconds=20, seed=seed).run()
    assert report.numbers["results"] > 100
    assert not report.violations, render(report)
