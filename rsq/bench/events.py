"""What events cost: from a stream of others through a group, against plain tasks without results; and to trim one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rsq.bench.report import Sample
from rsq.bench.rig import Rig
from rsq.bench.scenarios import Samples
from rsq.bench.tasks import add_quietly, app
from rsq.bench.working_off import Drained, work_off
from rsq.broker.connection import Endpoint
from rsq.broker.trimming import StreamTrimmer
from rsq.calls.retention import retention

STREAM = "bench_events"

READERS = "rsq.bench.event_tasks"
"""What workers load to read it; not imported here, or all workers would read it: this module is part of the command."""

CHUNK = 1000


def events(rig: Rig) -> Samples:
    """Events of a stream, against plain tasks without results; and what trimming such a stream adds for the server."""
    count = rig.size(30_000)
    ours, bare = rig.take_turns(
        partial(work_off_events, rig, count),
        partial(work_off, rig, 1, count, partial(add_quietly.map_async, [(1, 2)] * count)),
    )
    yield Sample("events of a stream", "tasks/s", "more", ours.per_s, bare.per_s)
    yield Sample("events: worker CPU for 1,000", "s", "less", 1000 * ours.cpu_s, 1000 * bare.cpu_s)
    yield Sample("events: server CPU for 1,000", "s", "less", 1000 * ours.server_cpu_s, 1000 * bare.server_cpu_s)
    share = trimming_cpu_s(rig, rig.size(300_000)) / (ours.server_cpu_s or 1e-6)
    yield Sample("trimming, of the server's work for an event", "%", "less", 100 * share)


def work_off_events(rig: Rig, count: int) -> Drained:
    with rig.loading(READERS):
        return work_off(rig, 1, count, partial(add_events, count))


def add_events(count: int) -> None:
    """As any producer does."""
    command = ("XADD", STREAM, "*", "event", "user_registered", "user_id", "42", "timestamp", "1732702630")
    with app.client.link() as link:
        for first in range(0, count, CHUNK):
            link.pipeline([command] * min(CHUNK, count - first))


def trimming_cpu_s(rig: Rig, count: int) -> float:
    """Seconds of the server for an entry that is trimmed, while a group has read them all."""
    rig.empty()
    add_events(count)
    rig.call("XGROUP", "CREATE", STREAM, "reader", "$")
    trimmer = StreamTrimmer(Endpoint.of(app.settings), retention(STREAM, 0, None, None, False), (), "bench")
    before = rig.readings()
    while trimmer.step(1000).more:
        pass
    used = rig.readings() - before
    trimmer.close()
    return used.cpu_s / count


EVENTS: dict[str, Callable[[Rig], Samples]] = {"events": events}
