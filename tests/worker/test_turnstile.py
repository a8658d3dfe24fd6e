"""Whose turn it is among the committers of one child."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from rsq.worker import turnstile
from rsq.worker.turnstile import Turnstile
from tests.helpers import wait_until


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Turnstile:
    """Nobody is late."""
    monkeypatch.setattr(turnstile, "LATE_S", 1000.0)
    return Turnstile()


def stands_in_line(gate: Turnstile, number: int) -> bool:
    return len(gate._line) == number


def test_one_at_a_time_in_their_order(patient: Turnstile) -> None:
    inside, most, order = 0, 0, list[int]()
    first, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with patient.turn():
            first.set()
            go_on.wait(60)

    def act(number: int) -> None:
        nonlocal inside, most
        with patient.turn():
            inside += 1
            most = max(most, inside)
            order.append(number)
            inside -= 1

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(hold)]
        assert first.wait(60)
        for number in range(5):
            done.append(pool.submit(act, number))
            wait_until(partial(stands_in_line, patient, number + 1), 60, "it to stand in line")
        go_on.set()
        for each in done:
            each.result(60)
    assert (order, most) == ([0, 1, 2, 3, 4], 1)
    with patient.turn():
        pass


def test_who_is_late_is_passed_by_and_takes_nobodys_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turnstile, "LATE_S", 0.01)
    gate = Turnstile()
    inside, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        with gate.turn():
            inside.set()
            go_on.wait(60)

    late = threading.Thread(target=hang)
    late.start()
    assert inside.wait(60)
    for _ in range(3):
        with gate.turn():
            pass
    go_on.set()
    late.join(60)
    assert not gate._taken
    assert not gate._line


def test_it_is_left_though_what_is_done_fails(patient: Turnstile) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), patient.turn():
            raise RuntimeError
