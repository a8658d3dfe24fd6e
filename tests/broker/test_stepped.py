"""A connection of which each step is taken when a selector says so: on a real server."""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq.broker.connection import Endpoint
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Exchange
from rsq.broker.faults import checked
from rsq.broker.stepped import SteppedLink
from rsq.broker.wire import packed
from rsq.errors import BrokerRefused, BrokerUnavailable
from tests.conftest import MakeServer
from tests.helpers import free_port, wait_beside
from tests.integration.test_deadlines import certificates

LONG_S = 60.0


class Office:
    """A link, the selector in which it stands, and what it has told."""

    def __init__(self, url: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.rung: list[bool] = []
        self.told: list[Any] = []
        self.link = SteppedLink(Endpoint(url), self.selector, self.rung.append)

    def ask(self, *commands: bytes, seconds: float = LONG_S) -> None:
        self.link.follow(asking(*commands), Deadline(seconds), self.told.append)

    def until(self, holds: Callable[[], bool]) -> None:
        wait_beside(self.selector, self.link.tend, holds, LONG_S)

    def answer(self, *commands: bytes, seconds: float = LONG_S) -> Any:
        number = len(self.told)
        self.ask(*commands, seconds=seconds)
        self.until(lambda: len(self.told) > number)
        return self.told[-1]


def asking(*commands: bytes) -> Exchange[list[Any]]:
    return checked((yield list(commands), None))


@pytest.fixture
def office(url: str) -> Iterator[Office]:
    office = Office(url)
    yield office
    office.link.close()
    assert not office.selector.get_map()


PING = packed("PING")


def test_talks_go_one_after_the_other_on_one_connection(office: Office) -> None:
    assert office.answer(PING) == [b"PONG"]
    here = office.answer(packed("CLIENT", "ID"))
    large = packed("ECHO", b"x" * 5_000_000)  # more than a socket takes at once
    assert office.answer(large, PING, large) == [b"x" * 5_000_000, b"PONG", b"x" * 5_000_000]
    assert office.answer(packed("CLIENT", "ID")) == here
    assert office.link.connected
    assert not office.link.busy
    assert office.link.due_at == math.inf


def test_what_is_refused_is_told_and_the_connection_stays(office: Office) -> None:
    assert isinstance(office.answer(packed("NOSUCH")), BrokerRefused)
    assert office.link.connected
    assert office.answer(PING) == [b"PONG"]


def test_what_comes_unasked_rings_and_so_does_the_end(own_server: MakeServer) -> None:
    server = own_server()
    office = Office(server.url)
    with server.client() as client:
        assert office.answer(packed("SUBSCRIBE", "bell"))[0][:2] == [b"subscribe", b"bell"]
        for _ in range(2):
            client.publish("bell", "x")
            office.until(lambda: bool(office.rung))
            assert office.rung == [True]
            office.rung.clear()
        client.client_kill_filter(_type="pubsub")
        office.until(lambda: bool(office.rung))
    assert office.rung == [False]
    assert not office.link.connected
    assert office.answer(PING) == [b"PONG"]
    office.link.close()


def test_who_asks_a_server_that_hangs_does_not_wait(own_server: MakeServer) -> None:
    server = own_server()
    office = Office(server.url)
    assert office.answer(PING) == [b"PONG"]
    server.freeze()
    office.ask(PING, seconds=LONG_S)
    assert office.link.busy
    assert time.monotonic() < office.link.due_at < time.monotonic() + 2 * LONG_S
    office.link.close()
    assert isinstance(office.answer(PING, seconds=0.2), BrokerUnavailable)  # while it connects, too
    server.thaw()
    assert office.answer(PING) == [b"PONG"]
    server.freeze()
    assert isinstance(office.answer(PING, seconds=0.2), BrokerUnavailable)
    server.thaw()
    assert office.answer(PING) == [b"PONG"]
    office.link.close()


def test_a_server_that_is_gone_is_told(own_server: MakeServer) -> None:
    server = own_server()
    office = Office(server.url)
    assert office.answer(PING) == [b"PONG"]
    server.kill()
    office.until(lambda: not office.link.connected)
    assert isinstance(office.answer(PING), BrokerUnavailable)
    server.start()
    assert office.answer(PING) == [b"PONG"]
    office.link.close()


def test_a_port_where_nobody_is_and_one_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        office = Office(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        assert isinstance(office.answer(PING, seconds=0.2), BrokerUnavailable)
        office.link.close()
    assert isinstance(Office(f"redis://127.0.0.1:{free_port()}").answer(PING), BrokerUnavailable)


def test_who_waits_after_all_is_told_before_he_goes_on(office: Office) -> None:
    office.ask(PING)
    office.link.wait()
    assert office.told == [[b"PONG"]]


def test_an_error_of_who_is_told_is_none_of_the_connection(office: Office) -> None:
    def fails(result: object) -> None:
        raise OSError("no room")

    office.link.follow(asking(PING), Deadline(LONG_S), fails)
    with pytest.raises(OSError, match="no room"):
        office.link.wait()
    assert office.answer(PING) == [b"PONG"]


def test_who_is_told_may_begin_the_next(office: Office) -> None:
    office.link.follow(asking(PING), Deadline(LONG_S), lambda _: office.ask(packed("ECHO", "next")))
    office.until(lambda: office.told == [[b"next"]])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls(own_server: MakeServer, tmp_path: Path, host: str) -> None:
    certificates(tmp_path, "localhost")
    port = free_port(10_000)
    files = {"tls-ca-cert-file": "ca.pem", "tls-cert-file": "localhost.pem", "tls-key-file": "localhost.key"}
    config = {"tls-port": str(port), "tls-auth-clients": "no", **{n: str(tmp_path / f) for n, f in files.items()}}
    try:
        own_server(config=config)
    except RuntimeError as error:
        pytest.skip(f"this server was built without TLS: {error}")
    office = Office(f"rediss://{host}:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}")
    if host == "localhost":
        large = packed("ECHO", b"x" * 1_000_000)
        assert office.answer(PING, large) == [b"PONG", b"x" * 1_000_000]
    else:
        assert isinstance(office.answer(PING), BrokerRefused)
    office.link.close()
