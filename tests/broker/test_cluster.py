"""The map of a cluster's slots, and which command goes where."""

from __future__ import annotations

from pathlib import Path

import pytest

import rsq
from rsq.broker.address import cluster_address
from rsq.broker.cluster import Cluster, SlotMap, known_crash, loads_script, slot_of, tag_of
from rsq.broker.connection import Endpoint
from rsq.broker.wire import packed
from rsq.errors import SettingsError

SEEDS = (("a", 1), ("b", 2))


def slots_reply(*ranges: tuple[int, int, bytes, int]) -> list[list[object]]:
    return [[first, last, [host, port, b"id"], [b"replica", 9, b"id"]] for first, last, host, port in ranges]


# -- the map


def test_slots_are_those_of_redis() -> None:
    # CLUSTER KEYSLOT of these, as Redis 7.0 gives them.
    assert (slot_of("foo"), slot_of("123456789")) == (12182, 12739)


def test_nothing_is_known_before_the_map_was_read() -> None:
    slots = SlotMap(SEEDS)
    assert slots.master(1) is None
    assert sorted(slots.nodes()) == [("a", 1), ("b", 2)]


def test_masters_by_slot() -> None:
    slots = SlotMap(SEEDS)
    slots.read(("a", 1), slots_reply((0, 99, b"x", 7), (100, 16383, b"y", 8)))
    assert (slots.master(99), slots.master(100)) == (("x", 7), ("y", 8))


def test_a_node_that_does_not_know_its_address_means_the_one_that_was_asked() -> None:
    slots = SlotMap(SEEDS)
    slots.read(("a", 1), slots_reply((0, 16383, b"", 7)))
    assert slots.master(5) == ("a", 7)


def test_a_node_without_a_host_name_is_left_out() -> None:
    slots = SlotMap(SEEDS)
    slots.read(("a", 1), slots_reply((0, 16383, b"?", 7)))
    assert slots.master(5) is None


def test_moved_is_a_new_entry_at_once() -> None:
    cluster = Cluster(cluster_address("redis+cluster://a:1"), "redis+cluster://a:1")
    cluster._slots.read(("a", 1), slots_reply((0, 16383, b"x", 7)))
    cluster.hear(f"MOVED {slot_of('rsq:0')} fe80::1:6381")
    assert cluster.place_of("rsq:0") == ("fe80::1", 6381)
    assert cluster.place_of("rsq") == ("x", 7)


def test_moved_without_a_host_makes_the_map_be_read_anew() -> None:
    cluster = Cluster(cluster_address("redis+cluster://a:1"), "redis+cluster://a:1")
    cluster._slots.read(("a", 1), slots_reply((0, 16383, b"x", 7)))
    cluster.hear("MOVED 3999 :6381")
    assert cluster._slots._doubted


# -- which command goes where


@pytest.mark.parametrize(
    ("command", "tag"),
    [
        (("XADD", "{rsq:0}:mail:stream", "*", "body", "{other}"), "rsq:0"),
        (("EVALSHA", "abc", 1, "{shop:0}:mail", "{x}"), "shop:0"),
        (("SADD", "{rsq}:queues", "mail"), "rsq"),
        (("XREADGROUP", "GROUP", "rsq", "me.1", "STREAMS", "{rsq:0}:a:stream", "{rsq:0}:b:stream", ">", ">"), "rsq:0"),
        (("TIME",), None),
        (("SCRIPT", "LOAD", "return {1}"), None),
    ],
)
def test_the_tag_of_a_command(command: tuple[str | int, ...], tag: str | None) -> None:
    assert tag_of(packed(*command)) == tag


def test_scripts_are_for_each_node() -> None:
    assert loads_script(packed("SCRIPT", "LOAD", "return 1"))
    assert not loads_script(packed("SCRIPT", "EXISTS", "abc"))


def test_a_command_without_a_key_goes_with_the_one_before_it() -> None:
    endpoint = Endpoint("redis+cluster://a:1", "rsq:0")
    requests = [packed("SADD", "{rsq}:queues", "a"), packed("WAIT", 1, 100), packed("GET", "{rsq:0}:a:x")]
    assert endpoint.by_tag(requests) == {"rsq": [0, 1], "rsq:0": [2]}
    assert endpoint.by_tag([packed("TIME")]) == {"rsq:0": [0]}


def test_nobody_ever_says_asking() -> None:
    sources = [path.read_text() for path in Path(rsq.__file__).parent.rglob("*.py")]
    assert not any('"ASKING"' in source for source in sources)


# -- addresses


def test_an_address() -> None:
    address = cluster_address("rediss+cluster://me:pass@one,[fe80::1]:7000,three:7001?socket_timeout=1")
    assert (address.kind, address.seeds) == ("rediss", (("one", 6379), ("fe80::1", 7000), ("three", 7001)))
    assert (address.node["username"], address.node["password"]) == ("me", "pass")
    assert "pass" not in repr(address)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://", "has the form"),
        ("redis+cluster://a,,b", "has the form"),
        ("redis+cluster://a:1/2", "has the form"),
        ("redis+cluster://a?db=3", "no numbered databases"),
        ("redis+cluster://a?colour=red", "takes no parameter"),
    ],
)
def test_addresses_that_cannot_be_used(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        cluster_address(url)


# -- servers with known crashes


@pytest.mark.parametrize(
    ("server", "version", "mended"),
    [
        ("redis", "7.2.0", "7.2.7"),
        ("redis", "7.2.6", "7.2.7"),
        ("redis", "7.2.7", ""),
        ("redis", "7.0.15", ""),
        ("redis", "8.0.0", ""),
        ("valkey", "7.2.5", "7.2.6"),
        ("valkey", "7.2.6", ""),
        ("valkey", "9.1.2", ""),
        ("dragonfly", "7.2.1", ""),
        ("redis", "?", ""),
    ],
)
def test_servers_that_crash_when_slots_move(server: str, version: str, mended: str) -> None:
    assert (f"update to {mended}" in known_crash(server, version)) if mended else known_crash(server, version) == ""
