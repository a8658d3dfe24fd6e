"""What flows cost: steps and members against plain tasks with results, memory, and large ones from start to end.

Where a figure has a floor here, that is the same number of plain tasks by rsq, in the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rsq import chain, group
from rsq.bench.report import Sample
from rsq.bench.rig import Rig, run_apart
from rsq.bench.scenarios import Samples
from rsq.bench.tasks import add, app, mark, total
from rsq.bench.working_off import work_off
from rsq.canvas.signature import Signature

LENGTH = 100
ON_LINUX = sys.platform == "linux"


def chain_of(steps: int) -> Signature[int]:
    """Each step adds one to what the one before came to."""
    return chain(add.s(0, 1), *[add.s(1)] * (steps - 1))


def chord_of(members: int) -> Signature[int]:
    """Adds up what its members came to."""
    return group([add.s(0, 1)] * members) | total.s()


def fan_of(members: int) -> Signature[Any]:
    """One call, then many that each get its value."""
    return add.s(0, 1) | group([add.s(1)] * members)


LARGE: dict[str, tuple[Callable[[int], Signature[Any]], int]] = {
    "a chain of {:,}": (chain_of, 10_000),
    "a chord of {:,}": (chord_of, 100_000),
    "a fan-out of one to {:,}": (fan_of, 100_000),
}


def flows(rig: Rig) -> Samples:
    """Steps of chains and members of chords, against plain tasks with results; bytes of what waits."""
    chains, members = rig.size(1000), rig.size(30_000)

    def start_chains() -> None:
        for _ in range(chains):
            chain_of(LENGTH).delay()

    def start_chord() -> None:
        chord_of(members).delay()

    for name, count, start, more in (
        (f"steps, {chains:,} chains of {LENGTH} at once", chains * LENGTH, start_chains, 0),
        (f"members of a chord of {members:,}", members, start_chord, 1),
    ):
        # Plain ones as many as measure well: their rate does not depend on how many they are.
        plain = min(count, rig.size(30_000))
        ours, bare = rig.take_turns(
            partial(work_off, rig, 1, count + more, start),
            partial(work_off, rig, 1, plain, partial(add.map_async, [(1, 2)] * plain)),
        )
        yield Sample(name, "tasks/s", "more", ours.per_s, bare.per_s)
        yield Sample(f"{name}: worker CPU for 1,000", "s", "less", 1000 * ours.cpu_s, 1000 * bare.cpu_s)
        yield Sample(f"{name}: server CPU for 1,000", "s", "less", 1000 * ours.server_cpu_s, 1000 * bare.server_cpu_s)
    size = rig.size(10_000)
    for name, made in (("step of a chain that waits", chain_of(size)), ("member of a chord, ready", chord_of(size))):
        rig.empty()
        before = rig.data_bytes()
        made.delay()
        yield Sample(f"a {name}", "bytes", "less", (rig.data_bytes() - before) / size)


def large_flows(rig: Rig) -> Samples:
    """A long chain, a large chord and a wide fan-out: time, peak memory of who starts and who works, longest script."""
    for text, (made, count) in LARGE.items():
        size = rig.size(count)
        name = text.format(size)
        rig.empty()
        with rig.worker() as _:
            child, *_ = mark.delay().get(timeout=60)
            rig.call("CONFIG", "SET", "slowlog-max-len", 100_000)
            rig.call("CONFIG", "SET", "slowlog-log-slower-than", 2000)
            rig.call("SLOWLOG", "RESET")
            began = time.perf_counter()
            peak_mb = run_apart(start_apart, rig.url, made.__name__, size)
            yield Sample(f"{name}: started in", "s", "less", time.perf_counter() - began)
            rig.wait_until_succeeded(size + 1)
            yield Sample(f"{name}: ended after", "s", "less", time.perf_counter() - began)
            slow_ms = [took_us / 1000 for _, _, took_us, *_ in rig.call("SLOWLOG", "GET", 100_000)]
            yield Sample(f"{name}: longest script", "ms", "less", max(slow_ms, default=2.0))
            yield Sample(f"{name}: peak memory of its producer", "MB", "less", peak_mb)
            if ON_LINUX:
                yield Sample(f"{name}: peak memory of the worker's child", "MB", "less", peak_bytes(child) / 1e6)
            rig.call("CONFIG", "SET", "slowlog-log-slower-than", -1)


def start_apart(url: str, made: str, size: int) -> float:
    """Start a flow from a process of its own; gives the process's peak memory in MB."""
    import resource

    app.configure(url=url)
    makers: dict[str, Callable[[int], Signature[Any]]] = {maker.__name__: maker for maker, _ in LARGE.values()}
    makers[made](size).delay()
    app.close()
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def peak_bytes(pid: int) -> int:
    """The most resident memory that a process ever had. Linux only."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows["VmHWM"].split()[0]) * 1024


FLOWS: dict[str, Callable[[Rig], Samples]] = {"flows": flows, "large-flows": large_flows}
