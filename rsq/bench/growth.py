"""How cost grows: with what waits, with queues, results, payload, time and workers. Told by `rsq bench --growth`.

Where a figure has a floor here, that is the same figure at the small size: how much of it is left at the large one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from statistics import median

from rsq import crontab, every
from rsq.bench import floor
from rsq.bench.report import Sample
from rsq.bench.rig import Rig, cpu_s, memory_bytes
from rsq.bench.scenarios import FAR_S, ON_LINUX, Samples, percentile
from rsq.bench.steps import steps
from rsq.bench.tasks import add, add_quietly, app, mark, swallow
from rsq.bench.working_off import WARM_UP
from rsq.broker.connection import Link
from rsq.broker.deadline import Deadline
from rsq.broker.reads import BlockingRead
from rsq.broker.worker_queue import LONGEST_BLOCK_MS, WorkerQueue
from rsq.errors import LeaseLost
from rsq.keys import GROUP
from rsq.task import Task
from rsq.worker.leases import RENEWALS, Leases
from rsq.worker.listing import Listing
from rsq.worker.outlook import WHOLE_SWEEP_S

FEW, MANY = 10_000, 1_000_000
CHUNK = 50_000
QUEUES, IN_EACH = 1000, 10
RESULTS = 100_000
PAYLOADS = ("100 B", 100), ("1 kB", 1000), ("10 kB", 10_000), ("100 kB", 100_000), ("1 MB", 1_000_000)
PAYLOAD_BYTES, PAYLOAD_CALLS = 200_000_000, 5000
LONG_RUN = 2_000_000
RESIDENT = "resident memory after {:,} tasks"
WORKERS = 1000
SCHEDULES, LOOK_AT_BEAT_S = 10_000, 30.0
PATIENCE_S = 120.0


def enqueue(task: Task[[int, int], int], count: int, **options: object) -> None:
    """Many calls, with no more of them at once in this process than a chunk."""
    for first in range(0, count, CHUNK):
        task.map_async([(1, 2)] * min(CHUNK, count - first), **options)


def backlog(rig: Rig) -> Samples:
    """The drain rate with 1,000,000 calls waiting, against the one with 10,000."""
    measured = rig.size(FEW)

    def rate(waiting: int) -> float:
        rig.empty()
        enqueue(add_quietly, rig.size(WARM_UP))
        first = mark.delay()
        enqueue(add, measured)
        last = mark.delay()
        enqueue(add, waiting - measured)
        with rig.worker():
            _, began, _ = first.get(timeout=PATIENCE_S)
            _, ended, _ = last.get(timeout=PATIENCE_S)
        return measured / (ended - began)

    # So few are worked off in no time: one run of them tells little.
    few, many = (median(rate(rig.size(waiting)) for _ in range(3)) for waiting in (FEW, MANY))
    yield Sample("drain rate with 1,000,000 waiting, to 10,000", "tasks/s", "more", many, few)


def delayed_backlog(rig: Rig) -> Samples:
    """1,000,000 delayed calls: memory for each, and how fast they are made ready and run, against 10,000."""
    warm_up, measured = rig.size(WARM_UP), rig.size(FEW)

    def rate_and_bytes(waiting: int) -> tuple[float, float]:
        rig.empty()
        before = rig.data_bytes()
        enqueue(add_quietly, waiting, countdown=FAR_S)
        each = (rig.data_bytes() - before) / waiting
        rig.call("ZUNIONSTORE", rig.keys.delayed, 1, rig.keys.delayed, "WEIGHTS", 0)  # all due at one moment, and now
        with rig.worker():
            rig.wait_until_succeeded(warm_up)
            began = time.monotonic()
            rig.wait_until_succeeded(warm_up + measured)
            return measured / (time.monotonic() - began), each

    few, few_bytes = rate_and_bytes(warm_up + 2 * measured)
    many, many_bytes = rate_and_bytes(rig.size(MANY))
    yield Sample("made ready and run with 1,000,000 due, to 10,000", "tasks/s", "more", many, few)
    yield Sample("a delayed task of 1,000,000, to one of 10,000", "bytes", "less", many_bytes, few_bytes)


def queues(rig: Rig) -> Samples:
    """1,000 queues in one worker: bulk sends of ten calls, the drain rate, and what it costs while nothing waits."""
    names = [f"queue-{number}" for number in range(rig.size(QUEUES))]

    def work(names: Sequence[str], idle: bool) -> tuple[float, float, float, float]:
        rig.empty()
        began = time.perf_counter()
        for name in names:
            add_quietly.map_async([(1, 2)] * IN_EACH, queue=name)
        sent_s = time.perf_counter() - began
        marks = [mark.apply_async(queue=name) for name in dict.fromkeys(names)]
        with rig.worker(1, "-Q", ",".join(["default", *dict.fromkeys(names)])):
            runs = [each.get(timeout=PATIENCE_S)[1] for each in marks]
            first = mark.delay().get(timeout=PATIENCE_S)[1]
            before, idle_began = rig.readings(), time.monotonic()
            time.sleep(5.0 * rig.scale if idle else 0)
            took, server = time.monotonic() - idle_began, rig.readings() - before
        drained_s = (max(runs) - min(runs)) if len(runs) > 1 else first - min(runs)
        calls = IN_EACH * len(names)
        return calls / sent_s, calls / max(drained_s, 1e-9), server.reads / took, 100 * server.cpu_s / took

    sent, drained, reads, busy = work(names, idle=True)
    sent_to_one, *_ = work(["one"] * len(names), idle=False)
    yield Sample("map_async of 10 to each of 1,000 queues, to one queue", "tasks/s", "more", sent, sent_to_one)
    yield Sample("drain of 1,000 queues, 10 in each", "tasks/s", "more", drained)
    yield Sample("idle worker of 1,000 queues: requests", "1/s", "less", reads)
    yield Sample("idle worker of 1,000 queues: server", "%", "less", busy)


def results(rig: Rig) -> Samples:
    """100,000 results read back, one `get` after the other, against bare GETs."""
    rig.empty()
    handles = add.map_async([(1, 2)] * rig.size(RESULTS))
    with rig.worker():
        rig.wait_until_succeeded(len(handles))
    began = time.perf_counter()
    for handle in handles:
        handle.get(timeout=PATIENCE_S)
    took = time.perf_counter() - began
    bare = floor.read_results(rig.url, [rig.keys.result(handle.id) for handle in handles])
    yield Sample("get of a result that is there", "1/s", "more", len(handles) / took, len(handles) / bare)


def payload(rig: Rig) -> Samples:
    """Calls with 100 B to 1 MB of arguments: sent one by one, and worked off."""
    for name, size in PAYLOADS:
        count = rig.size(min(PAYLOAD_CALLS, PAYLOAD_BYTES // size))
        data = bytes(size)
        rig.empty()
        # The first fetch brings one call alone, since nothing is known of their durations: nothing is read before.
        first = mark.delay()
        began = time.perf_counter()
        for _ in range(count):
            swallow.delay(data)
        sent_s = time.perf_counter() - began
        with rig.worker():
            rig.wait_until_succeeded(1 + count)
            drained_s = time.monotonic() - first.get(timeout=PATIENCE_S)[1]
        for what, per_s in ("enqueue", count / sent_s), ("drain", count / drained_s):
            yield Sample(f"{name}: {what}", "tasks/s", "more", per_s)
            yield Sample(f"{name}: {what}, data", "MB/s", "more", per_s * size / 1e6)


def long_run(rig: Rig) -> Samples:
    """2,000,000 tasks through one child: its memory on the way, against after the first 100,000. Linux only."""
    tasks = rig.size(LONG_RUN)
    step = max(1, tasks // 20)
    rig.empty()
    first = 0
    with rig.worker():
        child, *_ = mark.delay().get(timeout=PATIENCE_S)
        for number in range(1, 21):
            enqueue(add_quietly, step)
            rig.wait_until_succeeded(1 + number * step)
            if ON_LINUX:
                resident, _ = memory_bytes(child)
                first = first or resident
                name = RESIDENT.format(LONG_RUN // 20 * number)
                yield Sample(name, "MB", "less", resident / 1e6, first / 1e6)


def idle_workers(rig: Rig) -> Samples:
    """1,000 idle workers of one child, by their commands and connections alone: what they cost one server."""
    rig.empty()
    queue = WorkerQueue(app.settings.default_queue, app.settings)
    count, stop = rig.size(WORKERS), threading.Event()
    lease_s = app.settings.lease_s
    look_s = max(1.0, lease_s * rig.scale)

    def link() -> Link:
        return Link(app.client.endpoint, app.settings.broker_timeout_s)

    def child(number: int) -> None:
        """What a fetcher does that was given something once and has nothing to do now."""
        own, name = link(), f"child-{number}"
        queue.register(own, name)
        own.call("XGROUP", "CREATECONSUMER", queue.keys.stream(), GROUP, name)
        wait = BlockingRead(name, [(queue, [0])])
        whole_at, calm = 0.0, False
        while not stop.is_set():
            try:
                if not calm or time.monotonic() >= whole_at:
                    whole_at = time.monotonic() + WHOLE_SWEEP_S
                    queue.fetch(own, name, 1)
                calm = wait(own, 1, LONGEST_BLOCK_MS).calm
            except LeaseLost:  # this process was too slow to be so many
                queue.register(own, name)
        own.close()

    def supervise() -> None:
        """What all supervisors do, in turn."""
        keepers = [link() for _ in range(count)]
        leases = [Leases(keeper, [queue]) for keeper in keepers]
        tellers = [link() for _ in range(count)]
        listings = [
            Listing(
                app.settings,
                f"worker-{number}",
                {queue.name: queue.partition},
                {"host": "simulated", "pid": number},
            )
            for number in range(count)
        ]
        due = time.monotonic()
        while not stop.is_set():
            for number, each in enumerate(leases):
                keepers[number].follow(each.renewing([f"child-{number}"], Deadline(PATIENCE_S)))
                tellers[number].follow(listings[number].telling({"children": 1}))
                due += lease_s / RENEWALS / count
                stop.wait(due - time.monotonic())

    threads = [threading.Thread(target=child, args=(number,), daemon=True) for number in range(count)]
    threads.append(threading.Thread(target=supervise, daemon=True))
    for thread in threads:
        thread.start()
        time.sleep(LONGEST_BLOCK_MS / 1000 / count)  # no two at the same moment
    try:
        time.sleep(look_s)  # until every one has looked once for those who vanished
        before, began = rig.readings(), time.monotonic()
        time.sleep(look_s)
        took, server = time.monotonic() - began, rig.readings() - before
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    yield Sample("1,000 idle workers: server", "%", "less", 100 * server.cpu_s / took)
    yield Sample("1,000 idle workers: requests", "1/s", "less", server.reads / took)
    yield Sample("1,000 idle workers: commands, those in scripts too", "1/s", "less", server.commands / took)


def schedules(rig: Rig) -> Samples:
    """10,000 schedules in one beat: its processor time, and how late their slots become calls."""
    count = rig.size(SCHEDULES)
    for name, schedule_of in (
        ("10,000 in a minute", lambda number: crontab(f"* * * * * {number % 60}")),
        ("10,000 at one moment", lambda number: every(seconds=10)),
    ):
        rig.empty()
        for number in range(count):
            app.schedules.add(f"schedule-{number}", schedule_of(number), add_quietly, (1, 2))
        with rig.beat() as beat:
            time.sleep(3.0)  # until it has caught up with what was due while they were added
            used, began, began_ms = cpu_s(beat) if ON_LINUX else 0.0, time.monotonic(), app.client.now_ms()
            time.sleep(max(12.0, LOOK_AT_BEAT_S * rig.scale))  # one slot of each ten seconds at least
            took = time.monotonic() - began
            if ON_LINUX:
                yield Sample(f"{name}: processor time of the beat", "%", "less", 100 * (cpu_s(beat) - used) / took)
        entries = rig.call("XRANGE", rig.keys.stream(), "-", "+")
        slots = [(int(entry_id.split(b"-")[0]), int(fields[1].rpartition(b":")[2])) for entry_id, fields in entries]
        late_ms = sorted(sent_ms - slot_ms for sent_ms, slot_ms in slots if slot_ms > began_ms)
        yield Sample(f"{name}: lateness, p99", "ms", "less", percentile(late_ms, 99))
        yield Sample(f"{name}: lateness, the last", "ms", "less", late_ms[-1])


GROWTH: dict[str, Callable[[Rig], Samples]] = {
    "backlog": backlog,
    "delayed-backlog": delayed_backlog,
    "queues": queues,
    "results": results,
    "payload": payload,
    "long-run": long_run,
    "idle-workers": idle_workers,
    "schedules": schedules,
    "steps": steps,
}
