"""How the nodes of a cluster are found: by seeds that may be gone, under the addresses that they announce."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from rsq import State
from rsq.errors import BrokerRefused, BrokerUnavailable
from tests.clusters import Cluster, WholeNode
from tests.helpers import free_port
from tests.integration import tasks
from tests.integration.test_cluster import PATIENT_S, TAG, pytestmark  # noqa: F401
from tests.integration.test_deadlines import certificates
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


@pytest.mark.parametrize("announced", ["localhost", ""])
def test_tls_checks_the_names_that_are_announced(announced: str, tmp_path: Path) -> None:
    """Where nodes announce addresses their certificates have to be for these."""
    certificates(tmp_path, "localhost")
    port = free_port(10_000)
    files = {"tls-ca-cert-file": "ca.pem", "tls-cert-file": "localhost.pem", "tls-key-file": "localhost.key"}
    config = {
        "tls-port": str(port),
        "tls-cluster": "yes",
        "tls-auth-clients": "no",
        **{n: str(tmp_path / f) for n, f in files.items()},
    }
    if announced:
        config |= {"cluster-announce-hostname": announced, "cluster-preferred-endpoint-type": "hostname"}
    node = WholeNode(find_binary(), config=config)
    try:
        node.start()
    except RuntimeError as error:
        pytest.skip(f"this server was built without TLS: {error}")
    try:
        url = f"rediss+cluster://localhost:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        with tasks.app.configured(url=url, broker_timeout_s=PATIENT_S if announced else 2):
            if announced:
                assert tasks.add.delay(1, 1).state is State.PENDING
            else:
                with pytest.raises(BrokerRefused, match="check the host name"):
                    tasks.add.delay(1, 1)
    finally:
        node.close()


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
