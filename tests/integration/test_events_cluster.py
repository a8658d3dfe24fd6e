"""Events on a cluster: the stream on one master, its queues on others, and each is replaced once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rsq import App
from rsq.broker.source_status import sources
from tests.clusters import Cluster
from tests.helpers import wait_until
from tests.integration import event_tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals
from tests.servers import find_binary

pytestmark = pytest.mark.skipif(
    os.environ.get("RSQ_TEST_SERVER") == "redis62", reason="clusters are started with a setting that Redis 6.2 lacks"
)

STREAM, QUEUES = "{visits}", ("visits", "visits-2")

PART, USERS = 300, "abcdef"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(find_binary()) as running:
        yield running


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.url


@pytest.fixture
def app(cluster: Cluster) -> Iterator[App]:
    with event_tasks.app.configured(url=cluster.url, partitions=3, broker_timeout_s=60.0):
        yield event_tasks.app


def test_each_event_has_one_outcome_whichever_master_is_lost(
    app: App, cluster: Cluster, start_worker: StartWorker, journal: Journal
) -> None:
    located = app.client.located(QUEUES, use=True)
    assert len({queue.partition for queue in located}) == 2
    sent = 0

    def publish() -> None:
        nonlocal sent
        app.publish_many(
            STREAM,
            [{"user": USERS[number % len(USERS)], "n": str(number)} for number in range(sent, sent + PART)],
            ids=map(str, range(sent, sent + PART)),
        )
        sent += PART

    def done(queue: str) -> int:
        return totals(app, queue).counters.get("succeeded", 0)

    publish()
    for _ in range(2):
        start_worker("-Q", ",".join(QUEUES), name=event_tasks.__name__, RSQ_PARTITIONS="3")
    wait_until(lambda: all(done(queue) >= PART for queue in QUEUES), 120, "the first events")
    for tag in ("visits", located[0].keys.prefix[1:].partition("}")[0], located[1].keys.prefix[1:].partition("}")[0]):
        publish()
        cluster.fail_over(tag)
        publish()
    wait_until(lambda: all(done(queue) >= sent for queue in QUEUES), 180, "all events")
    for queue in QUEUES:
        wait_until(lambda queue=queue: settled(app, queue), 60)  # type: ignore[misc]
        counters = totals(app, queue).counters
        assert (counters["fed"], counters["succeeded"], counters.get("dead", 0)) == (sent, sent, 0)
    for word in ("visited", "counted"):
        ran = [line.split() for line in journal.lines() if line.startswith(f"{word} ")]
        assert {int(number) for _, _, number in ran} == {*range(sent)}
    for user in USERS:
        numbers = [int(line.split()[2]) for line in journal.lines() if line.startswith(f"visited {user} ")]
        assert [*dict.fromkeys(numbers)] == sorted({*numbers}), "in their order"
    with app.client.link() as link:
        assert [(each.stream, each.unread, each.problem) for each in sources(link, located)] == [(STREAM, 0, "")] * 2
    with cluster.client() as client:
        client.delete(STREAM)
