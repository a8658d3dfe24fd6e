"""What a cluster costs: sends, drains and idle workers, by one lane and by three, and its servers, against one server.

Where a figure has a floor here, that is the same by rsq on one server, or by one lane, in the same run.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tempfile import TemporaryDirectory
from typing import Any

from rsq.bench.report import Sample
from rsq.bench.rig import Rig, cpu_s, free_ports
from rsq.bench.scenarios import Samples
from rsq.bench.tasks import add, add_quietly, app, mark
from rsq.broker.connection import Endpoint, Link
from rsq.broker.deadline import Deadline
from rsq.broker.reads import signs
from rsq.broker.wire import packed
from rsq.broker.worker_queue import WorkerQueue
from rsq.calls.message import new_id
from rsq.errors import BrokerUnavailable
from rsq.keys import GROUP

MASTERS = 3
SLOTS = 16384
BUS = 10_000
"""Nodes talk to each other on a port so far above."""

QUEUES = ("default", "second", "third")
"""In as many partitions, on three masters."""

SENDS, TASKS, WARM_UP = 5000, 30_000, 3000
ROUNDS = 5
IDLE_S = 10.0
WAITING, WAITED_FOR = 500, 10
"""Connections that wait, and queues for which they do."""
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Drained:
    """What working off came to: tasks a second, and microseconds a task of the worker, of all servers, and of all but
    the busiest one."""

    per_s: float
    worker_us: float
    server_us: float
    others_us: float


class Nodes:
    """The masters of a cluster, without replicas. A context manager."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._stack = ExitStack()
        self._links: list[Link] = []

    def __enter__(self) -> Nodes:
        with ExitStack() as stack:
            home = Path(stack.enter_context(TemporaryDirectory(prefix="rsq-bench-")))
            ports = free_ports(MASTERS, BUS)
            for port in ports:
                stack.enter_context(_node(self._binary, home, port))
            self._links = [Link(Endpoint(f"redis://127.0.0.1:{port}"), PATIENCE_S) for port in ports]
            for number, (link, port) in enumerate(zip(self._links, ports, strict=True)):
                stack.callback(link.close)
                _until(partial(_answers, link, "PING", b"PONG"))
                first, last = number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS
                link.call("CLUSTER", "ADDSLOTS", *range(first, last))
                self._links[0].call("CLUSTER", "MEET", "127.0.0.1", port)
            for link in self._links:
                _until(partial(_answers, link, "CLUSTER INFO", b"cluster_state:ok"))
            self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def empty(self) -> None:
        for link in self._links:
            link.call("FLUSHALL", "SYNC")

    def each_cpu_s(self) -> list[float]:
        return [_cpu_s(link) for link in self._links]


def cluster(rig: Rig) -> Samples:
    """A send and its result, a drain by one lane and by three, and who waits, against the same on one server."""
    with Nodes(rig.binary) as nodes:
        plain_url = rig.url
        try:
            yield from _sends(rig, nodes, plain_url)
            yield from _server_times(rig, nodes, plain_url)
            plain, one, three = (
                _measured(rig, nodes, url, lanes, _work_off) for url, lanes in ((plain_url, 1), ("", 1), ("", 3))
            )
            yield Sample("drain, one lane: worker", "us a task", "less", one.worker_us, plain.worker_us)
            yield Sample("drain, one lane: server", "us a task", "less", one.server_us, plain.server_us)
            yield Sample("drain, one lane: the other two masters", "us a task", "less", one.others_us)
            yield Sample("drain, three lanes to one: worker", "us a task", "less", three.worker_us, one.worker_us)
            yield Sample("drain, three lanes to one: all servers", "us a task", "less", three.server_us, one.server_us)
            yield Sample("drain, three lanes to one", "tasks/s", "more", three.per_s, one.per_s)
            idle, idle_three = (_measured(rig, nodes, "", lanes, _idle) for lanes in (1, 3))
            yield Sample("idle child, three lanes to one", "ms/s", "less", idle_three, idle)
            waiting, waiting_plain = (_measured(rig, nodes, url, 1, _waiting) for url in ("", plain_url))
            name = f"{WAITING} connections that wait for {WAITED_FOR} queues: a master"
            yield Sample(name, "ms/s", "less", waiting, waiting_plain)
        finally:
            _place(rig, plain_url, 1)


def _place(rig: Rig, url: str, lanes: int) -> None:
    rig.url = url
    app.configure(url=url, partitions=lanes)


def _measured(rig: Rig, nodes: Nodes, url: str, lanes: int, measure: Callable[[Rig, Nodes, Sequence[str]], Any]) -> Any:
    """On this server or, without a URL, on the cluster; both are empty then."""
    _place(rig, url or nodes.url, lanes)
    nodes.empty()
    if url:
        rig.empty()
    queues = QUEUES[:lanes]
    app.client.located(queues, use=True)
    return measure(rig, nodes, queues)


def _sends(rig: Rig, nodes: Nodes, plain_url: str) -> Samples:
    """In turn, and the least of some rounds: others at work on the machine only add to it."""
    count = rig.size(SENDS)
    kinds: dict[str, Callable[[], object]] = {
        "`delay`": lambda: [add_quietly.delay(1, 2) for _ in range(count)],
        "`map_async`": lambda: add_quietly.map_async([(1, 2)] * count),
    }
    for name, act in kinds.items():
        least = [float("inf"), float("inf")]
        for _ in range(ROUNDS):
            for place, url in enumerate((plain_url, "")):
                least[place] = min(least[place], _measured(rig, nodes, url, 1, partial(_processor_us, act)))
        yield Sample(f"{name}: Python", "us a call", "less", least[1] / count, least[0] / count)


def _processor_us(act: Callable[[], object], *_: object) -> float:
    add_quietly.delay(1, 2)  # the connection stands
    began = time.process_time()
    act()
    return (time.process_time() - began) * 1e6


def _work_off(rig: Rig, nodes: Nodes, queues: Sequence[str]) -> Drained:
    warm_up, count = rig.size(WARM_UP) // len(queues), rig.size(TASKS) // len(queues)
    for queue in queues:
        add_quietly.map_async([(1, 2)] * warm_up, queue=queue)
    first = mark.delay()
    for queue in queues:
        add.map_async([(1, 2)] * count, queue=queue)
    with rig.worker(1, "-Q", ",".join(queues)):
        began = _each_s(rig, nodes)
        _until(lambda: all(_succeeded(rig, queue) >= warm_up + count for queue in queues))
        ended, spent_s = time.monotonic(), [now - then for now, then in zip(_each_s(rig, nodes), began, strict=True)]
        _, since, cpu_began = first.get(timeout=PATIENCE_S)
        _, _, cpu_ended = mark.delay().get(timeout=PATIENCE_S)
    tasks = count * len(queues)
    every = tasks + warm_up * len(queues)
    server_us, others_us = (total * 1e6 / every for total in (sum(spent_s), sum(spent_s) - max(spent_s)))
    return Drained(tasks / (ended - since), (cpu_ended - cpu_began) * 1e6 / tasks, server_us, others_us)


def _server_times(rig: Rig, nodes: Nodes, plain_url: str) -> Samples:
    """What the server takes for one send: an entry alone, and a script that looks for its id or its key."""
    count = rig.size(SENDS)
    kinds: dict[str, Callable[[], object]] = {
        "a plain send": lambda: add_quietly.map_async([(1, 2)] * count),
        "a send under an id": lambda: [add_quietly.apply_async((1, 2), task_id=new_id()) for _ in range(count)],
        "a send with a dedupe key": lambda: [
            add_quietly.apply_async((1, 2), dedupe_key=str(number), dedupe_ttl=60) for number in range(count)
        ],
    }
    for name, act in kinds.items():
        cost, plain = (_measured(rig, nodes, url, 1, partial(_server_us, act)) for url in ("", plain_url))
        yield Sample(f"{name}: server", "us a call", "less", cost / count, plain / count)


def _server_us(act: Callable[[], object], rig: Rig, nodes: Nodes, _: Sequence[str]) -> float:
    add_quietly.apply_async((1, 2), task_id=new_id())  # the server knows the script
    began = sum(_each_s(rig, nodes))
    act()
    return (sum(_each_s(rig, nodes)) - began) * 1e6


def _each_s(rig: Rig, nodes: Nodes) -> list[float]:
    """Seconds of processor of the server that is measured, or of each node."""
    return nodes.each_cpu_s() if rig.url == nodes.url else [rig.readings().cpu_s]


def _idle(rig: Rig, nodes: Nodes, queues: Sequence[str]) -> float:
    """Milliseconds of processor that a child with nothing to do takes in a second. Linux only; elsewhere 0."""
    with rig.worker(1, "-Q", ",".join(queues)):
        child, *_ = mark.delay().get(timeout=PATIENCE_S)
        time.sleep(1.0)  # until it has settled down
        began, since = cpu_s(child), time.monotonic()
        time.sleep(max(2.0, IDLE_S * rig.scale))
        return (cpu_s(child) - began) * 1000 / (time.monotonic() - since)


def _waiting(rig: Rig, nodes: Nodes, _: Sequence[str]) -> float:
    """Milliseconds of processor a second of the server at which bare connections wait as idle children do."""
    endpoint = Endpoint.of(app.settings)
    queues = [WorkerQueue(f"waits-{number}", app.settings) for number in range(WAITED_FOR)]
    streams = [queue.keys.stream() for queue in queues]
    wait = packed(
        "XREADGROUP", "GROUP", GROUP, "idle", "COUNT", 1, "BLOCK", 1000, "STREAMS", *streams, *">" * WAITED_FOR
    )
    wait += b"".join([packed("EXISTS", *signs(queue)) for queue in queues])
    with ExitStack() as stack, DefaultSelector() as selector:
        link = Link(endpoint, PATIENCE_S)
        stack.callback(link.close)
        for stream in streams:
            link.call("XGROUP", "CREATE", stream, GROUP, "$", "MKSTREAM")
        count = rig.size(WAITING)
        for _number in range(count):
            channel, _identity = endpoint.open(Deadline(PATIENCE_S))
            stack.callback(channel.close)
            selector.register(channel.socket, EVENT_READ, channel.socket)
            channel.socket.sendall(wait)
            time.sleep(1.0 / count)  # so that they do not all come back at once
        began, since = _each_s(rig, nodes), time.monotonic()
        while time.monotonic() < since + max(2.0, IDLE_S * rig.scale):
            for key, _events in selector.select(0.1):
                if b"*-1" in key.data.recv(4096):  # the read has ended; the counts come behind it
                    key.data.sendall(wait)
        spent_s = max(now - before for now, before in zip(_each_s(rig, nodes), began, strict=True))
        return spent_s * 1000 / (time.monotonic() - since)


def _answers(link: Link, command: str, expected: bytes) -> bool:
    try:
        return expected in link.call(*command.split())
    except BrokerUnavailable:
        return False  # it has not begun yet


def _succeeded(rig: Rig, queue: str) -> int:
    return int(rig.call("HGET", app.client.queue(queue).keys.stats, "succeeded") or 0)


def _cpu_s(link: Link) -> float:
    info = dict(line.split(":", 1) for line in link.call("INFO", "cpu").decode().splitlines() if ":" in line)
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


@contextmanager
def _node(binary: Path, home: Path, port: int) -> Iterator[None]:
    own = home / str(port)
    own.mkdir()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": own, "cluster-enabled": "yes"}
    command = [str(binary), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    with (own / "log").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            yield
        finally:
            server.terminate()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of it within {PATIENCE_S:g} s")
        time.sleep(0.005)


CLUSTER: dict[str, Callable[[Rig], Samples]] = {"cluster": cluster}
