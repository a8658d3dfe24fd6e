"""The short way of what is most of flows: it comes to the same as the long one, which is what tells what is right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from rsq.broker import scripts
from rsq.broker.flow_rows import read_counts
from rsq.calls.outcome import Replaced
from rsq.calls.placement import Placement
from rsq.calls.plan import Node, Plan
from tests.broker.flowing import Flowing, call, chain, chord, flowing, group

__all__ = ["flowing"]

LONG_WAY = "local steps_only = false"


def go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts.COMPLETE
    source = script.source.replace("local steps_only = way == 'succeeded' and pages == #ARGV", LONG_WAY)
    assert source != script.source
    monkeypatch.setattr(script, "source", source)
    monkeypatch.setattr(script, "sha", hashlib.sha1(source.encode()).hexdigest())


def chains(flowing: Flowing) -> None:
    """Several at once, which stand at several steps, and end."""
    for name in "xyz":
        flowing.start(chain(*(f"{name}{n}" for n in range(4))), name, description=name)
    flowing.succeed("x0", "y0")
    flowing.succeed("x1", "z0")
    for step in range(1, 4):
        flowing.succeed(*(f"{name}{step}" for name in "xyz" if (name, step) != ("x", 1)))


def metas(flowing: Flowing) -> None:
    """What is said of the calls stays theirs: many entries of the meta, a large head of the arguments, priorities."""
    many: Any = {f"key{n}": n for n in range(15)}
    nodes = chain("a", "b", "c", "d")
    nodes[1] = Node(call("b", *range(15), root="r", **many), waits=1, takes=0, outs=[2])
    nodes[2] = Node(call("c", "own", priority=7, queue="q", headers={"x": 1}), waits=1, takes=1, outs=[3])
    nodes[3] = Node(call("d"), waits=1)
    flowing.start(nodes)
    for name in "abc":
        flowing.succeed(name)
    assert flowing.fetch() == ["d"]


def values(flowing: Flowing) -> None:
    """Empty, large and of any type."""
    for number, value in enumerate((None, "", 2**60 + 1, {"x": [1]}, "x" * 70_000, b"\xc1")):
        flowing.start(chain(f"a{number}", f"b{number}", f"c{number}"), f"f{number}")
        flowing.fetch()
        flowing.end(flowing.ok(f"a{number}", value))
    flowing.fetch()


def members(flowing: Flowing) -> None:
    """Of a chord: some in one commit, then the last one; and of a group."""
    flowing.start(chord([f"m{n}" for n in range(6)]))
    flowing.start(group(["g0", "g1", "g2"]), "g")
    flowing.succeed("m0", "m3", "g1")
    flowing.succeed("m1", "m2")
    flowing.succeed("g0", "g2", "m4")
    flowing.succeed("m5")
    flowing.succeed("body")


def chains_in_a_chord(flowing: Flowing) -> None:
    heads = [Node(call(f"a{n}"), outs=[3 + n]) for n in range(3)]
    ends = [Node(call(f"b{n}"), outs=[6], waits=1, takes=n) for n in range(3)]
    flowing.start([*heads, *ends, Node(call("body"), waits=3, takes=[3, -2], sink=True)])
    flowing.succeed("a0", "a2")
    flowing.succeed("a1", "b0")
    flowing.succeed("b1", "b2")
    flowing.succeed("body")


def a_batch(flowing: Flowing) -> None:
    """While it is open, and once it is sealed."""
    callbacks = [Node(call(f"on_{name}"), errback=True) for name in ("success", "complete", "death")]
    flowing.start(callbacks, grows=True, callbacks={"success": 0, "complete": 1, "death": 2})
    flowing.flows.add("f", "page", group([f"m{n}" for n in range(5)]))
    flowing.succeed("m0", "m1")
    flowing.flows.seal("f")
    flowing.succeed("m2", "m3")
    flowing.succeed("m4")
    flowing.fetch()


def others_among_them(flowing: Flowing) -> None:
    """Errbacks, delays, a death, keys, a join, a fan-out: each with one that is simple in the same commit."""
    scenes = {
        "errback": [
            Node(call("e0"), outs=[1], errbacks=[(2, "e0")]),
            Node(call("e1"), waits=1, takes=0),
            Node(call("e"), errback=True),
        ],
        "delayed": [Node(call("d0"), outs=[1]), Node(call("d1", placement=Placement(delay_ms=50_000)), waits=1)],
        "key": [Node(call("k0"), outs=[1]), Node(call("k1", placement=Placement(dedupe_key="k")), waits=1)],
        "join": [Node(call("j0"), outs=[1]), Node(None, outs=[2], waits=1), Node(call("j1"), waits=1, takes=[0])],
        "fan": [Node(call("o0"), outs=[1, -1]), Node(call("o1"), waits=1, takes=0), Node(call("o2"), waits=1)],
        "expires": [Node(call("x0"), outs=[1]), Node(call("x1", expires_ms=60_000), waits=1)],
        "named": [Node(call("n0"), outs=[1]), Node(call("n1"), waits=1, takes={"x": 0})],
    }
    for simple, (name, nodes) in enumerate(scenes.items(), 1):
        flowing.start(nodes, name)
        flowing.start(chain(f"s{simple}", f"t{simple}", f"u{simple}"), f"simple{simple}")
        came = flowing.fetch()
        flowing.end(*(flowing.ok(task_id, task_id) for task_id in came))
    flowing.fetch()
    flowing.end(flowing.ok("t1", 1), flowing.dead("t2"), flowing.ok("o1", 1), flowing.ok("j1", 1))


def what_stands_for_a_member(flowing: Flowing) -> None:
    """It ends in the commit of others of the same flow, which hears of it from another one."""
    flowing.start(chord([f"m{n}" for n in range(6)]))
    flowing.fetch()
    for name in ("m0", "m5"):
        flowing.rig.commit("alice", Replaced(flowing.held[name], Plan(f"for {name}", chain(f"x{name}", name)), 1))
    flowing.succeed("xm0", "xm5")
    flowing.succeed("m1", "m0", "m2")
    assert flowing.counts() == (3, 0, 4)
    flowing.succeed("m5", "m4")
    flowing.succeed("m3")
    assert flowing.fetch() == ["body"]


SCENES: dict[str, Callable[[Flowing], None]] = {
    "chains": chains,
    "what is said of calls": metas,
    "values": values,
    "members": members,
    "chains in a chord": chains_in_a_chord,
    "a batch": a_batch,
    "others among them": others_among_them,
    "what stands for a member": what_stands_for_a_member,
}


def without_times(value: Any) -> Any:
    """What `expires` was counted from is the time of the commit."""
    return {name: part for name, part in value.items() if name != "expires"} if isinstance(value, dict) else value


def seen(flowing: Flowing) -> dict[str, Any]:
    """All that is there, but for the times."""
    redis, found = flowing.rig.redis, {}
    for key in sorted(redis.scan_iter("*", count=1000)):
        kind = redis.type(key)
        if key.endswith(b":heard"):
            continue
        if kind == b"hash":
            fields = redis.hgetall(key)
            for name in (b"created", b"ended"):
                fields.pop(name, None)
            if head := fields.pop(b"head", None):
                fields[b"head"] = (read_counts(head)._replace(touched_ms=0, far_ms=0), head[47:])
            found[key] = fields
        elif kind == b"stream":
            entries = [fields for _, fields in redis.xrange(key)]
            for fields in entries:
                if meta := fields.get(b"meta"):
                    fields[b"meta"] = without_times(msgpack.unpackb(meta, strict_map_key=False))
            found[key] = sorted(entries, key=repr)
        elif kind == b"zset":
            found[key] = sorted(redis.zrange(key, 0, -1))
        elif kind == b"string":
            found[key] = redis.get(key)
        else:
            found[key] = kind
        found[b"ttl of " + key] = redis.ttl(key) > 0
    found["came"] = {task_id: (each.body, without_times(dict(each.meta))) for task_id, each in flowing.held.items()}
    return found


@pytest.mark.parametrize("name", SCENES)
def test_it_comes_to_the_same(flowing: Flowing, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    SCENES[name](flowing)
    short = seen(flowing)
    flowing.rig.redis.flushall()
    flowing.held.clear()
    flowing.rig.hire("alice")
    go_the_long_way(monkeypatch)
    SCENES[name](flowing)
    long = seen(flowing)
    assert short.keys() == long.keys()
    for key, value in long.items():
        assert short[key] == value, key


def looks_at_all(flowing: Flowing, commit: Callable[[], object]) -> bool:
    """Whether it went the long way: that asks what kind of key its list of leftovers is."""
    flowing.rig.redis.config_resetstat()
    commit()
    return "cmdstat_llen" in flowing.rig.redis.info("commandstats")


def test_most_goes_the_short_way(flowing: Flowing) -> None:
    for number in range(3):
        flowing.start(chain(f"a{number}", f"b{number}", f"c{number}"), f"f{number}")
    flowing.start(chord([f"m{n}" for n in range(5)]), "chord")
    came = flowing.fetch()
    assert not looks_at_all(
        flowing, lambda: flowing.end(*(flowing.ok(task_id, 1) for task_id in came if task_id != "m4"))
    )
    assert flowing.fetch() == ["b0", "b1", "b2"]
    assert looks_at_all(flowing, lambda: flowing.end(flowing.ok("m4", 1)))
    assert flowing.fetch() == ["body"]


def test_a_step_costs_the_server_five_commands(flowing: Flowing) -> None:
    for number in range(50):
        flowing.start(chain(f"a{number}", f"b{number}", f"c{number}"), f"f{number}")
    came = flowing.fetch()
    assert len(came) == 50
    flowing.rig.redis.config_resetstat()
    flowing.end(*(flowing.ok(task_id, 1) for task_id in came))
    stats = flowing.rig.redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    publish = "spublish" if flowing.rig.link.endpoint.sharded else "publish"
    for name in ("hmget", "hset", "xadd", "set", publish):
        assert calls.pop(name) == 50
    assert sum(calls.values()) < 25


def test_one_of_them_was_settled_before(flowing: Flowing) -> None:
    """Then all are looked at one by one: each is released once."""
    for number in range(3):
        flowing.start(chain(f"a{number}", f"b{number}"), f"f{number}")
    flowing.start(chord(["m0", "m1", "m2"]), "chord")
    flowing.fetch()
    flowing.end(flowing.ok("a1", 1), flowing.ok("m1", 1))
    assert flowing.fetch() == ["b1"]
    flowing.end(*(flowing.ok(task_id, 1) for task_id in ("a0", "a1", "a2", "m0", "m1")))
    assert sorted(flowing.fetch()) == ["b0", "b2"]
    assert flowing.counts("chord") == (2, 0, 2)
    flowing.end(flowing.ok("m2", 1))
    assert flowing.fetch() == ["body"]


@pytest.mark.parametrize("wrong", ["head", "row", "what follows"])
def test_what_cannot_be_read_is_left_to_the_long_way(flowing: Flowing, wrong: str) -> None:
    for name in ("before", "broken", "whole"):
        flowing.start(chain(f"{name}0", f"{name}1"), name)
    flowing.fetch()
    key = "{rsq:0}::flow:broken"
    flowing.rig.redis.hset(key, {"head": "head", "row": "0", "what follows": "1"}[wrong], b"\x00\x01")
    flowing.end(flowing.ok("before0", 1), flowing.ok("broken0", 1), flowing.ok("whole0", 1))
    assert sorted(flowing.fetch()) == ["before1", "whole1"]
    assert flowing.rig.redis.hexists(key, "error")
