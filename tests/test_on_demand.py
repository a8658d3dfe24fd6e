"""A thread that begins when it is needed, and anew when it has ended."""

from __future__ import annotations

import threading

from rsq.on_demand import OnDemand
from tests.helpers import wait_until


def test_it_begins_when_it_is_needed_and_anew_when_it_has_ended() -> None:
    ran: list[threading.Thread] = []
    go_on = threading.Event()

    def run() -> None:
        ran.append(threading.current_thread())
        go_on.wait(60)

    thread = OnDemand("on-demand")
    assert (thread.need(run), thread.need(run)) == (True, False)
    go_on.set()
    ran[0].join(60)
    assert thread.need(run)
    wait_until(lambda: len(ran) == 2)
    ran[1].join(60)
