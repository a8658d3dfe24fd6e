"""URLs: taken apart, refused where they say too little, and never shown with a password."""

from __future__ import annotations

import pytest

from rsq import App
from rsq.broker.address import plain_options, sentinel_address
from rsq.broker.connection import Endpoint
from rsq.errors import SettingsError
from rsq.url import redacted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://secret@host", "redis://***@host"),
        ("redis://:sec/ret@host", "redis://***@host"),
        ("redis://user:sec://ret@host/0", "redis://***@host/0"),
        ("redis://user:sec@ret@host/0", "redis://***@host/0"),
        ("redis://:secret@host/0?x=://y", "redis://***@host/0?***"),
        ("redis://:sec?ret@host", "redis://***"),
        ("redis://sec?ret@host", "redis://***"),
        ("redis://:sec#ret@host", "redis://***"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?***"),
        ("redis://host/0?pass=secret", "redis://host/0?***"),
        ("redis://host/0?Password=secret", "redis://host/0?***"),
        ("redis://host/0?%70assword=secret", "redis://host/0?***"),
        ("redis://host/0?password=sec@ret", "redis://***"),
        ("redis://:secret", "redis://***"),
        ("unix://:secret@/run/a.sock?db=0", "unix://***@/run/a.sock?***"),
        ("unix:///run/a.sock", "unix:///run/a.sock"),
        ("user:secret@host:6379", "***"),
        ("secret", "***"),
        (
            "redis+sentinel://user:secret@one:1,[::1]:2/shop/0?sentinel_username=w&sentinel_password=secret",
            "redis+sentinel://***@one:1,[::1]:2/shop/0?***",
        ),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "url",
    ["redis://shop:secret@host", "redis+sentinel://shop:secret@one/shop?sentinel_password=secret", "unix://:secret@/a"],
)
def test_no_representation_shows_a_password(url: str) -> None:
    app = App("a", url=url)
    assert "secret" not in repr(app.settings)
    assert "secret" not in repr(vars(app.client.endpoint).get("_sentinels"))
    if "sentinel" in url:
        assert "secret" not in repr(sentinel_address(url))
    with pytest.raises(SettingsError, match="setting url takes str, not bytes"):
        App("a", url=url.encode())  # type: ignore[arg-type]


def test_the_name_of_the_server_is_checked_unless_the_url_says_otherwise() -> None:
    assert plain_options("rediss://host")["ssl_check_hostname"] is True
    assert plain_options("rediss://host?ssl_check_hostname=false")["ssl_check_hostname"] is False
    assert plain_options("rediss://host?ssl_cert_reqs=none")["ssl_check_hostname"] is False
    address = sentinel_address("rediss+sentinel://one/shop")
    assert (address.node["ssl_check_hostname"], address.sentinel["ssl_check_hostname"]) == (True, True)
    address = sentinel_address("rediss+sentinel://one/shop?ssl_check_hostname=false")
    assert (address.node["ssl_check_hostname"], address.sentinel["ssl_check_hostname"]) == (False, False)


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
    assert address.node == {"ssl_ca_certs": "/ca", "ssl_check_hostname": True}
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
        App("a", url=url).client  # noqa: B018  # which is made here
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
def test_a_good_url_is_taken(url: str) -> None:
    Endpoint(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:secret@one:1,two:2",
        "redis+sentinel://:secret@one:1,two:2/",
        "redis+sentinel://:secret@one:port/shop",
        "redis+sentinel://:secret@one,/shop",
        "redis+sentinel://:secret@one/shop/zero",
        "redis+sentinel://:secret@one:1;two:2:3/shop",
    ],
)
def test_a_malformed_sentinel_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="<service name>") as caught:
        App("a", url=url).client  # noqa: B018  # which is made here
    assert "secret" not in str(caught.value)
