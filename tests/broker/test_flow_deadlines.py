"""How long a flow may go without progress, and how long its keys last."""

from __future__ import annotations

from rsq.calls.placement import Placement
from rsq.calls.plan import Node
from tests.broker.flowing import Flowing, call, chain, flowing

__all__ = ["flowing"]

DAY_MS = 86_400_000
LISTED, FLOW = "{rsq:0}::flows", "{rsq:0}::flow:f"
SLACK_MS = 3_600_000
"""For the time that a test takes."""


def left_ms(flowing: Flowing) -> tuple[float, float]:
    """Until it is ended as one without progress, and until its key goes by itself."""
    redis = flowing.rig.redis
    return redis.zscore(LISTED, "f") - flowing.rig.now_ms(), redis.pttl(FLOW)


def test_the_key_lasts_twice_as_long_as_the_flow_may_stand_still(flowing: Flowing) -> None:
    flowing.start(chain("a", "b"), expires_ms=10 * DAY_MS)
    deadline_ms, ttl_ms = left_ms(flowing)
    assert 10 * DAY_MS - SLACK_MS < deadline_ms <= 10 * DAY_MS
    assert 20 * DAY_MS - SLACK_MS < ttl_ms <= 20 * DAY_MS


def test_it_is_not_over_before_what_is_due_later(flowing: Flowing) -> None:
    later = Placement(delay_ms=40 * DAY_MS)
    flowing.start([Node(call("a"), outs=[1]), Node(call("b", placement=later), waits=1, sink=True)], expires_ms=DAY_MS)
    assert left_ms(flowing)[0] <= DAY_MS
    flowing.succeed("a")  # b counts from here
    deadline_ms, ttl_ms = left_ms(flowing)
    assert 41 * DAY_MS - SLACK_MS < deadline_ms <= 41 * DAY_MS
    assert 42 * DAY_MS - SLACK_MS < ttl_ms <= 42 * DAY_MS


def test_it_is_not_prolonged_by_each_call(flowing: Flowing) -> None:
    flowing.start(chain("a", "b", "c"), expires_ms=10 * DAY_MS)
    flowing.rig.redis.zadd(LISTED, {"f": flowing.rig.now_ms() + DAY_MS})
    flowing.succeed("a")
    flowing.succeed("b")
    assert left_ms(flowing)[0] <= DAY_MS
