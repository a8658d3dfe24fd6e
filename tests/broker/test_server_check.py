"""What a worker says of its server at the start: here of a cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rsq.broker.connection import Endpoint, Link
from rsq.broker.server_check import check_server
from rsq.settings import Settings
from tests.clusters import WholeNode
from tests.integration.test_cluster import pytestmark  # noqa: F401
from tests.servers import find_binary

COVERAGE = "cluster-require-full-coverage is yes: one shard without a master stops all"
LATE = "cluster-node-timeout 2000: a lost master is replaced after 5 s, longer than the lease"


@pytest.fixture(scope="module")
def node() -> Iterator[WholeNode]:
    node = WholeNode(find_binary(), config={"cluster-node-timeout": "2000"})
    node.start()
    yield node
    node.close()


def said(url: str, lease_s: float) -> str:
    link = Link(Endpoint(url), 60)
    try:
        return check_server(link, Settings(url=url, lease_s=lease_s))
    finally:
        link.close()


def test_settings_that_let_one_shard_stop_all_or_outlast_a_lease_are_told(node: WholeNode) -> None:
    short, long = said(node.url, 4.0), said(node.url, 10.0)
    assert (COVERAGE in short, LATE in short) == (True, True)
    assert (COVERAGE in long, LATE in long) == (True, False)
    with node.client() as client:
        client.config_set("cluster-require-full-coverage", "no")
    assert COVERAGE not in said(node.url, 4.0)


def test_who_may_not_look_at_the_configuration_goes_on_without(node: WholeNode) -> None:
    with node.client() as client:
        client.execute_command("ACL", "SETUSER", "few", "on", ">secret", "~*", "&*", "+@all", "-config")
    text = said(node.url.replace("://", "://few:secret@"), 4.0)
    assert "cluster-node-timeout" not in text
    assert "secret" not in text
