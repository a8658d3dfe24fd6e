"""renew.lua: the leases that hold go on, and those that are lost stay lost."""

from __future__ import annotations

from rsq.broker import scripts
from tests.broker.conftest import FAR, HOUR_MS, Rig, ids


def test_renewed(rig: Rig) -> None:
    for consumer in ("alice", "bob", "carol"):
        rig.run(scripts.REGISTER, consumer, 60_000)
    carol = rig.snapshot()["consumers"]["carol"]
    with rig.span() as span:
        assert rig.run(scripts.RENEW, HOUR_MS, "alice", "bob") == []
    assert rig.snapshot() == {
        "consumers": {"alice": span.plus(HOUR_MS), "bob": span.plus(HOUR_MS), "carol": carol},
    }


def test_twice(rig: Rig) -> None:
    rig.hire("alice")
    for _ in range(2):
        with rig.span() as span:
            assert rig.run(scripts.RENEW, HOUR_MS, "alice") == []
        assert rig.snapshot() == {"consumers": {"alice": span.plus(HOUR_MS)}}


def test_fenced(rig: Rig) -> None:
    rig.hire("alice", "bob", "carol")
    rig.retire("alice")
    rig.lapse("bob")
    rig.get("carol")
    before = rig.dumps()
    assert rig.run(scripts.RENEW, HOUR_MS, "alice", "bob", "nobody") == [b"alice", b"bob", b"nobody"]
    assert rig.dumps() == before
    assert rig.snapshot() == {"consumers": {"carol": FAR}}


def test_a_lease_that_ran_out_unnoticed_goes_on(rig: Rig) -> None:
    """Whoever takes over must unregister it first: as long as it is registered, it owns what it holds."""
    rig.hire("alice", "bob")
    rig.add("a")
    rig.get("alice")
    rig.lapse("alice")
    assert rig.run(scripts.RENEW, HOUR_MS, "alice") == []
    assert rig.get("bob") == []
    assert rig.snapshot()["stream pending"] == {"a": ("alice", 1)}


def test_others_whose_lease_ran_out_are_unregistered(rig: Rig) -> None:
    """A worker may be busy for long, and idle children look at all consumers rarely."""
    rig.hire("alice", "bob")
    rig.add("a")
    rig.get("bob")
    rig.lapse("bob")
    with rig.span() as span:
        assert rig.run(scripts.RENEW, HOUR_MS, "alice") == []
    found = rig.snapshot()
    assert (found["consumers"], found["orphans"]) == ({"alice": span.plus(HOUR_MS)}, {"bob"})
    assert rig.ready() == ["a", "wake"]
    assert rig.run(scripts.RENEW, HOUR_MS, "bob") == [b"bob"]
    assert ids(rig.get("alice")) == ["a"]


def test_none(rig: Rig) -> None:
    assert rig.run(scripts.RENEW, HOUR_MS) == []
    assert rig.dumps() == {}


def test_after_a_flush(rig: Rig) -> None:
    rig.hire("alice")
    rig.redis.flushall()
    assert rig.run(scripts.RENEW, HOUR_MS, "alice") == [b"alice"]
    assert rig.dumps() == {}


def test_many(rig: Rig) -> None:
    names = [f"c{number}" for number in range(1000)]
    rig.redis.zadd(rig.keys.consumers, dict.fromkeys(names[:500], FAR))
    assert rig.run(scripts.RENEW, HOUR_MS, *names) == [name.encode() for name in names[500:]]
