"""A real server for every test that names it, an empty one each time, and a look at what each test leaves behind.

Fixtures, from the whole run down to one test:

    server      the server of this run, empty at the start of each test; nobody stops, kills or reconfigures it
    redis       a client on it
    url         its URL
    own_server  makes servers for one test alone, for those that kill, freeze or reconfigure theirs

On a cluster the first is three masters and their replicas, and those for one test are clusters of one node each.
"""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

import hypothesis
import pytest

from tests.cluster_client import ClusterClient
from tests.clusters import Cluster, WholeNode
from tests.modes import MODES, running
from tests.servers import Server, ServerMissing, find_binary, on_cluster

MakeServer: TypeAlias = Callable[..., Server]

# What may stay in Redis without a TTL. `T:result:*`, `T:dedupe:*` and `{rsq}:worker:*` are not among it.
PERSISTENT = re.compile(
    r"""
    \{ [^{}:]+ : \d+ \} : [^:]+ : (stream (:[1-9])? | dead | delayed | messages | consumers | orphans | crashes
      | overdue | stats | sources | paused | calls | slots:.+ | taken:.+ | missing | parked:.+ | line:.+ | fired:.+)
    | \{ [^{}:]+ \} : (queues | partitions | workers | beat:.+)
    """,
    re.VERBOSE,
)

passed = pytest.StashKey[bool]()

hypothesis.settings.register_profile("rsq", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("rsq")


def pytest_configure() -> None:
    # What is ignored stays ignored in all that the tests start, as under nohup; they send these signals and mean them.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # A developer's own RSQ_URL or RSQ_APP must not reach the tests, and the tests must not reach it.
    for name in [name for name in os.environ if name.startswith("RSQ_") and not name.startswith("RSQ_TEST_")]:
        del os.environ[name]
    try:
        find_binary()
    except ServerMissing as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> str:
    binary = find_binary()
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return f"server: {'a cluster of ' * on_cluster()}{version.split(' sha=')[0]} ({binary})"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[passed] = report.passed
    return report


@pytest.fixture(scope="session")
def server() -> Iterator[Server | Cluster]:
    # On a busy machine a master must not be taken for lost: what its replica has not heard yet would be gone.
    calm = {"cluster-node-timeout": "120000"}
    with Cluster(find_binary(), None, calm, appendonly=False) if on_cluster() else Server(find_binary()) as running:
        yield running


@pytest.fixture
def redis(server: Server | Cluster) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture
def url(server: Server | Cluster) -> str:
    return server.url


@pytest.fixture
def own_server() -> Iterator[MakeServer]:
    """Call it with the keyword arguments of `Server`; what it answers runs, and is gone after the test."""
    made: list[Server] = []

    def make(**options: Any) -> Server:
        if on_cluster():
            options.pop("tcp", None)
        made.append(WholeNode(find_binary(), **options) if on_cluster() else Server(find_binary(), **options))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """How the calls of the `app` of a module run, see there."""
    with running(request.module.app, request) as mode:
        yield mode


@pytest.fixture(autouse=True)
def clean_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a test that uses `server`: all keys go before it; after it, each key expires or is one that a queue keeps.

    A test that leaves others on purpose says so: ``@pytest.mark.leaves("rsq:mine:*")``.
    """
    running = request.getfixturevalue("server") if "server" in request.fixturenames else None
    if not isinstance(running, (Server, Cluster)):  # a test module may call something else `server`
        yield
        return
    with running.client(decode_responses=True, encoding_errors="replace") as client:
        client.flushall()
        yield
        if not request.node.stash.get(passed, False):
            return
        allowed = [pattern for mark in request.node.iter_markers("leaves") for pattern in mark.args]
        leaks = [key for key in keys_without_ttl(client) if not any(fnmatch.fnmatch(key, each) for each in allowed)]
        leaks += dangling_ids(client)
    if leaks:
        pytest.fail("left in Redis for ever: " + ", ".join(sorted(leaks)), pytrace=False)


def keys_without_ttl(client: Any) -> list[str]:
    """Of all masters, where it is a client of several."""
    if isinstance(client, ClusterClient):
        return [key for each in client.masters() for key in keys_without_ttl(each)]
    keys = [key for key in client.scan_iter(count=1000) if not PERSISTENT.fullmatch(key)]
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.pttl(key)
        return [key for key, ttl_ms in zip(keys, pipe.execute(), strict=True) if ttl_ms == -1]


def dangling_ids(client: Any) -> Iterator[str]:
    """Task ids that a queue still keeps something of, though it has lost the rest."""
    for tag in {":".join(key.split(":")[:3]) for key in client.keys("{*:*}:*")}:
        messages = {*client.hkeys(f"{tag}:messages")}
        for task_id in messages ^ {*client.zrange(f"{tag}:delayed", 0, -1)}:
            yield f"{task_id} in only one of {tag}:messages and {tag}:delayed"
        kept = {
            key: {*client.hkeys(key)}
            for kind in ("crashes", "overdue", "calls", "slots:*")
            for key in client.keys(f"{tag}:{kind}")
        }
        lines = [key for kind in ("parked", "line") for key in client.keys(f"{tag}:{kind}:*")]
        kept |= {key: {*client.zrange(key, 0, -1)} for key in lines}
        if not kept:
            continue
        alive = messages.union(*(client.smembers(key) for key in client.keys(f"{tag}:taken:*")))
        for stream in client.keys(f"{tag}:stream*"):
            alive |= {fields.get("id") for _, fields in client.xrange(stream)}
        for key, task_ids in kept.items():
            for task_id in task_ids - alive:
                yield f"{task_id} in {key}, but no message of it"
