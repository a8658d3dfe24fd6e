"""The dispatcher of signals. No server."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rsq import App, SettingsError, signals
from rsq.signals import Signal


def test_handlers_are_called_in_order_with_what_was_sent() -> None:
    signal, heard = Signal("test"), []
    signal.connect(lambda sender, **rest: heard.append(("first", sender, rest)))

    @signal.connect
    def second(sender: object, **rest: Any) -> None:
        heard.append(("second", sender, rest))

    signal.send("me", number=1)
    assert heard == [("first", "me", {"number": 1}), ("second", "me", {"number": 1})]
    assert signal.disconnect(second)
    assert not signal.disconnect(second)
    signal.send("me")
    assert len(heard) == 3


def test_a_handler_may_want_one_sender() -> None:
    signal, heard = Signal("test"), []

    @signal.connect(sender="me")
    def mine(sender: object, **rest: Any) -> None:
        heard.append(sender)

    signal.connect(mine, sender="me")
    signal.send("you")
    signal.send("me")
    assert heard == ["me"]


def test_a_handler_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    signal, heard = Signal("test"), []

    @signal.connect
    def broken(**rest: Any) -> None:
        raise RuntimeError("mine")

    @signal.connect
    def leaves(**rest: Any) -> None:
        raise SystemExit(3)

    signal.connect(lambda **rest: heard.append(1))
    with caplog.at_level(logging.ERROR, "rsq.signals"):
        signal.send(None)
    assert heard == [1]
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == ["a handler of test failed"] * 2


def test_what_cannot_be_a_handler_is_refused() -> None:
    async def coroutine(**rest: Any) -> None: ...

    with pytest.raises(SettingsError, match="plain function"):
        Signal("test").connect(coroutine)
    with pytest.raises(SettingsError, match="plain function"):
        Signal("test").connect("text")  # type: ignore[call-overload]


def test_eager_calls_are_told_of_too() -> None:
    app = App("signals-eager")
    heard: list[str] = []

    @app.task(name="double", bind=True)
    def double(self: Any, number: int) -> int:
        self.progress(1, 2, half=True)
        return 2 * number

    def hear(name: str) -> Any:
        def handler(**rest: Any) -> None:
            heard.append(name)

        return handler

    handlers = [(signal, hear(signal.name)) for signal in signals.ALL]
    for signal, handler in handlers:
        signal.connect(handler)
    try:
        with app.testing.eager():
            handle = double.delay(2)
            assert handle.get() == 4
            progress = handle.progress
    finally:
        for signal, handler in handlers:
            signal.disconnect(handler)
    assert heard == ["before_publish", "task_prerun", "task_success", "task_postrun", "after_publish"]
    assert progress is not None
    assert (progress.current, progress.total, progress.info) == (1, 2, {"half": True})


def test_progress_outside_of_a_run_does_nothing() -> None:
    app = App("signals-direct")

    @app.task(name="direct", bind=True)
    def direct(self: Any) -> str:
        self.progress(1)
        return "ran"

    assert direct() == "ran"
