"""What keeps a worker's leases, where the server answers as the test says."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from rsq.broker.queue import QueueMoved
from rsq.settings import Settings
from rsq.worker.lease_keeper import LeaseKeeper


class Nobody(list[Any]):
    """Children of a worker that has none yet."""

    places = ()
    done = 0


def ignored(*_: object) -> None:
    """What else is done meanwhile."""


def test_what_was_begun_for_queues_that_have_moved_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would: its connections would stand in the selector of the worker for good."""

    def begin(keeper: LeaseKeeper, _: Settings) -> Any:
        began.append(keeper)
        number = len(began)
        found = [QueueMoved("it lies elsewhere")] if number == 1 else []
        return SimpleNamespace(
            rounds=SimpleNamespace(lanes=[], every_s=1.0, renew=lambda consumers: found),
            control=SimpleNamespace(tell=ignored, settle=ignored),
            tend=ignored,
            end=partial(ended.append, number),
        )

    began: list[LeaseKeeper] = []
    ended: list[int] = []
    monkeypatch.setattr(LeaseKeeper, "_begin", begin)
    children: Any = Nobody()
    unused: Any = None
    keeper = LeaseKeeper(unused, "host-1", children, unused, ignored, ignored, ignored, ignored)
    keeper.settings = Settings()
    for seen in (1, 2):
        keeper.due_at = 0.0
        keeper.tend(1.0)
        assert (len(began), ended) == (seen, [1])
