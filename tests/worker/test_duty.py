"""How long a worker's leases may be held up by what it does beside."""

from __future__ import annotations

import math
import selectors
import time
from types import SimpleNamespace

import pytest

from rsq.broker.connection import Endpoint
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import BrokerUnavailable
from rsq.settings import Settings
from rsq.worker import rounds
from rsq.worker.leases import RENEWALS, Renewal
from rsq.worker.rounds import Rounds, again_at, try_s
from tests.clusters import AnyServer
from tests.helpers import wait_beside
from tests.proxy import Proxy


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


def test_a_partition_that_does_not_answer_is_not_waited_for_again(server: AnyServer) -> None:
    """Its renewal goes on beside the others, which the next round does not find held up."""
    consumers = [["here"], ["away"]]
    with Proxy(server) as proxy, selectors.DefaultSelector() as selector:
        settings = Settings(url=proxy.url, partitions=2, lease_s=5.0)
        queues = [WorkerQueue(name, settings, partition) for partition, name in enumerate("ab")]
        its = Rounds(Endpoint.of(settings), queues, settings, selector)
        leases_until, errors = its.register(["here", "away"])
        assert all(leases_until)
        assert errors == []
        proxy.plan("stall_reply", "stall_reply", at=b"{rsq:1}")
        answered, fault = its.renew(consumers)
        assert isinstance(answered, Renewal)
        assert isinstance(fault, BrokerUnavailable)
        again, still = its.renew(consumers)
        assert isinstance(again, Renewal)
        assert again.until > answered.until
        assert still is fault
        assert its.due_at < math.inf  # it is under way
        wait_beside(selector, its.tend, lambda: isinstance(its.renew(consumers)[1], Renewal), 60)
        assert its.lanes[1].answers
        its.close()
        assert not selector.get_map()
