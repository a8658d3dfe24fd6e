"""What a connection says that ends amid an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from rsq.broker.channel import Channel
from rsq.broker.deadline import Deadline
from rsq.broker.dialling import dial
from rsq.broker.exchange import Dial
from rsq.broker.faults import Refusal
from rsq.broker.wire import packed

PATIENT_S = 60.0


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], Channel]]:
    """A connection to what gives this answer to whatever comes first, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def connect(answer: bytes) -> Channel:
        def serve() -> None:
            with listener.accept()[0] as client:
                client.recv(1 << 16)
                client.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        address = {"host": "127.0.0.1", "port": listener.getsockname()[1]}
        return dial(Dial("redis", address, Deadline(PATIENT_S)))

    yield connect
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize("refusal", ["NOSCRIPT No matching script.", "MOVED 1 127.0.0.1:7000", "ERR of this command"])
def test_the_refusal_of_one_command_is_not_why_the_connection_ended(
    answering: Callable[[bytes], Channel], refusal: str
) -> None:
    channel = answering(f"-{refusal}\r\n".encode())
    with pytest.raises(ConnectionError):
        channel.ask([packed("EVALSHA"), packed("WAIT", 1, 0)], PATIENT_S)
    channel.close()


@pytest.mark.parametrize("words", ["ERR max number of clients reached", "DENIED Redis is running in protected mode"])
def test_who_is_turned_away_is_told_why(answering: Callable[[bytes], Channel], words: str) -> None:
    channel = answering(f"-{words}\r\n".encode())
    with pytest.raises(Refusal, match=words):
        channel.ask([packed("PING"), packed("PING")], PATIENT_S)
    channel.close()
