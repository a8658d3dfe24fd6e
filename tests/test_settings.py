from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from rsq import App
from rsq.errors import LONGEST_S, SettingsError
from rsq.keys import QueueKeys, check_namespace, check_queue
from rsq.settings import Settings, load


def test_code_wins_over_environment_wins_over_defaults() -> None:
    environment = {"RSQ_LEASE_S": "4", "RSQ_NAMESPACE": "shop", "RSQ_ALLOW_EVICTION": "yes"}
    settings = load({"lease_s": 2, "url": None}, environment)
    assert (settings.lease_s, settings.namespace, settings.allow_eviction) == (2.0, "shop", True)
    assert settings.url == "embedded://"
    assert load({}, {}) == Settings()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"lease": 2}, "no setting is called 'lease'"),
        ({"lease_s": "2"}, "lease_s takes float"),
        ({"lease_s": 0}, "lease_s must be above 0"),
        ({"max_message_bytes": 0}, "max_message_bytes"),
        ({"dead_max_length": True}, "dead_max_length takes int"),
        ({"prefetch_ms": -1}, "prefetch_ms"),
        ({"namespace": "{x}"}, "namespace"),
        ({"default_queue": "a:b"}, "queue name"),
        ({"timezone": "Europe/Atlantis"}, "no time zone 'Europe/Atlantis'"),
        ({"timezone": "/etc/passwd"}, "no time zone '/etc/passwd'"),
        ({"url": "amqp://guest@broker"}, r"URL 'amqp://\*\*\*@broker' cannot be used: it starts with redis://"),
        ({"url": "unix+sentinel://:secret@one/shop"}, "cannot be used: it starts with redis://"),
        ({"url": "localhost:6379"}, r"URL '\*\*\*' cannot be used: it starts with redis://"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load(values, {})
    with pytest.raises(SettingsError, match=text):
        App("x", **values)  # type: ignore[arg-type]


WRONG_TIMES = [math.nan, math.inf, -math.inf, -1, 10**400, LONGEST_S * 1000 + 1]
TIMES = [field.name for field in fields(Settings) if field.name.endswith(("_s", "_ms"))]


def test_the_unit_of_a_time_stands_in_its_name() -> None:
    assert len(TIMES) == 8


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -1, 10**400, LONGEST_S * 1000 + 1], ids=lambda value: f"{str(value)[:9]}"
)
def test_no_time_is_endless_or_too_long(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name):
        load({name: value}, {})
    with pytest.raises(SettingsError, match=f"(?i){name}"):
        load({}, {f"RSQ_{name.upper()}": str(value)})


@pytest.mark.parametrize("name", TIMES)
def test_a_hundred_years_are_taken(name: str) -> None:
    longest = LONGEST_S * 1000 if name.endswith("_ms") else float(LONGEST_S)
    assert getattr(load({name: longest}, {}), name) == longest


@pytest.mark.parametrize("name", ["max_message_bytes", "dead_max_length", "max_deliveries", "wait_replicas"])
def test_no_number_is_larger_than_the_server_can_hold(name: str) -> None:
    assert getattr(load({name: 2**53}, {}), name) == 2**53
    with pytest.raises(SettingsError, match=name):
        load({name: 2**53 + 1}, {})


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_a_truth_value_of_the_environment(value: str) -> None:
    with pytest.raises(SettingsError, match="RSQ_LOG_ARGUMENTS must be true or false"):
        load({}, {"RSQ_LOG_ARGUMENTS": value})


def test_the_environment_is_read_at_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("late")
    monkeypatch.setenv("RSQ_NAMESPACE", "later")
    assert app.settings.namespace == "later"


def test_configure_changes_settings_and_drops_the_connection() -> None:
    app = App("x", url="redis://localhost:1")
    client = app.client
    app.configure(lease_s=3.0, namespace=None)
    assert app.settings.lease_s == 3.0
    assert app.client is not client


@pytest.mark.parametrize("wrong", [{"lease_s": -1.0}, {"lease": 3}, {"url": "http://x"}, {"namespace": "a b"}])
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_a_wrong_value_leaves_the_app_as_it_was(wrong: dict[str, Any], used: bool) -> None:
    app = App("x", url="redis://localhost:1", lease_s=3.0)
    client = app.client if used else None
    with pytest.raises(SettingsError):
        app.configure(**wrong)
    with pytest.raises(SettingsError), app.configured(**wrong):
        pytest.fail("it has been accepted")
    assert (app.settings.lease_s, app.settings.url) == (3.0, "redis://localhost:1")
    assert client is None or app.client is client
    app.configure(lease_s=4.0)
    assert app.settings.lease_s == 4.0


def test_all_keys_of_a_queue_share_its_hash_tag() -> None:
    keys = QueueKeys("rsq", "mail")
    names = [getattr(keys, name) for name in QueueKeys.__slots__ if name not in ("queue", "prefix")]
    names += [*keys.streams(), keys.result("x"), keys.dedupe("y")]
    assert len(set(names)) == len(names)
    assert all(name.startswith("{rsq:0}:mail:") for name in names)
    assert keys.streams()[-1] == "{rsq:0}:mail:stream"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{a}", "-a", ".a", "x" * 101, "é", None, 3])
def test_names_that_cannot_be_queues(name: object) -> None:
    with pytest.raises(SettingsError, match="queue name"):
        check_queue(name)  # type: ignore[arg-type]


def test_names_that_can() -> None:
    for name in ("default", "a", "mail.high-1_x", "9", "x" * 100):
        assert check_queue(name) == name
    assert check_namespace("a-b.c_1") == "a-b.c_1"
