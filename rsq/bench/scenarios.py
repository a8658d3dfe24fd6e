"""The scenarios. Each call measures one repetition: rsq, and its floor right beside it.

A scenario is listed in SCENARIOS under the name that `rsq bench --only` takes; its docstring is what `--help` says.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from heapq import heapify, heapreplace
from itertools import pairwise
from statistics import median
from typing import Any, TypeAlias

from rsq.bench import floor
from rsq.bench.report import Sample
from rsq.bench.rig import Rig, cpu_s, memory_bytes
from rsq.bench.tasks import aadd, add, add_quietly, app, fail_once, hold, lateness, mark
from rsq.bench.working_off import work_off, work_off_bare
from rsq.broker import scripts
from rsq.task import Task

Samples: TypeAlias = Iterator[Sample]

FAR_S = 3600.0
ON_LINUX = sys.platform == "linux"


# -- producers


def enqueue_single(rig: Rig) -> Samples:
    """One `delay` after the other, against a bare `xadd` loop."""
    count = rig.size(3000)

    def ours() -> float:
        add.delay(1, 2)
        began = time.perf_counter()
        for _ in range(count):
            add.delay(1, 2)
        return time.perf_counter() - began

    seconds, bare = rig.take_turns(ours, partial(floor.enqueue_single, rig.url, count))
    yield Sample("delay", "tasks/s", "more", count / seconds, count / bare)


def enqueue_bulk(rig: Rig) -> Samples:
    """`map_async`, against a bare pipeline of XADDs."""
    count = rig.size(20_000)

    def ours() -> float:
        add.delay(1, 2)
        began = time.perf_counter()
        add.map_async([(1, 2)] * count)
        return time.perf_counter() - began

    seconds, bare = rig.take_turns(ours, partial(floor.enqueue_bulk, rig.url, count))
    yield Sample("map_async", "tasks/s", "more", count / seconds, count / bare)


# -- workers


def drain(rig: Rig) -> Samples:
    """Work off a backlog: results kept and ignored, one child and two."""
    tasks = rig.size(30_000)
    kinds: list[tuple[str, Task[[int, int], int]]] = [("kept", add), ("ignored", add_quietly)]
    for kind, task in kinds:
        runs = []
        for children in (1, 2):
            enqueue = partial(task.map_async, [(1, 2)] * tasks)
            ours, bare = rig.take_turns(
                partial(work_off, rig, children, tasks, enqueue),
                partial(work_off_bare, rig, children, tasks, kind == "kept"),
            )
            runs.append((ours, bare))
            yield Sample(f"results {kind}, {children} at work", "tasks/s", "more", ours.per_s, bare.per_s)
        (one, bare_one), (two, bare_two) = runs
        scaled, busy = two.per_s / one.per_s, 100 * two.server_cpu_s * two.per_s
        yield Sample(f"results {kind}, 2 at work to 1", "x", "more", scaled, bare_two.per_s / bare_one.per_s)
        bare_busy = 100 * bare_two.server_cpu_s * bare_two.per_s
        yield Sample(f"results {kind}, 2 at work: server busy", "%", "less", busy, bare_busy)
        for name, unit, value, least in (
            ("worker CPU for 1,000", "s", 1000 * one.cpu_s, 1000 * bare_one.cpu_s),
            ("server CPU for 1,000", "s", 1000 * one.server_cpu_s, 1000 * bare_one.server_cpu_s),
            ("commands a task", "", one.commands, bare_one.commands),
            ("socket reads a task", "", one.reads, bare_one.reads),
        ):
            yield Sample(f"results {kind}: {name}", unit, "less", value, least)


def group_commit(rig: Rig) -> Samples:
    """Outcomes in one commit under load, and how long after its body a lone one has reached its caller."""
    tasks, count = rig.size(20_000), rig.size(500)
    rig.empty()
    enqueue = partial(add.map_async, [(1, 2)] * tasks)
    before = rig.calls_of("XACK")
    work_off(rig, 1, tasks, enqueue)
    yield Sample("outcomes in one commit, under load", "", "more", tasks / (rig.calls_of("XACK") - before))
    rig.empty()
    with rig.worker():
        waits = []
        for _ in range(count):
            _, ended, _ = mark.delay().get(timeout=60)
            waits.append(1000 * (time.monotonic() - ended))
    yield Sample("from a lone body to its caller, p50", "ms", "less", percentile(sorted(waits), 50))
    yield Sample("from a lone body to its caller, p99", "ms", "less", percentile(sorted(waits), 99))


def executors(rig: Rig) -> Samples:
    """Work off a backlog in one process, by each executor that runs several tasks at once in it."""
    tasks = rig.size(10_000)
    for pool, slots, task in (("threads", 8, add), ("asyncio", 100, add), ("asyncio", 100, aadd)):
        rig.empty()
        enqueue = partial(task.map_async, [(1, 2)] * tasks)
        drained = work_off(rig, 1, tasks, enqueue, "-P", pool, "-c", str(slots))
        name = f"{pool}, {slots} at once, {'coroutines' if task is aadd else 'functions'}"
        yield Sample(name, "tasks/s", "more", drained.per_s)
        yield Sample(f"{name}: worker CPU for 1,000", "s", "less", 1000 * drained.cpu_s)


def delayed(rig: Rig) -> Samples:
    """A backlog of delayed tasks that all became due, and how late single ones start."""
    tasks = rig.size(10_000)

    def enqueue() -> None:
        add_quietly.map_async([(1, 2)] * tasks, countdown=FAR_S)
        # All due at one moment, and now.
        rig.call("ZUNIONSTORE", rig.keys.delayed, 1, rig.keys.delayed, "WEIGHTS", 0)

    def bare() -> floor.Cost:
        floor.enqueue_delayed(rig.url, tasks)
        return rig.beside(floor.drain, rig.url, 0, False, True).result()

    ours, cost = rig.take_turns(partial(work_off, rig, 1, tasks, enqueue), bare)
    yield Sample("made ready and run", "tasks/s", "more", ours.per_s, cost.tasks / cost.seconds)
    count = rig.size(200)
    rig.empty()
    with rig.worker():
        mark.delay().get(timeout=60)
        start_ms = int(time.time() * 1000) + 500
        dues = [(start_ms + 17 * number) / 1000 for number in range(count)]
        results = [lateness.apply_async((due,), eta=datetime.fromtimestamp(due, timezone.utc)) for due in dues]
        late_ms = sorted(result.get(timeout=60) * 1000 for result in results)
    yield Sample("lateness, idle worker, p50", "ms", "less", percentile(late_ms, 50))
    yield Sample("lateness, idle worker, p99", "ms", "less", percentile(late_ms, 99))


def retry(rig: Rig) -> Samples:
    """Every task fails once and is retried at once."""
    tasks = rig.size(5000)

    def bare() -> float:
        """Each task is run twice: from the stream, and from the delayed ones."""
        floor.enqueue_bulk(rig.url, tasks)
        first = rig.beside(floor.drain, rig.url, 0, False).result()
        floor.enqueue_delayed(rig.url, tasks)
        return first.seconds + rig.beside(floor.drain, rig.url, 0, False, True).result().seconds

    enqueue = partial(fail_once.map_async, [()] * tasks)
    ours, seconds = rig.take_turns(partial(work_off, rig, 1, tasks, enqueue), bare)
    yield Sample("failed once, then done", "tasks/s", "more", ours.per_s, tasks / seconds)


def mixed(rig: Rig) -> Samples:
    """A heavy tail of durations on two children, against the best schedule in the same order: fairness and waste."""
    draw = random.Random(7)
    kinds = draw.choices(((0.001, 0.001), (0.01, 0.03), (0.3, 0.5)), (90, 8, 2), k=rig.size(600))
    calls = [(draw.uniform(*kind),) for kind in kinds]
    rig.empty()
    with rig.worker(children=2):
        mark.delay().get(timeout=60)
        rig.call("CONFIG", "SET", "slowlog-max-len", 1_000_000)
        rig.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
        rig.call("SLOWLOG", "RESET")
        results = hold.map_async(calls)
        runs = [result.get(timeout=120) for result in results]
        released = _released(rig.call("SLOWLOG", "GET", 1_000_000))
        rig.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    took = max(ended for _, _, ended in runs) - min(began for _, began, _ in runs)
    yield Sample("from the first start to the last end", "s", "less", took, best_schedule(runs, 2))
    yield Sample("longest a child idled while tasks waited", "ms", "less", 1000 * longest_idle(runs))
    yield Sample("handed back and fetched again", "%", "less", 100 * released / len(runs))


Run: TypeAlias = tuple[int, float, float]
"""Process, begin and end of one task."""


def best_schedule(runs: list[Run], children: int) -> float:
    """Seconds that the same durations take in the same order when whoever is free takes the next. Pure."""
    free_at = [0.0] * children
    heapify(free_at)
    for _, began, ended in runs:
        heapreplace(free_at, free_at[0] + ended - began)
    return max(free_at)


def longest_idle(runs: list[Run]) -> float:
    """The longest time for which a process ran nothing though a task had not begun. Pure."""
    last_begin = max(began for _, began, _ in runs)
    gaps = [0.0]
    for pid in {pid for pid, _, _ in runs}:
        mine = sorted((began, ended) for process, began, ended in runs if process == pid)
        gaps += [later - ended for (_, ended), (later, _) in pairwise([*mine, (last_begin, last_begin)])]
    return max(gaps)


def _released(slowlog: list[Any]) -> int:
    """Entries that were handed back, by the calls of release.lua in the log; it cuts long argument lists."""
    entries = 0
    for _, _, _, arguments, *_ in slowlog:
        if arguments[:2] == [b"EVALSHA", scripts.RELEASE.sha.encode()]:
            cut = arguments[-1]
            total = len(arguments) - 1 + (int(cut.split()[1][1:]) if cut.startswith(b"... (") else 1)
            entries += total - len(("EVALSHA", "sha", "1", "tag", "consumer", "priority"))
    return entries


# -- waiting


def latency(rig: Rig) -> Samples:
    """Round trip of one call through an idle worker, by the blocking and by the asyncio client."""
    count = rig.size(1000)

    async def ours_async() -> list[float]:
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            await (await add.adelay(1, 2)).aget(timeout=60)
            taken.append(time.perf_counter() - began)
        await app.aclose()
        return taken

    def ours_sync() -> list[float]:
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            add.delay(1, 2).get(timeout=60)
            taken.append(time.perf_counter() - began)
        return taken

    def ours(measure: Callable[[], list[float]]) -> list[float]:
        with rig.worker():
            mark.delay().get(timeout=60)
            return sorted(measure())

    def bare(measure: Callable[[str, int], list[float]]) -> list[float]:
        floor.make_group(floor.connect(rig.url))
        served = rig.beside(floor.serve, rig.url)
        trips = sorted(measure(rig.url, count))
        floor.stop_server(rig.url)
        served.result()
        return trips

    for name, measure, measure_bare in (
        ("get", ours_sync, floor.round_trips),
        ("aget", lambda: asyncio.run(ours_async()), floor.round_trips_async),
    ):
        trips, bare_trips = rig.take_turns(partial(ours, measure), partial(bare, measure_bare))
        for percent in (50, 99):
            least_ms = percentile(bare_trips, percent) * 1000
            yield Sample(f"delay and {name}, p{percent}", "ms", "less", percentile(trips, percent) * 1000, least_ms)


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The value below which so many percent lie. Pure."""
    return ascending[min(len(ascending) - 1, len(ascending) * percent // 100)]


# -- what it takes to be there


def memory(rig: Rig) -> Samples:
    """Bytes of the server for a queued, a delayed and a finished task."""
    count = rig.size(20_000)

    def weigh(act: Callable[[], object]) -> float:
        before = rig.data_bytes()
        act()
        return (rig.data_bytes() - before) / count

    def finish() -> None:
        add.map_async([(1, 2)] * count)
        with rig.worker():
            rig.wait_until_succeeded(count)

    for name, act, bare in (
        ("queued", lambda: add.map_async([(1, 2)] * count), floor.enqueue_bulk),
        ("delayed", lambda: add.map_async([(1, 2)] * count, countdown=FAR_S), floor.enqueue_delayed),
        ("finished, its result kept", finish, floor.keep_results),
    ):
        size, bare_size = rig.take_turns(partial(weigh, act), partial(weigh, partial(bare, rig.url, count)))
        yield Sample(f"a task that is {name}", "bytes", "less", size, bare_size)


def footprint(rig: Rig) -> Samples:
    """An idle worker with one child: memory, processor time, commands."""
    idle_s = max(2.0, 10 * rig.scale)
    rig.empty()
    with rig.worker() as supervisor:
        child, *_ = mark.delay().get(timeout=60)
        if ON_LINUX:
            for name, pid in (("supervisor", supervisor), ("child", child)):
                resident, private = memory_bytes(pid)
                yield Sample(f"{name}: resident memory", "MB", "less", resident / 1e6)
                yield Sample(f"{name}: memory of its own", "MB", "less", private / 1e6)
        time.sleep(1.0)  # until it has settled down
        cpu_began = [cpu_s(pid) if ON_LINUX else 0.0 for pid in (supervisor, child)]
        began, before = time.monotonic(), rig.readings()
        time.sleep(idle_s)
        took, server = time.monotonic() - began, rig.readings() - before
        yield Sample("idle: requests", "1/s", "less", (server.reads - 1) / took)
        yield Sample("idle: commands, those in scripts too", "1/s", "less", (server.commands - 1) / took)
        if ON_LINUX:
            for name, pid, used in zip(("supervisor", "child"), (supervisor, child), cpu_began, strict=True):
                yield Sample(f"idle: processor time of the {name}", "%", "less", 100 * (cpu_s(pid) - used) / took)


def startup(rig: Rig) -> Samples:
    """Import time of `rsq`, against `import redis`; from the start of a worker to its first result."""
    pairs = [(_import_time("rsq"), _import_time("redis")) for _ in range(5)]
    ours_ms, bare_ms = (median(each) * 1000 for each in zip(*pairs, strict=True))
    yield Sample("import rsq, against import redis", "ms", "less", ours_ms, bare_ms)
    rig.empty()
    result = add.delay(1, 2)
    began = time.perf_counter()
    with rig.worker():
        result.get(timeout=60)
        yield Sample("from the start of a worker to its first result", "s", "less", time.perf_counter() - began)


def _import_time(module: str) -> float:
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


SCENARIOS: dict[str, Callable[[Rig], Samples]] = {
    "enqueue-single": enqueue_single,
    "enqueue-bulk": enqueue_bulk,
    "drain": drain,
    "group-commit": group_commit,
    "executors": executors,
    "latency": latency,
    "delayed": delayed,
    "retry": retry,
    "mixed": mixed,
    "memory": memory,
    "footprint": footprint,
    "startup": startup,
}
