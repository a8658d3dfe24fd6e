"""What the server holds when all is done, and what it published meanwhile."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

import redis

from rsq.broker.flow_looks import HEAD, unpack_head
from rsq.broker.queue import Queue
from rsq.calls.message import WAKE
from rsq.calls.outcome import Result, unpack_result
from rsq.keys import GROUP, PRIORITIES, FlowKeys
from rsq.states import FINAL, State
from tests.chaos.history import Leftovers, Outcome, ServerState
from tests.chaos.tasks import EVENTS, given_serials
from tests.cluster_client import slot_of
from tests.clusters import AnyServer, Cluster
from tests.conftest import dangling_ids, keys_without_ttl


class Recorder:
    """Hears every result that the server publishes, on a connection of its own.

    In a cluster none: its channels are sharded ones, which nobody can hear without their names.
    """

    def __init__(self, server: AnyServer) -> None:
        self._server = server
        self.published: dict[str, list[str]] = defaultdict(list)
        self.heard_at: dict[str, float] = {}
        self.gaps = 0
        self._stop = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        if isinstance(self._server, Cluster):
            self.gaps = 1
        else:
            self._thread.start()
            self._listening.wait()

    def stop(self) -> None:
        """Once all that was published has arrived."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._server.client() as client, client.pubsub(ignore_subscribe_messages=False) as subscription:
                    subscription.psubscribe("*:result:*")
                    while (message := subscription.get_message(timeout=0.2)) or not self._stop.is_set():
                        self._take(message)
            except redis.RedisError:
                self.gaps += 1
                self._stop.wait(0.01)

    def _take(self, message: Any) -> None:
        if message is None:
            return
        if message["type"] == "psubscribe":
            self._listening.set()
            return
        state = unpack_result(message["data"]).state
        if state in FINAL:
            task_id = _task_id(message["channel"].decode())
            self.published[task_id].append(state.value)
            self.heard_at.setdefault(task_id, time.monotonic())


def _task_id(key: str) -> str:
    return key.split(":", 4)[4]


def survey(server: AnyServer, queues: list[Queue], recorder: Recorder, processes: list[str]) -> ServerState:
    """Read everything. `processes`: those that outlived their workers."""
    state = ServerState(published=dict(recorder.published), heard_at=recorder.heard_at, gaps=recorder.gaps)
    state.left.processes += processes
    with server.client() as client:
        for queue in queues:
            _read(client, queue, state)
            _leftovers(client, queue, state.left)
        _read_flows(client, queues[0], state)
    if isinstance(server, Cluster):
        state.left.astray += _astray(server)
    with server.client(decode_responses=True, encoding_errors="replace") as client:
        state.left.for_ever += [*(set(keys_without_ttl(client)) - {EVENTS}), *dangling_ids(client)]
    return state


def _astray(cluster: Cluster) -> list[str]:
    """Keys on a master that does not serve them: half of a queue that was moved."""
    found = []
    ranges = cluster.ranges()
    for node in {node for _, _, node in ranges}:
        with node.client(decode_responses=True, encoding_errors="replace") as client:
            for key in client.scan_iter(count=1000):
                slot = slot_of(key[1 : key.index("}")])
                if not any(first <= slot <= last and each is node for first, last, each in ranges):
                    found.append(f"{key} on port {node.port}")
    return found


def _read(client: Any, queue: Queue, state: ServerState) -> None:
    keys, name = queue.keys, queue.name
    state.counters[name] = {key.decode(): int(value) for key, value in client.hgetall(keys.stats).items()}
    state.dead[name] = [fields[b"id"].decode() for _, fields in client.xrange(keys.dead)]
    found = [key.decode() for key in client.scan_iter(f"{keys.prefix}:result:*", count=1000)]
    for first in range(0, len(found), 1000):
        some = found[first : first + 1000]
        for key, data in zip(some, client.mget(some), strict=True):
            result = unpack_result(data)
            state.results[_task_id(key)] = _outcome(result)
    for key in client.scan_iter(f"{keys.prefix}:taken:*", count=1000):
        state.taken |= {task_id.decode() for task_id in client.smembers(key)}


def _read_flows(client: Any, queue: Queue, state: ServerState) -> None:
    shared = FlowKeys(queue.keys.prefix, "")
    for key in client.scan_iter(f"{shared.flow}*", count=1000):
        flow_id = key.decode().removeprefix(shared.flow)
        flow = unpack_head(flow_id, client.hmget(key, HEAD))
        if flow is not None:
            state.flows[flow_id] = flow
        # One that was cancelled is remembered until its results go; of one that has succeeded no node is left.
        if flow is None or (flow.state != "cancelled" and client.hexists(key, 0)):
            state.left.flows.append(key.decode())
    over = {flow_id for flow_id, flow in state.flows.items() if flow.state == "cancelled"}
    listed = {flow_id.decode() for flow_id in client.zrange(shared.listed, 0, -1)}
    state.left.flows += [f"{flow_id} in {shared.listed}" for flow_id in listed - over]
    if client.exists(shared.unfinished):
        state.left.flows.append(f"what is left to be done in {shared.unfinished}")


def _outcome(result: Result) -> Outcome:
    """As `tests.chaos.tasks` makes it: serial and consumer and maybe more, or a ValueError that names the consumer."""
    if result.state is State.REVOKED:
        return Outcome(result.state.value, result.reason)
    if result.error is None:
        if not isinstance(result.value[0], int):  # gathered, of a group
            return Outcome(result.state.value, given_serials([result.value]))
        value, consumer, *_ = result.value
    else:
        value, consumer = result.error["type"], result.error["message"]
    return Outcome(result.state.value, value, consumer)


def _leftovers(client: Any, queue: Queue, left: Leftovers) -> None:
    keys = queue.keys
    for priority in PRIORITIES:
        stream = keys.stream(priority)
        for entry_id, fields in client.xrange(stream):
            task_id = "a wake" if WAKE in fields else fields[b"id"].decode()
            left.entries[task_id] = f"{stream} as {entry_id.decode()}"
        if not any(group["name"] == GROUP.encode() for group in _groups(client, stream)):
            continue
        for row in client.xinfo_consumers(stream, GROUP):
            left.consumers.append(f"{row['name'].decode()} in {stream}")
        for row in client.xpending_range(stream, GROUP, "-", "+", 1000):
            left.pending.append(f"{row['message_id'].decode()} of {row['consumer'].decode()} in {stream}")
    for task_id in {*client.hkeys(keys.messages), *client.zrange(keys.delayed, 0, -1)}:
        left.delayed[task_id.decode()] = keys.delayed
    left.leases += [name.decode() for name in client.zrange(keys.consumers, 0, -1)]
    left.orphans += [name.decode() for name in client.smembers(keys.orphans)]
    # That a flow was cancelled, or a stamp revoked, is remembered for a while, under names that no call has.
    marks = [name for name in client.zrange(keys.revoked, 0, -1) if not name.startswith((b"flow ", b"stamp "))]
    left.marks += [f"{name.decode()} in {keys.revoked}" for name in marks]
    left.crashes += [name.decode() for name in [*client.hkeys(keys.crashes), *client.hkeys(keys.overdue)]]


def _groups(client: Any, stream: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = client.xinfo_groups(stream)
        return found
    except redis.ResponseError:
        return []  # no such stream
