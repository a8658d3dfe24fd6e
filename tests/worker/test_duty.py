"""How long a worker's leases may be held up by what it does beside."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from rsq.worker import rounds
from rsq.worker.leases import RENEWALS
from rsq.worker.rounds import again_at, try_s


@pytest.mark.parametrize("lease_s", [2.0, 6.0, 10.0, 60.0])
def test_three_tries_fit_into_what_a_renewal_leaves_of_a_lease(lease_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that hangs, so that each takes as long as it may."""
    now, tries = lease_s / RENEWALS, 0
    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: now))
    while now + try_s(lease_s) <= lease_s:
        tries, began = tries + 1, now
        now += try_s(lease_s)
        now = again_at(began)
    assert tries >= 3


def test_a_try_that_fails_at_once_is_not_repeated_at_once() -> None:
    began = time.monotonic()
    assert again_at(began) == pytest.approx(began + rounds.AGAIN_S)
