"""How long a worker's leases may be held up by what it does beside."""

from __future__ import annotations

import pytest

from rsq.broker.connection import Endpoint
from rsq.settings import Settings
from rsq.worker.duty import tells_within_s
from rsq.worker.leases import RENEWALS
from rsq.worker.rounds import LINK_TIMEOUT_S


@pytest.mark.parametrize("lease_s", [1.0, 2.0, 10.0, 60.0])
def test_a_fleet_that_is_away_leaves_time_to_renew(lease_s: float) -> None:
    """From one renewal to the next: the pause, what is told of the worker, and a quarter of the lease for itself."""
    settings = Settings(lease_s=lease_s)
    takes_s = tells_within_s(Endpoint("redis+cluster://a"), settings)
    assert takes_s <= LINK_TIMEOUT_S
    assert lease_s / RENEWALS + takes_s + lease_s / 4 < lease_s
