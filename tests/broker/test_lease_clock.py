"""Leases when the server was away, or when its clock jumped: nobody is late who could not renew. In simulated time."""

from __future__ import annotations

from typing import Any

import pytest

from rsq.broker import scripts
from rsq.broker.connection import Link
from rsq.broker.worker_queue import WorkerQueue
from rsq.errors import LeaseLost
from rsq.settings import Settings
from tests.broker.conftest import Rig, ids
from tests.broker.simulated import SimulatedClock

LEASE_S = 10.0
GRACE_S = 4.0


class Fleet:
    """Workers of one child each, in simulated time: who lives renews thrice in a lease, and fetches twice a second.

    Their own clock goes on steadily, whatever the server's does.
    """

    def __init__(self, rig: Rig, clock: SimulatedClock) -> None:
        self.rig = rig
        self.clock = clock
        self.leases: dict[str, float] = {}
        self._steady_ms = 0
        self._renew_at: dict[str, int] = {}

    def begin(self, *names: str, lease_s: float = LEASE_S) -> None:
        for name in names:
            self.rig.run(scripts.REGISTER, name, int(lease_s * 1000))
            self.leases[name] = lease_s
            self._renew_at[name] = self._steady_ms

    def hold(self, name: str) -> None:
        """It fetches a message of its own name."""
        self.rig.add(name)
        assert ids(self.rig.get(name, room=1)) == [name]

    def renew(self, name: str) -> bool:
        """Whether its lease still holds."""
        lease_ms = int(self.leases[name] * 1000)
        self._renew_at[name] = self._steady_ms + lease_ms // 3
        lost: list[bytes] = self.rig.run(scripts.RENEW, lease_ms, name)
        return not lost

    def live(self, seconds: float, *names: str) -> list[str]:
        """Time passes; these are alive, and none of them loses its lease. What they inherit, in order."""
        got: list[str] = []
        for _ in range(int(seconds * 2)):
            self.clock.jump(0.5)
            self._steady_ms += 500
            for name in names:
                if self._steady_ms >= self._renew_at[name]:
                    assert self.renew(name), f"{name} lost its lease though it renewed in time"
                got += ids(self.rig.get(name))
        return got

    def deadlines(self) -> dict[str, float]:
        """Seconds from now to the end of each lease, graces as the fraction of a millisecond left out."""
        scores = self.rig.redis.zrange(self.rig.keys.consumers, 0, -1, withscores=True)
        return {name.decode(): (int(score) - self.clock.now_ms) / 1000 for name, score in scores}

    def graces(self, name: str) -> float:
        return float(self.rig.redis.zscore(self.rig.keys.consumers, name)) % 1


@pytest.fixture
def clock(redis: Any, monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    return SimulatedClock(redis, monkeypatch)


@pytest.fixture
def fleet(rig: Rig, clock: SimulatedClock) -> Fleet:
    return Fleet(rig, clock)


def test_a_dead_worker_beside_a_living_one_is_replaced_within_its_lease(fleet: Fleet) -> None:
    fleet.begin("dead", "alive")
    fleet.hold("dead")
    assert fleet.live(LEASE_S - 0.5, "alive") == []
    assert fleet.live(1, "alive") == ["dead"]


@pytest.mark.parametrize("away_s", [LEASE_S * 0.9, LEASE_S, LEASE_S * 1.5, 60, 86_400])
def test_whoever_comes_back_first_fences_nobody(fleet: Fleet, clock: SimulatedClock, away_s: float) -> None:
    fleet.begin("a", "b", "c")
    for name in "abc":
        fleet.hold(name)
    clock.jump(away_s)
    assert fleet.renew("a")
    clock.jump(GRACE_S - 0.1)
    assert fleet.renew("a")
    assert fleet.rig.get("a") == []
    assert fleet.renew("b")
    assert fleet.renew("c")
    assert fleet.live(60, "a", "b", "c") == []


@pytest.mark.parametrize("first", ["fetch", "register", "renew"])
def test_whatever_the_first_word_is(fleet: Fleet, clock: SimulatedClock, first: str) -> None:
    fleet.begin("a", "b")
    fleet.hold("b")
    clock.jump(15)
    match first:
        case "fetch":
            assert fleet.rig.get("a") == []
        case "register":
            fleet.begin("new")
        case "renew":
            assert fleet.renew("a")
    for _ in range(3):
        clock.jump(1)
        assert fleet.rig.get("a") == []
    assert fleet.renew("b")


def test_who_died_while_the_server_was_away_is_replaced_after_the_grace(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("dead", "alive")
    fleet.hold("dead")
    clock.jump(15)
    assert fleet.renew("alive")
    assert fleet.live(GRACE_S - 0.5, "alive") == []
    assert fleet.live(1.5, "alive") == ["dead"]


@pytest.mark.parametrize("gap_s", [60, 3600, 7 * 86_400])
def test_what_a_sole_dead_worker_held_waits_for_the_first_living_one_and_five_seconds(
    fleet: Fleet, clock: SimulatedClock, gap_s: float
) -> None:
    fleet.begin("dead")
    fleet.hold("dead")
    clock.jump(gap_s)
    fleet.begin("alive")
    assert fleet.live(5, "alive") == ["dead"]


@pytest.mark.parametrize("jump_s", [-3600, -60, -1, 1, 60, 3600])
def test_a_clock_that_jumps_fences_nobody_who_lives_and_spares_nobody_who_is_dead(
    fleet: Fleet, clock: SimulatedClock, jump_s: float
) -> None:
    fleet.begin("dead", "a", "b")
    fleet.hold("dead")
    assert fleet.live(3, "a", "b") == []
    clock.jump(jump_s)
    assert fleet.live(12, "a", "b") == ["dead"]
    assert max(fleet.deadlines().values()) <= LEASE_S


def test_a_server_that_comes_and_goes_fences_nobody(fleet: Fleet, clock: SimulatedClock) -> None:
    """b finds it only the third time."""
    fleet.begin("a", "b")
    fleet.hold("b")
    for _ in range(2):
        clock.jump(15)
        assert fleet.renew("a")
        assert fleet.rig.get("a") == []
    clock.jump(1)
    assert fleet.renew("b")
    assert fleet.graces("b") == 0


def test_a_dead_worker_has_no_more_than_two_graces(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("alive", "dead")
    fleet.hold("dead")
    for graces in (0.25, 0.5):
        clock.jump(15)
        assert fleet.renew("alive")
        assert fleet.graces("dead") == graces
    clock.jump(15)
    assert fleet.renew("alive")
    assert ids(fleet.rig.get("alive")) == ["dead"]


def test_one_silence_is_one_grace_however_many_look(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("dead", "alive")
    clock.jump(15)
    for _ in range(10):
        fleet.rig.get("alive")
        clock.jump(0.001)
    assert (fleet.graces("dead"), fleet.graces("alive")) == (0.25, 0.25)
    assert fleet.renew("alive")
    assert (fleet.graces("dead"), fleet.graces("alive")) == (0.25, 0)


def test_the_shortest_lease_of_those_who_renew_says_what_a_silence_is(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("quick", lease_s=2)
    fleet.begin("slow", "slow-dead", lease_s=60)
    fleet.hold("slow-dead")
    # Renewed by the slow one alone now and then: by its own measure that is no silence.
    assert fleet.live(10, "quick", "slow") == []
    fleet.hold("quick")
    assert fleet.live(8, "slow") == ["quick"]
    assert fleet.live(40, "slow") == []
    assert fleet.live(6, "slow") == ["slow-dead"]
    assert fleet.live(60, "slow") == []
    assert fleet.graces("slow") == 0


def test_a_short_lease_has_a_short_grace(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("dead", "alive", lease_s=1)
    fleet.hold("dead")
    clock.jump(15)
    assert fleet.renew("alive")
    assert fleet.deadlines()["dead"] == 1


def test_a_long_lease_is_not_cut_by_a_grace(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("a", "b", lease_s=60)
    clock.jump(35)
    assert fleet.renew("a")
    assert (fleet.deadlines()["b"], fleet.graces("b")) == (25, 0)


def test_what_one_queue_hears_says_nothing_of_another(fleet: Fleet, clock: SimulatedClock, link: Link) -> None:
    """A worker on two queues renews one after the other."""
    other = WorkerQueue("other", Settings())
    fleet.begin("a", "b")
    other.register(link, "a")
    other.register(link, "b")
    clock.jump(15)
    assert fleet.renew("a")
    assert fleet.renew("b")
    assert link.run_one(other.renew_call(["a"])) == []
    assert link.run_one(other.renew_call(["b"])) == []


@pytest.mark.parametrize("heard", [None, "", "nonsense", "1 2 3"])
def test_what_was_heard_is_lost(fleet: Fleet, clock: SimulatedClock, heard: str | None) -> None:
    fleet.begin("a", "b")
    fleet.hold("b")
    clock.jump(15)
    key = f"{fleet.rig.keys.prefix}:heard"
    if heard is None:
        fleet.rig.redis.delete(key)
    else:
        fleet.rig.redis.set(key, heard)
    assert fleet.rig.get("a") == []
    assert fleet.renew("a")
    assert fleet.renew("b")
    assert fleet.rig.redis.pttl(key) > 0


def test_a_grace_is_no_way_back_for_those_who_were_unregistered(fleet: Fleet, clock: SimulatedClock) -> None:
    fleet.begin("late", "alive")
    fleet.live(LEASE_S + 1, "alive")
    clock.jump(15)
    assert fleet.renew("alive")
    assert not fleet.renew("late")
    with pytest.raises(LeaseLost):
        fleet.rig.get("late")


def test_a_thousand_consumers_have_a_grace_in_one_call(fleet: Fleet, clock: SimulatedClock) -> None:
    names = [f"c{number}" for number in range(1000)]
    fleet.begin(*names)
    clock.jump(15)
    assert fleet.renew("c0")
    assert set(fleet.deadlines().values()) == {LEASE_S, GRACE_S}
    assert fleet.rig.run(scripts.RENEW, 10_000, *names) == []
