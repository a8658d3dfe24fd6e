"""What is said of a stream with `app.stream`: no server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from rsq import App, SettingsError
from rsq.calls.retention import Retention
from rsq.streams.retain import retentions_of


def test_what_is_declared() -> None:
    app = App("shop")
    assert retentions_of(app) == []
    app.stream("user_events", retain=1000)
    app.stream("orders", retain=timedelta(days=2), retain_for=["mail"], longest_silence=60, hard=True)
    assert retentions_of(app) == [
        Retention("user_events", 1000, None),
        Retention("orders", None, 172_800_000, ("mail",), 60_000, True),
    ]
    assert [str(each) for each in retentions_of(app)] == ["1000 entries", "2 days, 0:00:00"]


def test_one_stream_is_declared_in_one_way() -> None:
    app = App("shop")
    app.stream("user_events", retain=1000)
    app.stream("user_events", retain=1000)
    with pytest.raises(SettingsError, match="two things of 'user_events'"):
        app.stream("user_events", retain=1001)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retain": -1}, "retain takes a number of entries"),
        ({"retain": 5.0}, "retain takes a number of entries"),
        ({"retain": True}, "retain takes a number of entries"),
        ({"retain": timedelta(0)}, "retain must be above 0 seconds"),
        ({"retain": 1, "retain_for": []}, "retain_for takes a list of groups"),
        ({"retain": 1, "retain_for": "mail"}, "retain_for takes a list of groups"),
        ({"retain": 1, "retain_for": [5]}, "retain_for takes a list of groups"),
        ({"retain": 1, "longest_silence": 0}, "longest_silence must be above 0"),
        ({"retain": 1, "hard": 1}, "hard takes bool"),
    ],
)
def test_a_mistake_is_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        App("shop").stream("user_events", **given)


def test_a_stream_has_a_name() -> None:
    with pytest.raises(SettingsError, match="1 to 500 characters"):
        App("shop").stream("", retain=1)
