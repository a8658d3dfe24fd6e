"""A cluster whose nodes talk TLS: everything works there, through a failover, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rsq import App, State, every
from rsq.errors import BrokerRefused
from tests.clusters import Cluster, WholeNode
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker
from tests.integration.test_cluster import PATIENT_S, TAG, calls, pytestmark, ran_once  # noqa: F401
from tests.integration.test_deadlines import certificates
from tests.integration.test_partitions import QUEUES, THREE
from tests.servers import find_binary


@contextmanager
def skipped_without_tls() -> Iterator[None]:
    """What starts in it may be a server that was built without TLS."""
    try:
        yield
    except RuntimeError as error:
        pytest.skip(f"this server was built without TLS: {error}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    certificates(tmp_path, "localhost")
    running = Cluster(find_binary(), password="secret", certificates=tmp_path)
    with skipped_without_tls():
        running.__enter__()
    yield running
    running.close()


@pytest.fixture
def url(cluster: Cluster) -> str:
    assert cluster.url.startswith("rediss+cluster://")
    return cluster.url


def test_workers_and_producers_of_three_partitions(
    url: str, cluster: Cluster, start_worker: StartWorker, journal: Journal
) -> None:
    worker = start_worker("-Q", "a,b,c", "-B", lease=20, **THREE)
    with tasks.app.configured(url=url, broker_timeout_s=PATIENT_S, partitions=3, wait_replicas=1):
        works(tasks.app)
        tasks.app.schedules.add("often", every(seconds=1), tasks.note, ("beat",), queue="a")
        wait_until(lambda: journal.count("ran beat") >= 2, PATIENT_S, "two slots")
        tasks.app.schedules.remove("often")
        with calls("b") as accepted:
            for tag in (TAG, "rsq:1", "rsq"):
                before = len(accepted())
                wait_until(lambda: len(accepted()) > before + 5, PATIENT_S, "some calls")  # noqa: B023
                cluster.fail_over(tag)
            before = len(accepted())
            wait_until(lambda: len(accepted()) > before + 5, PATIENT_S, "calls after it")
        wait_until(lambda: set(accepted()) <= ran(journal), PATIENT_S, "all of them to run")
        journal.path.write_text("".join(f"{line}\n" for line in journal.lines() if "call-" in line))
        assert ran_once(journal, accepted())
        works(tasks.app)
        tasks.app.control.shutdown()
        assert worker.process.wait(PATIENT_S) == 0
    assert "secret" not in worker.log()


def ran(journal: Journal) -> set[str]:
    return {line.removeprefix("ran ") for line in journal.lines()}


def works(app: App) -> None:
    """Calls and their results by threads and coroutines, and the worker answers."""
    assert [tasks.add.apply_async((1, 1), queue=queue).get(timeout=PATIENT_S) for queue in QUEUES] == [2, 2, 2]

    async def awaited() -> list[Any]:
        try:
            handles = [await tasks.aadd.aapply_async((number, 1), queue=QUEUES[number % 3]) for number in range(6)]
            return list(await asyncio.gather(*(handle.aget(timeout=PATIENT_S) for handle in handles)))
        finally:
            await app.client.leave_loop()

    assert asyncio.run(awaited()) == [*range(1, 7)]
    wait_until(lambda: app.inspect().ping(), PATIENT_S, "the worker to answer")


@pytest.mark.parametrize("announced", ["localhost", ""])
def test_tls_checks_the_names_that_are_announced(announced: str, tmp_path: Path) -> None:
    """Where nodes announce addresses their certificates have to be for these."""
    certificates(tmp_path, "localhost")
    by_name = {"cluster-announce-hostname": announced, "cluster-preferred-endpoint-type": "hostname"}
    node = WholeNode(find_binary(), config=by_name if announced else {}, certificates=tmp_path)
    try:
        with skipped_without_tls():
            node.start()
        url = f"rediss+cluster://localhost:{node.peer_port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        with tasks.app.configured(url=url, broker_timeout_s=PATIENT_S if announced else 2):
            if announced:
                assert tasks.add.delay(1, 1).state is State.PENDING
            else:
                with pytest.raises(BrokerRefused, match="check the host name"):
                    tasks.add.delay(1, 1)
    finally:
        node.close()
