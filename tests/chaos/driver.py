"""One chaos run from start to verdict: a server, workers, producers, a saboteur, and the check of what came of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import redis

from rsq.broker.connection import Endpoint, Link
from rsq.broker.queue import Queue
from rsq.broker.source_status import sources
from rsq.broker.status import counts
from tests.chaos import journal, tasks
from tests.chaos.beats import Beats
from tests.chaos.checker import check
from tests.chaos.chronicle import history_of
from tests.chaos.faults.scene import Scene
from tests.chaos.fleet import CHILDREN, Fleet
from tests.chaos.history import EVERYBODY, History, ServerState
from tests.chaos.journal import Journal
from tests.chaos.kinds import BREAKS, TICKS
from tests.chaos.network import Wire
from tests.chaos.recovery import Sample, recoveries
from tests.chaos.rules.violation import Violation
from tests.chaos.saboteur import FAULTS, OF_A_CLUSTER, OF_ONE_SERVER, Saboteur
from tests.chaos.senders.callers import SENDERS, Callers
from tests.chaos.senders.sender import Sender
from tests.chaos.survey import Recorder, survey
from tests.clusters import AnyServer, Cluster
from tests.helpers import wait_until
from tests.servers import CLUSTERS, Server, find_binary

WORKERS = 3
LEASE_S = 2.0
START_S = 60.0

ACTORS = (*FAULTS, *SENDERS)
"""What takes part in a run and can be left out of it, beside the producers themselves."""

DRAIN_S = 60.0
LINK_S = 10.0

NODE_TIMEOUT_S = 2.0

NODES = {
    "cluster-node-timeout": f"{NODE_TIMEOUT_S * 1000:.0f}",
    "cluster-require-full-coverage": "no",
    "appendfsync": "no",  # what is written outlives a kill, and six nodes share one disk
}
"""Settings of the nodes of a cluster."""

STALL_S = 0.5
"""An answer that comes so late shows that the machine or its disk stood still: a lease can run out by that alone."""


@dataclass
class Report:
    """What a run showed.

    numbers     how much of everything there was
    recoveries  samples of all faults
    kept        directory with all that is needed for a post-mortem; None where it was removed
    """

    seed: int
    seconds: float
    server: str
    numbers: dict[str, int]
    faults: dict[str, int]
    recoveries: list[Sample]
    violations: list[Violation]
    kept: str | None = None

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __add__(self, other: Report) -> Report:
        """Both runs as one; the seed is the first one's."""
        return Report(
            self.seed,
            self.seconds + other.seconds,
            self.server,
            dict(Counter(self.numbers) + Counter(other.numbers)),
            dict(sorted((Counter(self.faults) + Counter(other.faults)).items())),
            self.recoveries + other.recoveries,
            self.violations + other.violations,
            " ".join(filter(None, (self.kept, other.kept))) or None,
        )


@dataclass
class Chaos:
    """One run.

    seconds  of producers and faults; start and drain come on top
    seed     of all that is drawn
    kind     of server, as `tests.servers.find_binary` takes it; default: what the tests run on
    keep     keep the files of a clean run, too
    haste    share of the faults that do not wait for those before them to end: from these no recovery can be measured
    actors   who takes part, of `ACTORS`
    """

    seconds: float
    seed: int
    kind: str | None = None
    haste: float = 0.3
    keep: bool = False
    actors: Collection[str] = ACTORS
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rsq-chaos-", dir="/tmp")))

    def __post_init__(self) -> None:
        self.kind = self.kind or os.environ.get("RSQ_TEST_SERVER")

    def run(self) -> Report:
        """Raises what the driver itself could not do; then the directory is kept, too."""
        state = self._play()
        history = history_of(journal.read(self._journal_path))
        report = self._report(history, state)
        if report.kept:
            (self.directory / "report.json").write_text(report.as_json())
            (self.directory / "server.json").write_text(json.dumps(asdict(state), indent=1, default=sorted))
        else:
            shutil.rmtree(self.directory)
        return report

    @property
    def _journal_path(self) -> Path:
        return self.directory / "journal"

    def _play(self) -> ServerState:
        (self.directory / "server").mkdir()
        rng = random.Random(self.seed)
        with ExitStack() as stack:
            server = self._server()
            stack.enter_context(server)
            log = Journal(self._journal_path)
            stack.callback(log.close)
            recorder = Recorder(server)
            recorder.start()
            stack.callback(recorder.stop)
            wire = Wire(server)
            stack.callback(wire.close)
            several = isinstance(server, Cluster)
            # What fewer nodes have than one that is lost would be gone with it.
            tasks.app.configure(url=wire.url, partitions=1 + several, wait_replicas=int(several))
            stack.callback(tasks.app.close)
            queues = tasks.app.client.located(tasks.QUEUES, use=True)
            assert [queue.partition for queue in queues] == [*map(tasks.partition_of, tasks.QUEUES)]
            fleet = Fleet(WORKERS, server, log, self.directory, LEASE_S)
            stack.callback(fleet.close)
            beats = Beats(server, log, self.directory)
            stack.callback(beats.close)
            wait_until(fleet.all_ready, START_S, "the workers to begin")
            wait_until(beats.all_begun, START_S, "the beats to begin")
            log.write("begun", lease_s=LEASE_S)
            sender = Sender(log)
            scene = Scene(server, fleet, wire, beats, sender, log, rng, LEASE_S)
            stack.enter_context(_stall_watch(scene))
            callers = Callers(sender, server, self.seed, self.actors)
            stack.callback(callers.close)
            saboteur = Saboteur(scene, self._faults(several), self.haste)
            callers.start()
            deadline = time.monotonic() + self.seconds
            try:
                while time.monotonic() < deadline:
                    saboteur.step()
                    fleet.tend()
                    time.sleep(0.01)
            finally:
                callers.stop()
                saboteur.finish()
                callers.join_producers()
                beats.stop()
            self._drain(fleet, queues, server, log)
            callers.join()
            left = fleet.stop()
            recorder.stop()
            return survey(server, queues, recorder, left)

    def _server(self) -> AnyServer:
        binary = find_binary(self.kind)
        if self.kind in CLUSTERS:
            return Cluster(binary, config=NODES)
        return Server(binary, self.directory / "server", appendonly=True)

    def _faults(self, on_cluster: bool) -> list[str]:
        """Those that can be dealt here."""
        not_here = OF_ONE_SERVER if on_cluster else OF_A_CLUSTER
        if self.kind == "cluster":
            not_here |= {"move_slot_whole"}
        return [kind for kind in FAULTS if kind in self.actors and kind not in not_here]

    def _drain(self, fleet: Fleet, queues: list[Queue], server: AnyServer, log: Journal) -> None:
        """Until nothing waits, nothing runs, and only living workers are known; or until it takes too long."""
        deadline = time.monotonic() + DRAIN_S
        while (left := _undrained(fleet, queues, server)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            log.write("problem", text=f"not drained after {DRAIN_S:g} s: {left}")

    def _report(self, history: History, state: ServerState) -> Report:
        runs = list(history.all_runs())
        numbers = {
            "sent": len(history.calls),
            "accepted": sum(call.id is not None for call in history.calls.values()),
            "runs": len(runs),
            "runs cut off": sum(run.ended is None for run in runs),
            "entries run again": sum(
                times > 1 for times in Counter((run.id, run.entry) for run in runs if run.entry).values()
            ),
            "results": len(state.results),
            "dead": sum(len(letters) for letters in state.dead.values()),
            "taken, without an outcome": len(state.taken),
            "waits": len(history.waits),
            "revocations": len(history.revocations),
            "revoked": sum(outcome.state == "REVOKED" for outcome in state.results.values()),
            "slots": sum(call.kind in TICKS for call in history.calls.values()),
            "waits without an answer": sum(not wait.heard for wait in history.waits),
            "events": sum(len(events) for events in history.ordered.values()),
            "flows": len(history.flows),
            "their calls": sum(len(flow.needs) for flow in history.flows.values()),
            "replaced": sum(run.how == "replaced" for run in runs),
            "flows cancelled": sum(flow.cancelled for flow in history.flows.values()),
            "dead, and sent again": sum(run.kind in BREAKS and run.how == "raised" for run in runs),
            "poisoned": sum(fault.kind == "crash" for fault in history.faults),
        }
        violations = check(history, state)
        return Report(
            self.seed,
            self.seconds,
            str(find_binary(self.kind)),
            numbers,
            dict(sorted(Counter(fault.kind for fault in history.faults).items())),
            list(recoveries(history)),
            violations,
            str(self.directory) if violations or self.keep else None,
        )


def _undrained(fleet: Fleet, queues: list[Queue], server: AnyServer) -> str:
    """What is still to be waited for, in words."""
    left = [] if fleet.all_ready() else ["workers that have not begun"]
    with closing(Link(Endpoint(server.url), LINK_S)) as link, server.client() as client:
        for queue in queues:
            now = counts(link, queue)
            left += [
                f"{number} {name} in {queue.name}"
                for name in ("ready", "running", "delayed")
                if (number := getattr(now, name))
            ]
            left += [f"{each.unread} unread events" for each in sources(link, [queue]) if each.unread]
            if orphans := client.smembers(queue.keys.orphans):
                left.append(f"orphans {sorted(orphans)} of {queue.name}")
            if (leases := client.zcard(queue.keys.consumers)) != WORKERS * CHILDREN:
                left.append(f"{leases} leases of {queue.name}")
    return ", ".join(left)


@contextmanager
def _stall_watch(scene: Scene) -> Iterator[None]:
    """Records when this machine gave nobody time, or its disk kept the server waiting."""
    stop = threading.Event()

    def watch() -> None:
        client = scene.server.client(socket_timeout=1.0)
        while True:
            asleep, outages = time.monotonic(), scene.outages
            if stop.wait(0.05):
                client.close()
                return
            awake = time.monotonic()
            if isinstance(scene.server, Server) and not scene.server_away:
                with suppress(redis.RedisError):  # it may go at this very moment
                    client.ping()
            # What the server took while it was away is the saboteur's.
            took_s = (time.monotonic() if scene.outages == outages else awake) - asleep
            if took_s > STALL_S:
                scene.told("stall", [EVERYBODY], at=asleep)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
