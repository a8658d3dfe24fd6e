"""How the nodes of a cluster are found: by seeds that may be gone, under the addresses that they announce."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from rsq import State
from rsq.errors import BrokerRefused, BrokerUnavailable
from tests.clusters import Cluster
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled
from tests.integration.test_cluster import PATIENT_S, TAG, calls, pytestmark, ran_once  # noqa: F401
from tests.servers import Server, find_binary

QUEUES = ("a", "b", "c")
"""In partitions of their own, on three masters."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(find_binary(), appendonly=False) as running:
        yield running


def send_everywhere(url: str) -> None:
    with tasks.app.configured(url=url, broker_timeout_s=PATIENT_S, partitions=len(QUEUES)):
        for queue in QUEUES:
            assert tasks.add.apply_async((1, 1), queue=queue).state is State.PENDING


@pytest.mark.parametrize(
    ("config", "seeds"),
    [
        ({"cluster-announce-hostname": "localhost", "cluster-preferred-endpoint-type": "hostname"}, "127.0.0.1"),
        ({"cluster-preferred-endpoint-type": "unknown-endpoint"}, "localhost"),
        ({"bind": "127.0.0.1 ::1", "cluster-announce-ip": "::1"}, "[::1]"),
    ],
    ids=["host names", "the address that was asked", "IPv6"],
)
def test_nodes_are_met_where_they_say(config: dict[str, str], seeds: str) -> None:
    with Cluster(find_binary(), config=config, appendonly=False) as cluster:
        send_everywhere("redis+cluster://" + ",".join(f"{seeds}:{node.port}" for node in cluster.nodes))


def test_nodes_without_the_name_that_they_are_to_go_by_are_told() -> None:
    config = {"cluster-preferred-endpoint-type": "hostname"}
    with Cluster(find_binary(), config=config, appendonly=False) as cluster:
        said = pytest.raises(BrokerUnavailable, match="give each its cluster-announce-hostname")
        with tasks.app.configured(url=cluster.url, broker_timeout_s=2), said:
            tasks.add.delay(1, 1)


def test_one_node_of_the_url_is_enough(cluster: Cluster) -> None:
    alive = cluster.master(TAG)
    with tasks.app.configured(url=f"redis+cluster://127.0.0.1:1,127.0.0.1:{alive.port}"):
        assert tasks.add.delay(1, 1).state is State.PENDING


def test_a_password(cluster: Cluster) -> None:
    with Cluster(find_binary(), password="pass word") as cluster, tasks.app.configured(url=cluster.url):
        assert tasks.add.delay(1, 1).state is State.PENDING


@pytest.mark.parametrize("credentials", ["few:word", "few:wrong"])
def test_what_waiting_does_not_mend_is_refused_at_once(cluster: Cluster, credentials: str) -> None:
    """One node of the URL is gone, and none of the others tells who serves."""
    for node in cluster.nodes:
        cluster.ask(node, "ACL", "SETUSER", "few", "on", ">word", "~*", "&*", "+@all", "-cluster")
    url = cluster.url.replace("://", f"://{credentials}@127.0.0.1:1,")
    words = "refused the credentials" if "wrong" in credentials else "denies a command that rsq needs"
    began = monotonic()
    with tasks.app.configured(url=url, broker_timeout_s=PATIENT_S), pytest.raises(BrokerRefused, match=words):
        tasks.add.delay(1, 1)
    assert monotonic() - began < PATIENT_S / 2


def test_a_node_of_a_cluster_behind_a_plain_url(cluster: Cluster) -> None:
    for node in cluster.nodes[:3]:
        with tasks.app.configured(url=node.url, namespace="elsewhere"):
            try:
                tasks.add.delay(1, 1)
            except BrokerRefused as refused:
                assert "is a node of a cluster: its URL begins with redis+cluster://" in str(refused)
    done = subprocess.run(
        [sys.executable, "-m", "rsq", "-A", "tests.integration.tasks", "--url", cluster.nodes[0].url, "worker"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode != 0
    assert "is a node of a cluster: its URL begins with redis+cluster://" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plain_server_behind_the_url_of_a_cluster() -> None:
    refused = pytest.raises(BrokerRefused, match="is no cluster: its URL begins with redis://")
    with (
        Server(find_binary(), tcp=True) as plain,
        tasks.app.configured(url=f"redis+cluster://127.0.0.1:{plain.port}"),
        refused,
    ):
        tasks.add.delay(1, 1)


# -- all nodes get other addresses

RESOLVER = """
import socket

look_up = socket.getaddrinfo

def getaddrinfo(host, port, *rest, **more):
    if host == "nodes.test":
        with open({path!r}) as lines:
            host = dict(line.split() for line in lines)[str(port)]
    return look_up(host, port, *rest, **more)

socket.getaddrinfo = getaddrinfo
"""
"""A name server that knows ``nodes.test``; at which address it is for a port stands in a file."""


class Names:
    """What the seeds' name leads to, here and in workers, which need `path`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._zone = directory / "zone"
        code = RESOLVER.format(path=str(self._zone))
        (directory / "sitecustomize.py").write_text(code)
        self.path = os.pathsep.join([str(directory), *filter(None, sys.path)])
        monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)  # so that it is put back at the end
        exec(code, {})

    def tell(self, cluster: Cluster) -> None:
        fresh = self._zone.with_suffix(".new")
        fresh.write_text("".join(f"{node.port} {node.host}\n" for node in cluster.nodes))
        fresh.replace(self._zone)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(tmp_path, monkeypatch)


@pytest.mark.timeout(300)
def test_nodes_that_all_get_other_addresses_are_found_by_the_name_of_the_seeds(
    names: Names, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    """Who was connected has only that name to go by. What answers at an old address is silent, as nobody there is."""
    config = {"cluster-require-full-coverage": "no"}
    with Cluster(find_binary(), config=config) as cluster, ExitStack() as stack:
        names.tell(cluster)
        old = [(node.host, node.port) for node in cluster.nodes]
        url = "redis+cluster://" + ",".join(f"nodes.test:{node.port}" for node in cluster.nodes)
        start_worker(worker_url=url, lease=5, PYTHONPATH=names.path)
        stack.enter_context(tasks.app.configured(url=url, broker_timeout_s=PATIENT_S))
        gate = tmp_path / "gate"
        handle = tasks.gate.delay(str(gate))
        wait_until(lambda: journal.count("began gate"), PATIENT_S, "it to begin")

        async def awaited() -> Any:
            try:
                return await handle.aget()
            finally:
                await tasks.app.client.leave_loop()

        with ThreadPoolExecutor(2) as threads:
            got = [threads.submit(handle.get), threads.submit(asyncio.run, awaited())]
            with calls() as accepted:
                wait_until(lambda: len(accepted()) > 20, PATIENT_S, "some calls")
                cluster.relocate([f"127.0.1.{number + 1}" for number in range(6)])
                for place in old:
                    stack.enter_context(socket.create_server(place))
                names.tell(cluster)
                before = len(accepted())
                wait_until(lambda: len(accepted()) > before + 20, PATIENT_S, "calls after it")
            gate.touch()
            assert [each.result(PATIENT_S) for each in got] == ["gate", "gate"]
        assert journal.count("began gate") == 1
        journal.path.write_text("\n".join(line for line in journal.lines() if "gate" not in line) + "\n")
        wait_until(lambda: ran_once(journal, accepted()), PATIENT_S, "all of them to run")
        wait_until(lambda: settled(tasks.app), PATIENT_S, "the last outcome")
        assert tasks.app.inspect().ping()
