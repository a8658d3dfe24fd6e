"""The driver of `rsq demo --flow`: a chord of chords over the standard library, a kill -9, and the proof.

group(group(count_file(...), ...) | summed(),       one for each package
      group(count_file(...), ...) | summed(), ...)
| summed()                                          the sum of all
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsq.broker.client import Client
from rsq.broker.status import counts
from rsq.canvas.make import group
from rsq.canvas.signature import Signature
from rsq.demo.stage import Advance, Stage, library_files, place_of_run
from rsq.demo.tasks import count_file, summed
from rsq.demo.workers import CHILDREN, WORKERS, end_of, follow, is_replaced, run_workers

ALONE = "(modules)"
"""Stands for the modules that belong to no package."""


@dataclass(frozen=True)
class FlowReport:
    """What a run came to.

    calls         of the flow: one a file, one a package, and the last one
    succeeded     outcomes that were committed: each call has one
    crashes       children that were killed and replaced
    interrupted   calls that they were running, and that were run again
    with_flow, without_flow    the sums over all files
    flow_s, direct_s           how long each of the two took
    problems      what is not as it must be; empty means that all is well
    log           the end of the workers' log when there are problems, else ''
    """

    files: int
    packages: int
    calls: int
    succeeded: int
    crashes: int
    interrupted: int
    calls_per_s: float
    flow_s: float
    direct_s: float
    with_flow: dict[str, int]
    without_flow: dict[str, int]
    problems: list[str]
    log: str


def run_flow(overrides: Mapping[str, Any], stage: Stage) -> FlowReport:
    """Run it. Whatever happens, no process, no file and no key of it is left afterwards.

    overrides  as in `rsq.demo.run.run`
    Raises     BrokerError, SettingsError; WorkerLost: a worker ended, or nothing happens any more
    """
    with place_of_run(overrides) as place, ExitStack() as stack:
        client = place.client
        packages = by_package(library_files())
        files = sum(map(len, packages.values()))
        calls = files + len(packages) + 1
        stage.say(
            f"Counting the standard library of Python {platform.python_version()}, as one flow.\n"
            f"  flow     {files:,} files side by side, the sums of {len(packages):,} packages, and the sum of these\n"
            f"  server   {place.server}\n"
            f"  workers  {WORKERS} with {CHILDREN} child processes each; one child will be killed at work\n"
            f"  proof    the same count without a queue must come out equal\n"
        )
        log = place.home / "workers.log"
        workers = stack.enter_context(run_workers(client, log))

        started = time.monotonic()
        result = canvas_of(packages).delay()
        with stage.progress("as a flow      ", calls) as advance:
            victim = follow(lambda: _ended(client, result.id), calls, workers, advance, log)
        value = result.get(timeout=0)
        flow_s = time.monotonic() - started
        crashes = int(is_replaced(victim, workers[0]))
        with client.link() as link:
            counters = Counter(counts(link, client.queue(None)).counters)

        started = time.monotonic()
        with stage.progress("without a queue", files) as advance:
            direct = _count_directly(packages, advance)
        direct_s = time.monotonic() - started
        checks = {
            f"{counters['succeeded']:,} outcomes were committed for {calls:,} calls": counters["succeeded"] == calls,
            f"child {victim}, which was killed, has not been replaced": crashes == 1,
        }
        problems = [text for text, holds in checks.items() if not holds] + [
            f"{name}: {value[name]:,} as a flow, {direct[name]:,} without it"
            for name in direct
            if value[name] != direct[name]
        ]
        return FlowReport(
            files=files,
            packages=len(packages),
            calls=calls,
            succeeded=counters["succeeded"],
            crashes=crashes,
            interrupted=counters["crashed"],
            calls_per_s=round(calls / flow_s, 1),
            flow_s=round(flow_s, 2),
            direct_s=round(direct_s, 2),
            with_flow=value,
            without_flow=direct,
            problems=problems,
            log=end_of(log) if problems else "",
        )


def by_package(files: Sequence[str]) -> dict[str, list[str]]:
    """The files of each package of the library, those of its modules under ALONE."""
    root = Path(os.path.commonpath(files))
    found: dict[str, list[str]] = {}
    for path in files:
        first, *rest = Path(path).relative_to(root).parts
        found.setdefault(first if rest else ALONE, []).append(path)
    return found


def canvas_of(packages: Mapping[str, Sequence[str]]) -> Signature[dict[str, int]]:
    """Count each file, sum up each package, and sum up these."""
    return group(group(count_file.s(path) for path in files) | summed.s() for files in packages.values()) | summed.s()


def _count_directly(packages: Mapping[str, Sequence[str]], advance: Advance) -> dict[str, int]:
    """The same by the plain functions that these tasks are."""
    sums, done = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for files in packages.values():
            parts = []
            for path in files:
                parts.append(count_file(path))
                done += 1
                advance(done, "")
            sums.append(summed(parts))
    return summed(sums)


def _ended(client: Client, flow_id: str) -> tuple[int, bool]:
    flow = client.flows.look(flow_id)
    assert flow is not None, "it is kept for as long as its result"
    return flow.ok + flow.bad, flow.state not in ("starting", "started")
