"""What one script does for flows does not grow with them; and what cannot be read holds nobody up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.client import Client
from rsq.broker.flow_pages import Pages
from rsq.broker.worker_queue import MEMBERS_PAGE
from rsq.calls.plan import Node, Plan
from rsq.errors import BrokerError, BrokerUnavailable, FlowGone, MessageTooLarge, QueueFull, QueuePaused, SettingsError
from rsq.settings import Settings
from tests.broker.conftest import MIB, completed
from tests.broker.flowing import Flowing, call, chain, chord, flowing, group

__all__ = ["flowing"]

from rsq.calls.placement import Placement
from tests.broker.test_half_done import differences


def commands(flowing: Flowing, act: Callable[[], object]) -> int:
    """How many commands the server carries out for it, those of scripts among them."""
    before = flowing.rig.redis.info("stats")["total_commands_processed"]
    calls = sum(each["calls"] for each in flowing.rig.redis.info("commandstats").values())
    act()
    assert flowing.rig.redis.info("stats")["total_commands_processed"] > before
    return int(sum(each["calls"] for each in flowing.rig.redis.info("commandstats").values()) - calls)


def start_whole(flowing: Flowing, nodes: list[Node]) -> None:
    """Without the help of the one who starts it."""
    for page in Pages(Plan("f", nodes), flowing.client.settings):
        flowing.rig.run(scripts.FLOW, "f", *page)


@pytest.mark.parametrize("size", [1000, 5000])
def test_a_fan_out_to_many(flowing: Flowing, size: int) -> None:
    start_whole(
        flowing, [Node(call("a"), outs=[1, 1 - size]), *(Node(call(f"b{n}"), waits=1, takes=0) for n in range(size))]
    )
    flowing.fetch()
    assert commands(flowing, lambda: flowing.end(flowing.ok("a", "x"))) < 6000
    assert len(flowing.fetch()) == 200
    assert flowing.args("b0") == ["x"]
    go_on = flowing.rig.queue.go_on_call()
    assert commands(flowing, lambda: flowing.rig.link.run_one(go_on)) < 6000
    assert len(flowing.fetch()) == 200
    flowing.go_on()
    came: list[str] = []
    while more := flowing.fetch():
        came += more
    assert len(came) == size - 400
    assert flowing.args(came[-1]) == ["x"]


def test_large_values_are_released_a_few_at_a_time(flowing: Flowing) -> None:
    start_whole(flowing, [Node(call("a"), outs=[1, -99]), *(Node(call(f"b{n}"), waits=1, takes=0) for n in range(100))])
    flowing.fetch()
    flowing.end(flowing.ok("a", "x" * 60_000))
    assert len(flowing.fetch()) == 9
    flowing.go_on()
    while flowing.fetch():
        pass
    assert len(flowing.held) == 101


def test_the_error_of_a_long_chain_is_kept_once(flowing: Flowing) -> None:
    start_whole(flowing, chain(*(f"c{n}" for n in range(2000))))
    flowing.fetch()
    flowing.end(flowing.dead("c0", ValueError("x" * 20_000)))
    state, message = flowing.result("c1999")
    assert state == "FAILURE", "the last one is told first"
    assert message.startswith("xxxx")
    flowing.go_on()
    assert flowing.counts() == (0, 2000, 0)
    assert flowing.rig.redis.memory_usage("{rsq:0}::flow:f", samples=0) < 800_000
    assert flowing.flows.outcome("f", 1000) == flowing.flows.outcome("f", 0)


def test_many_errbacks_are_released_a_few_at_a_time(flowing: Flowing) -> None:
    """Two hundred of each node, and each of them once, whoever is sent again."""
    first, others = [(n, f"b{n}") for n in range(2, 202)], [(n, "") for n in range(102, 302)]
    flowing.start(
        [
            Node(call("a"), errbacks=first, sink=True),
            Node(call("b"), errbacks=others, sink=True),
            *(Node(call(f"e{n}"), errback=True) for n in range(2, 302)),
        ]
    )
    flowing.fetch()
    flowing.end(flowing.dead("a"), flowing.dead("b"))
    came = flowing.fetch()
    assert len(came) == 200
    flowing.end(*(flowing.ok(task_id) for task_id in came))
    assert flowing.go_on() > 0
    came += flowing.fetch()
    assert sorted(came) == sorted(f"e{n}" for n in range(2, 302))
    assert flowing.held["e2"].meta["flow"] == ["f", 2, "0 b2 q tests.task"]
    assert flowing.held["e301"].meta["flow"] == ["f", 301]


def test_as_many_outcomes_at_once_as_there_can_be(flowing: Flowing) -> None:
    """Of flows of their own: the dearest commit that there is."""
    number_of = MEMBERS_PAGE
    for number in range(number_of):
        flowing.start(chain(f"a{number}", f"b{number}"), f"f{number}")
    came = flowing.fetch()
    assert len(came) == number_of
    assert commands(flowing, lambda: flowing.end(*(flowing.ok(task_id) for task_id in came))) < number_of * 12
    assert len(flowing.fetch()) == number_of


def test_a_waiting_call_takes_little(flowing: Flowing) -> None:
    before = flowing.rig.redis.info("memory")["used_memory"]
    start_whole(flowing, chain(*(f"{n:032x}" for n in range(10_000))))
    assert (flowing.rig.redis.info("memory")["used_memory"] - before) / 10_000 < 500


def test_a_value_that_is_too_large_to_come_along(flowing: Flowing) -> None:
    flowing.start(chain("a", "b"))
    flowing.fetch()
    flowing.end(flowing.ok("a", "x" * 70_000))
    assert flowing.fetch() == ["b"]
    delivery = flowing.held["b"]
    assert delivery.meta["flow"] == ["f", 1, 0]
    assert [*flowing.rig.queue.flow_values(flowing.rig.link, delivery)] == [0]


def test_values_that_are_too_large_together(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b", "c"]))
    flowing.fetch()
    flowing.end(*(flowing.ok(task_id, "x" * (MIB // 2)) for task_id in "abc"))
    flowing.go_on()
    flowing.fetch()
    with pytest.raises(MessageTooLarge, match=r"tests.task\[body\] takes 3 values of flow f"):
        flowing.rig.queue.flow_values(flowing.rig.link, flowing.held["body"])


def test_values_that_are_gone(flowing: Flowing) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.succeed("a", "b")
    flowing.fetch()
    flowing.flows.drop("f")
    with pytest.raises(FlowGone, match="node 0 of flow f, which is not kept"):
        flowing.rig.queue.flow_values(flowing.rig.link, flowing.held["body"])


@pytest.mark.parametrize("number", [15, 16, 65_535, 65_536, 0])
def test_the_value_comes_first(flowing: Flowing, number: int) -> None:
    flowing.start([Node(call("a"), outs=[1]), Node(call("b", *range(number), queue="q"), waits=1, takes=0, sink=True)])
    flowing.fetch()
    flowing.end(flowing.ok("a", {}))
    flowing.fetch()
    assert flowing.args("b") == [{}, *range(number)]


@pytest.mark.parametrize("entries", [0, 1, 13, 14, 15, 16, 300])
def test_meta_of_any_size(flowing: Flowing, entries: int) -> None:
    meta: Any = {f"of somebody else {n}": n for n in range(entries)}
    flowing.start([Node(call("a", expires_ms=60_000, **meta), sink=True)])
    flowing.fetch()
    found = dict(flowing.held["a"].meta)
    assert next(iter(found)) == "flow"
    assert found.pop("flow") == ["f", 0]
    assert 0 < found.pop("expires") - flowing.rig.now_ms() <= 60_000
    assert found == meta


def test_a_delay_counts_from_the_release(flowing: Flowing) -> None:
    flowing.start(
        [
            Node(call("a"), outs=[1, -1]),
            Node(call("b", placement=Placement(delay_ms=60_000)), waits=1),
            Node(call("c", placement=Placement(eta_ms=4_000_000_000_000)), waits=1),
        ]
    )
    flowing.fetch()
    with flowing.rig.span() as span:
        flowing.end(flowing.ok("a"))
    due = dict(flowing.rig.redis.zrange(flowing.rig.keys.delayed, 0, -1, withscores=True))
    assert due == {b"b": span.plus(60_000), b"c": 4_000_000_000_000}
    assert flowing.rig.redis.pttl("{rsq:0}::flow:f") > 4_000_000_000_000 - flowing.rig.now_ms()


def test_several_queues(flowing: Flowing) -> None:
    """With urgent ones among them."""
    flowing.start([Node(call("a"), outs=[1]), Node(call("b", queue="other", priority=7), waits=1, sink=True)])
    flowing.succeed("a")
    assert flowing.rig.redis.xlen("{rsq:0}:other:stream:7") == 1
    assert flowing.rig.redis.sismember("{rsq}:queues", "other")


def test_queues_of_several_partitions(redis: Any, url: str) -> None:
    client = Client(Settings(url=url, partitions=3))
    try:
        home, *others = client.located(["default", "a", "b", "c"], use=True)
        far = next(queue for queue in others if queue.partition != home.partition)
        near = [queue.name for queue in (home, *others) if queue.partition == home.partition]
        with pytest.raises(SettingsError, match=f"queue '{far.name}' in partition {far.partition}, and flows lie with"):
            client.flows.start(Plan("f", [Node(call("x", queue=far.name))]))
        client.flows.start(Plan("g", [Node(call("x", queue=name)) for name in near]))
        assert client.flows.look("f") is None
        assert client.flows.look("g") is not None
    finally:
        client.close()
        redis.flushall()


class TestAdmission:
    def test_a_full_queue(self, flowing: Flowing) -> None:
        flowing.rig.add("x", "y")
        most = Placement(max_length=3)
        with pytest.raises(QueueFull, match="queue 'q' holds 2 messages"):
            flowing.start([Node(call(task_id, placement=most)) for task_id in "ab"])
        assert flowing.flow_keys() == set()
        flowing.start([Node(call("a", placement=most), outs=[1]), Node(call("b", placement=most), waits=1)])
        flowing.fetch()
        flowing.rig.add("z", "z2")
        flowing.end(flowing.ok("a"))
        assert "b" in flowing.fetch(), "a release is never refused"

    def test_a_queue_that_refuses(self, flowing: Flowing) -> None:
        flowing.rig.redis.set("{rsq:0}:other:paused", "refuse")
        with pytest.raises(QueuePaused, match="queue 'other' is paused and refuses"):
            flowing.start([Node(call("a"), outs=[1]), Node(call("b", queue="other"), waits=1)])
        assert flowing.flow_keys() == set()
        assert flowing.fetch() == []
        flowing.rig.redis.delete("{rsq:0}:other:paused")

    def test_bookkeeping_goes_on_in_a_paused_queue(self, flowing: Flowing) -> None:
        start_whole(flowing, group(f"m{n}" for n in range(300)))
        flowing.rig.redis.set(flowing.rig.keys.paused, "pause")
        fetched = flowing.rig.fetch("alice")
        assert fetched.paused
        assert fetched.unfinished
        flowing.go_on()
        assert flowing.rig.redis.xlen(flowing.rig.keys.stream()) >= 300


class TestStarting:
    def test_pages_that_are_lost(self, flowing: Flowing) -> None:
        nodes = group(f"m{n}" for n in range(2500))
        first, *others = Pages(Plan("f", nodes), flowing.client.settings)
        assert len(others) == 2
        assert flowing.rig.run(scripts.FLOW, "f", *first) == [b"stored"]
        assert 0 < flowing.rig.redis.pttl("{rsq:0}::flow:f") <= 60_000
        assert flowing.rig.run(scripts.FLOW, "f", *others[1]) == [b"missing"]
        assert flowing.flow_keys() == set()

    def test_an_iterator_that_cannot_be_sent_twice(self, flowing: Flowing, monkeypatch: pytest.MonkeyPatch) -> None:
        def nodes() -> object:
            for number in range(2500):
                if number == 2400:
                    flowing.rig.redis.delete("{rsq:0}::flow:f")
                yield Node(call(f"m{number}"))

        with pytest.raises(BrokerUnavailable, match="the server has lost its first pages"):
            flowing.start(nodes())  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "node",
        [
            Node(call("a"), policy="never"),
            Node(call("a"), errbacks=[(1, "a")] * 201),
            Node(call("a"), outs=[*range(1, 4000, 2)]),
        ],
    )
    def test_a_plan_that_is_none(self, flowing: Flowing, node: Node) -> None:
        with pytest.raises(SettingsError, match="node 0 of flow f has the policy"):
            flowing.start([node])
        assert flowing.flow_keys() == set()


KEYS = ("flow:f", "flows", "todo")
"""All keys of a flow: each of them is of another kind once."""


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_kind_stops_nobody_else(flowing: Flowing, key: str) -> None:
    """The other outcome of the same commit is written whole; of the flow nothing is done by halves."""
    flowing.start(chord(["a", "b"]))
    flowing.rig.add("plain")
    flowing.start(chain("c", "d"), "g")
    flowing.fetch()
    flowing.rig.redis.delete(f"{{rsq:0}}::{key}")
    flowing.rig.redis.lpush(f"{{rsq:0}}::{key}", "x") if key != "todo" else flowing.rig.redis.set("{rsq:0}::todo", "x")
    before = flowing.rig.dumps()
    try:
        flowing.end(flowing.ok("a"), flowing.ok("c"), completed(flowing.held["plain"]))
    except BrokerError:
        assert key in ("flows", "todo"), "what all flows share"
        mine = {key for key in differences(before, flowing.rig.dumps()) if b"::" in key}
        assert mine == set()
    else:
        assert flowing.fetch() == ["d"]
        assert flowing.result("a") is not None
    flowing.rig.redis.flushall()


@pytest.mark.parametrize("field", ["head", "1", "2", "2n"])
def test_a_node_that_cannot_be_read_ends_its_flow_by_name(flowing: Flowing, field: str) -> None:
    flowing.start(chord(["a", "b"]))
    flowing.start(chain("c", "d"), "g")
    flowing.fetch()
    flowing.end(flowing.ok("a"))
    flowing.rig.redis.hset("{rsq:0}::flow:f", field, "\xc1")
    flowing.end(flowing.ok("b"), flowing.ok("c"))
    assert flowing.fetch() == ["d"]
    assert flowing.result("b") is not None
    assert flowing.state() == "failed"
    assert b"cannot be read" in flowing.rig.redis.hget("{rsq:0}::flow:f", "error")


@pytest.mark.parametrize("number", [2, 2**32 - 1, 999_999])
def test_a_number_beyond_the_flow(flowing: Flowing, number: int) -> None:
    """A bit at the end would cost the server 512 MB."""
    flowing.start(group(["a", "b"]))
    flowing.fetch()
    flowing.held["a"].meta = {"flow": ["f", number]}
    before = flowing.rig.dumps()
    flowing.end(flowing.ok("a"))
    changed = {key for key in differences(before, flowing.rig.dumps()) if b"::flow" in key}
    assert changed <= {b"{rsq:0}::flow:f"}
    assert flowing.counts() == (0, 0, 2)
