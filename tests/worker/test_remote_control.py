"""A worker's side of `rsq inspect` and `rsq control`: on a real server, and without waiting for it."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rsq import keys
from rsq.broker.connection import Endpoint
from rsq.settings import Settings
from rsq.worker.portrait import Portrait
from rsq.worker.remote_control import RemoteControl
from tests.conftest import MakeServer
from tests.helpers import wait_beside

WORKER, LONG_S = "host-1-abcd", 60.0


class Office:
    """A worker's remote control, and the selector that calls it."""

    def __init__(self, url: str) -> None:
        settings = Settings(url=url)
        self.selector = selectors.DefaultSelector()
        self.rung: list[bool] = []
        self.heard = 0
        portrait = Portrait("shop", ["default"], ["add"], "prefork", 1, 1, settings.lease_ms)
        self.control = RemoteControl(
            Endpoint.of(settings),
            settings,
            WORKER,
            {"default": 0},
            portrait,
            self.selector,
            self.rung.append,
            self.hear,
        )

    def hear(self) -> None:
        self.heard += 1

    def tell(self, wanted: int = 1) -> None:
        self.control.tell([], wanted, False)

    def until(self, holds: Callable[[], bool]) -> None:
        wait_beside(self.selector, self.control.tend, holds, LONG_S)


@pytest.fixture
def office(url: str) -> Iterator[Office]:
    office = Office(url)
    yield office
    office.control.end()
    assert not office.selector.get_map()


def told(redis: Any) -> Any:
    return redis.hget(keys.worker("rsq", WORKER), "wanted")


def test_it_tells_hears_and_leaves(office: Office, redis: Any) -> None:
    office.tell(3)
    office.until(lambda: bool(office.heard and office.rung))  # the bell hangs: what came before may have been missed
    assert told(redis) == b"3"
    redis.hset(keys.wish("rsq", WORKER), mapping={"serial": 7, "stop": 1})
    redis.publish(keys.wish("rsq", WORKER), "")
    office.rung.clear()
    office.until(lambda: office.rung == [True])
    office.tell(3)
    office.until(lambda: office.heard == 2)
    assert (office.control.news, office.control.wish.stop) == (True, True)
    office.control.leave()
    assert told(redis) is None


def test_what_is_to_be_told_meanwhile_is_told_after_it(office: Office, redis: Any) -> None:
    for wanted in (1, 2, 3):
        office.tell(wanted)
    office.until(lambda: office.heard == 2)
    assert told(redis) == b"3"
    office.tell(4)
    office.control.leave()  # behind it
    assert told(redis) is None


def test_a_fleet_that_hangs_is_not_waited_for(own_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = own_server()
    office = Office(server.url)
    office.tell(1)
    office.until(lambda: bool(office.rung))
    server.freeze()
    for wanted in (2, 3):
        office.tell(wanted)  # returns, which is what is tested
    office.until(lambda: not office.control.answers)
    office.control.leave()  # so does this
    assert "could not sign off" in caplog.text
    server.thaw()
    with server.client() as client:
        office.tell(4)
        office.until(lambda: office.control.answers)
        assert told(client) == b"4"
    office.control.end()
