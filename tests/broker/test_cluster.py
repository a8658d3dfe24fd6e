"""The map of a cluster's slots, and which command goes where."""

from __future__ import annotations

from pathlib import Path

import pytest

import rsq
from rsq.broker import scripts
from rsq.broker.address import cluster_address
from rsq.broker.cluster import Cluster, SlotMap, known_crash, loads_script, slot_of, tag_of
from rsq.broker.connection import Endpoint, Link, ScriptCall, running
from rsq.broker.deadline import Deadline
from rsq.broker.faults import Refusal, ScriptMissing, SlotMoved, translated
from rsq.broker.spread import BESIDE_S, MOVES, Spreading, by_tag, spreading
from rsq.broker.stragglers import Identity
from rsq.broker.waiting import Channels
from rsq.broker.wire import packed
from rsq.errors import BrokerRefused, BrokerUnavailable, SettingsError

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
    assert slots.nameless


def test_moved_is_a_new_entry_at_once() -> None:
    cluster = Cluster(cluster_address("redis+cluster://a:1"), "redis+cluster://a:1")
    cluster._slots.read(("a", 1), slots_reply((0, 16383, b"x", 7)))
    cluster.hear(f"MOVED {slot_of('rsq:0')} fe80::1:6381")
    assert cluster._slots.master(slot_of("rsq:0")) == ("fe80::1", 6381)
    assert cluster._slots.master(slot_of("rsq")) == ("x", 7)


def test_seeds_are_asked_though_masters_are_known() -> None:
    """All of these may have got other addresses since, and seconds go by with each that says nothing."""
    slots = SlotMap(SEEDS)
    slots.read(("a", 1), slots_reply((0, 99, b"x", 7), (100, 199, b"y", 8), (200, 16383, b"z", 9)))
    assert slots.nodes()[1] in SEEDS
    assert sorted(slots.nodes()) == [("a", 1), ("b", 2), ("x", 7), ("y", 8), ("z", 9)]


@pytest.mark.parametrize("host", ["", "?"])
def test_moved_without_a_host_makes_the_map_be_read_anew(host: str) -> None:
    cluster = Cluster(cluster_address("redis+cluster://a:1"), "redis+cluster://a:1")
    cluster._slots.read(("a", 1), slots_reply((0, 16383, b"x", 7)))
    cluster.hear(f"MOVED 3999 {host}:6381")
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
    requests = [packed("SADD", "{rsq}:queues", "a"), packed("WAIT", 1, 100), packed("GET", "{rsq:0}:a:x")]
    assert by_tag(requests, "rsq:0") == {"rsq:0": [2], "rsq": [0, 1]}
    assert by_tag([packed("TIME")], "rsq:0") == {"rsq:0": [0]}


def test_a_call_is_sent_before_its_queue_is_made_known() -> None:
    """Its partition is not always the home."""
    requests = [packed("SADD", "{rsq}:queues", "a"), packed("XADD", "{rsq:2}:a:stream", "*", "id", "x")]
    assert list(by_tag(requests, "rsq:0")) == ["rsq:2", "rsq"]
    requests.append(packed("GET", "{rsq:0}:a:x"))
    assert list(by_tag(requests, "rsq:0")) == ["rsq:0", "rsq:2", "rsq"]


def spread(*requests: bytes) -> Spreading[list[object]]:
    return spreading(requests, "rsq:0", Deadline(5))


def result_of(talk: Spreading[list[object]], answer: list[object]) -> list[object]:
    with pytest.raises(StopIteration) as end:
        talk.send(answer)
    found: list[object] = end.value.value
    return found


HOME, FLEET = packed("XADD", "{rsq:0}:a:stream", "*", "id", "1"), packed("SADD", "{rsq}:queues", "a")


def test_those_of_the_home_go_first_and_the_others_do_not_use_up_their_time() -> None:
    talk = spread(FLEET, HOME)
    tag, some, deadline = next(talk)
    assert (tag, some) == ("rsq:0", [HOME])
    assert deadline is not None
    assert 3 < deadline.seconds < 4  # a node that hangs is replaced, and its successor is to be asked in time
    tag, some, deadline = talk.send([b"1-0"])
    assert (tag, some) == ("rsq", [FLEET])
    assert deadline is not None
    assert deadline.seconds <= BESIDE_S
    assert result_of(talk, [1]) == [1, b"1-0"]


def test_where_one_of_two_nodes_is_away_the_other_has_answered() -> None:
    talk, away = spread(FLEET, HOME), BrokerUnavailable("away")
    next(talk)
    talk.send([b"1-0"])
    with pytest.raises(StopIteration) as end:
        talk.throw(away)
    assert end.value.value == [away, b"1-0"]


def test_where_all_nodes_are_away_it_is_raised() -> None:
    talk = spread(FLEET, HOME)
    next(talk)
    talk.throw(BrokerUnavailable("the one"))
    with pytest.raises(BrokerUnavailable, match="the one"):
        talk.throw(BrokerUnavailable("the other"))


def test_a_wait_goes_along_with_the_writes_before_it_when_they_are_elsewhere() -> None:
    barrier, wait, moved = packed("SET", "{rsq:0}:a:barrier", ""), packed("WAIT", 1, 100), SlotMoved("MOVED 1 b:2")
    talk = spread(packed("TIME"), HOME, barrier, wait)
    assert next(talk)[1] == [packed("TIME"), HOME, barrier, wait]
    assert talk.send([[b"1", b"2"], moved, moved, 1])[1] == [HOME, barrier, wait]
    assert result_of(talk, [b"1-0", b"OK", 0]) == [[b"1", b"2"], b"1-0", b"OK", 0]


def test_nobody_is_asked_for_ever() -> None:
    talk, moved = spread(HOME), SlotMoved("MOVED 1 b:2")
    next(talk)
    for _ in range(MOVES - 1):
        talk.send([moved])
    assert result_of(talk, [moved]) == [moved]


def test_scripts_are_loaded_where_they_are_missing_and_nowhere_else() -> None:
    """In the write that calls them again. A node that lacks nothing is not asked, which may be away."""
    queues = [(1, "a"), (0, "b"), (1, "c"), (2, "d")]
    calls: list[ScriptCall] = [(scripts.REGISTER, f"{{rsq:{number}}}:{name}", (name,)) for number, name in queues]
    talk, missing = running(calls, None), ScriptMissing("x answered: NOSCRIPT")
    step = next(talk)
    assert isinstance(step, tuple)
    a, _, c, d = step[0]
    load = packed("SCRIPT", "LOAD", scripts.REGISTER.source)
    step = talk.send([missing, b"done", missing, missing])
    assert step == ([load, a, c, load, d], None)
    assert by_tag([load, a, c, load, d], "rsq:0") == {"rsq:1": [0, 1, 2], "rsq:2": [3, 4]}
    why, away = BrokerRefused("NOPERM"), BrokerUnavailable("away")
    with pytest.raises(StopIteration) as end:
        talk.send([why, missing, missing, away, away])
    assert end.value.value == [why, b"done", why, away]


def test_connections_that_broke_at_a_node_are_remembered_there_though_the_map_is_in_doubt() -> None:
    endpoint = Endpoint("redis+cluster://a:1", "rsq:0")
    assert endpoint.cluster is not None
    old = endpoint.cluster.stragglers(("x", 7))
    for number in (3, 4):
        endpoint.broke(Identity(number, b"rsq-%d" % number, old))
    assert old._broken == {3: b"rsq-3", 4: b"rsq-4"}
    assert endpoint.cluster._slots._doubted


def test_scripts_that_publish_have_a_text_of_their_own_in_a_cluster() -> None:
    publish = {script.name for script in scripts.ALL if script.sharded is not script}
    assert publish == {script.name for script in scripts.ALL if "redis.call(PUBLISH" in script.source} != set()
    assert all("'SPUBLISH'" in script.sharded.source for script in scripts.ALL if script.name in publish)
    calls: list[ScriptCall] = [(script, "{rsq:0}:q", ()) for script in scripts.ALL]
    assert Endpoint("redis://a").fitting(calls) is calls
    assert [script for script, *_ in Endpoint("redis+cluster://a").fitting(calls)] == [s.sharded for s in scripts.ALL]


def test_what_ends_a_subscription_unasked_ends_its_connection() -> None:
    channels = Channels(sharded=True)
    assert channels.subscribe([b"a"]) == packed("SSUBSCRIBE", "a")
    assert channels.heard([b"ssubscribe", b"a", 1])[:2] == (b"subscribe", b"a")
    assert channels.heard([b"smessage", b"a", b"x"]) == (b"message", b"a", b"x")
    assert channels.unsubscribe([b"a"]) == packed("SUNSUBSCRIBE", "a")
    assert channels.heard([b"sunsubscribe", b"a", 0])[0] == b"unsubscribe"
    with pytest.raises(ConnectionError, match="another node serves this slot"):
        channels.heard([b"sunsubscribe", b"a", 0])


def test_nodes_before_7_0_have_no_sharded_channels() -> None:
    cluster = Cluster(cluster_address("redis+cluster://a:1"), "redis+cluster://a:1")
    for row, sharded in (([b"x", 7, b"id"], False), ([b"x", 7, b"id", []], True)):
        cluster._slots.doubt()
        cluster._slots._read_at = 0.0
        steps = cluster._master(1, Deadline(5))
        next(steps)
        next(steps)
        with pytest.raises(StopIteration):
            steps.send([[[0, 16383, row]]])
        assert cluster.sharded is sharded


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("MOVED 1 b:2", SlotMoved),
        ("ASK 1 b:2", BrokerUnavailable),
        ("TRYAGAIN Multiple keys request during rehashing of slot", BrokerUnavailable),
        ("CLUSTERDOWN Hash slot not served", BrokerUnavailable),
        ("UNBLOCKED the stream key no longer exists", BrokerUnavailable),
        ("READONLY You can't write against a read only replica.", BrokerUnavailable),
        ("ERR WAIT cannot be used with replica instances.", BrokerUnavailable),
    ],
)
def test_what_a_node_says_of_slots_is_waited_for(words: str, kind: type[BrokerUnavailable]) -> None:
    assert type(translated(Refusal(words), "redis+cluster://a:1")) is kind


@pytest.mark.parametrize("words", ["MOVED 1 b:2", "ASK 1 b:2", "CROSSSLOT Keys in request don't hash to the same slot"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_what_a_node_says_to_a_plain_url_names_the_scheme_to_write(words: str, scheme: str) -> None:
    error = translated(Refusal(words), f"{scheme}://a:1")
    assert type(error) is BrokerRefused
    assert str(error) == f"{scheme}://a:1 is a node of a cluster: its URL begins with {scheme}+cluster://"


def test_a_node_without_a_free_place_is_waited_for() -> None:
    full = Refusal("ERR max number of clients + cluster connections reached")
    assert isinstance(translated(full, "redis+cluster://a"), BrokerUnavailable)


def test_a_cluster_that_is_gone_is_told_as_any_server() -> None:
    with pytest.raises(
        BrokerUnavailable, match=r"cannot be reached \(127\.0\.0\.1:1: .*\): check that it runs, and its"
    ):
        Link(Endpoint("redis+cluster://127.0.0.1:1"), 5).call("PING")


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
