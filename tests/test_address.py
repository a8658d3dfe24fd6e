"""URLs: taken apart, refused where they say too little, and never shown with a password."""

from __future__ import annotations

import pytest

from rsq import App
from rsq.broker.address import redacted, sentinel_address
from rsq.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:sec/ret@host", "redis://:***@host"),
        ("redis://:sec?ret@host", "<url>"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?password=***&db=1"),
        ("unix://:secret@/run/a.sock?db=0", "unix://:***@/run/a.sock?db=0"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("user:secret@host:6379", "user:***@host:6379"),
        (
            "redis+sentinel://user:secret@one:1,[::1]:2/shop/0?sentinel_username=w&sentinel_password=secret",
            "redis+sentinel://user:***@one:1,[::1]:2/shop/0?sentinel_username=w&sentinel_password=***",
        ),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_a_sentinel_url_is_taken_apart() -> None:
    url = "redis+sentinel://user:p%40ss@one:1,two,[::1]:3/my%20shop/2?sentinel_username=watch&sentinel_password=a%26b"
    address = sentinel_address(url)
    assert address.kind == "redis"
    assert address.sentinels == (("one", 1), ("two", 26379), ("::1", 3))
    assert address.service == "my shop"
    assert address.node == {"username": "user", "password": "p@ss", "db": 2}
    assert address.sentinel == {"username": "watch", "password": "a&b"}


def test_the_sentinels_get_no_credentials_of_the_server() -> None:
    address = sentinel_address("redis+sentinel://:secret@one/shop")
    assert address.node == {"password": "secret"}
    assert address.sentinel == {}


def test_options_of_tls_are_for_both() -> None:
    address = sentinel_address("rediss+sentinel://one/shop?ssl_ca_certs=/ca&sentinel_ssl_check_hostname=false")
    assert address.kind == "rediss"
    assert address.node == {"ssl_ca_certs": "/ca"}
    assert address.sentinel == {"ssl_ca_certs": "/ca", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://:secret@host", "it starts with redis://"),
        (":secret@host:6379", "it starts with redis://"),
        ("redis:/:secret@host", "it starts with redis://"),
        ("redis://:secret@host:99999", "its form is redis://"),
        ("redis://:secret@host:port", "its form is redis://"),
        ("redis://:sec/ret@host", "its form is redis://.*%2F"),
        ("rediss://:secret@host/shop", "its form is rediss://"),
        ("redis://:secret@host/0/1", "its form is redis://"),
        ("redis://:secret@host?db=zero", "its form is redis://"),
        ("unix://:secret@", "its form is unix://"),
        ("redis://:secret@host?colour=red", "redis:// takes no parameter 'colour'"),
        ("redis://:secret@host?ssl_ca_certs=/ca", "redis:// takes no parameter 'ssl_ca_certs'"),
        ("unix://:secret@/run/a.sock?host=b", "unix:// takes no parameter 'host'"),
        ("redis+sentinel://:secret@host/shop?ssl_ca_certs=/ca", "redis:// takes no parameter 'ssl_ca_certs'"),
    ],
)
def test_a_malformed_url_is_refused(url: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text) as caught:
        App("a", url=url).client.endpoint.connection(1)
    assert "secret" not in str(caught.value)
    assert "ret@" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p%40%2F@host",
        "redis://host/",
        "redis://[::1]:6379/15",
        "rediss://host/0?ssl_ca_certs=/ca&ssl_cert_reqs=none",
        "unix:///run/a.sock?db=3",
        "unix:///run/a b.sock",
    ],
)
def test_a_good_url_makes_a_connection(url: str) -> None:
    App("a", url=url).client.endpoint.connection(1)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:secret@one:1,two:2",
        "redis+sentinel://:secret@one:1,two:2/",
        "redis+sentinel://:secret@one:port/shop",
        "redis+sentinel://:secret@one,/shop",
        "redis+sentinel://:secret@one/shop/zero",
        "redis+sentinel://:secret@one:1;two:2:3/shop",
        "unix+sentinel://:secret@one/shop",
    ],
)
def test_a_malformed_sentinel_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="<service name>") as caught:
        App("a", url=url).client.endpoint.connection(1)
    assert "secret" not in str(caught.value)
