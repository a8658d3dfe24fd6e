"""The driver of `rsq demo`: a server, two workers, every file of the standard library, a kill -9, and the proof.

It prints nothing: what there is to see goes to a `Stage`, what came out is the `Report`.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rsq.broker.client import Client
from rsq.broker.dead_letters import dead_letters
from rsq.broker.status import counts
from rsq.demo.stage import Advance, Stage, library_files, place_of_run
from rsq.demo.tasks import index_file
from rsq.demo.workers import CHILDREN, WORKERS, end_of, follow, is_replaced, run_workers
from rsq.result import AsyncResult
from rsq.states import State

SUMMED = ("lines", "functions", "classes", "imports")

# Each fails in its own way, the last one because it is gone before anybody reads it.
BAD_FILES = {
    "unknown_encoding.py": b"# coding: klingon\n",
    "wrong_encoding.py": b"# This file says nothing of Latin-1,\n# but it holds\n\ncoffee = 'caf\xe9'\n",
    "unclosed.py": b"def lost(:\n    pass\n",
    "python2.py": b"print 'hello'\n",
    "vanished.py": b"import antigravity\n",
}

Outcome: TypeAlias = Mapping[str, int] | str
"""What became of a file: its counts, or the name of the error."""


@dataclass(frozen=True)
class Report:
    """What a run came to.

    dead          files that were given up, by the error
    retries       attempts after a first one
    duplicates    calls that were refused, since the same file had been sent before
    crashes       children that were killed and replaced
    interrupted   calls that they were running, and that were run again
    with_queue, without_queue    the sums over all files
    queue_s, direct_s            how long each of the two took
    problems      what is not as it must be; empty means that all is well
    log           the end of the workers' log when there are problems, else ''
    """

    files: int
    succeeded: int
    dead: dict[str, int]
    retries: int
    duplicates: int
    crashes: int
    interrupted: int
    tasks_per_s: float
    queue_s: float
    direct_s: float
    with_queue: dict[str, int]
    without_queue: dict[str, int]
    problems: list[str]
    log: str


def run(overrides: Mapping[str, Any], stage: Stage) -> Report:
    """Run the demo. Whatever happens, no process, no file and no key of it is left afterwards.

    overrides  settings from the command line; a `url` in them takes the place of the embedded server of its own
    Raises     BrokerError, SettingsError; WorkerLost: a worker ended, or nothing happens any more
    """
    with place_of_run(overrides) as place, ExitStack() as stack:
        home, client = place.home, place.client
        files = [*_bad_files(home / "bad"), *library_files()]
        stage.say(
            f"Indexing the standard library of Python {platform.python_version()}, one task a file.\n"
            f"  files    {len(files):,}, of which {len(BAD_FILES)} are bad: retried, then kept as dead letters\n"
            f"  server   {place.server}\n"
            f"  workers  {WORKERS} with {CHILDREN} child processes each; one child will be killed at work\n"
            f"  proof    the same count without a queue must come out equal\n"
        )
        log = home / "workers.log"
        workers = stack.enter_context(run_workers(client, log))

        started = time.monotonic()
        calls = [(path,) for path in files]
        results = index_file.map_async(calls)
        duplicates = sum(again.duplicate for again in index_file.map_async(calls))
        with stage.progress("through the queue", len(files)) as advance:
            victim = follow(lambda: _settled(client, len(files)), len(files), workers, advance, log)
        queue_s = time.monotonic() - started
        crashes = int(is_replaced(victim, workers[0]))
        queued = {path: _outcome_of(result) for path, result in zip(files, results, strict=True)}
        counters = _counters(client)
        dead_ids = _dead_ids(client)

        started = time.monotonic()
        with stage.progress("without a queue  ", len(files)) as advance:
            direct = _count_directly(files, advance)
        direct_s = time.monotonic() - started

        failed_ids = sorted(
            r.id for r, outcome in zip(results, queued.values(), strict=True) if isinstance(outcome, str)
        )
        settled = counters["succeeded"] + counters["dead"]
        checks = {
            f"{duplicates:,} of {len(files):,} duplicates were refused": duplicates == len(files),
            f"{settled:,} outcomes were committed for {len(files):,} files": settled == len(files),
            f"{len(dead_ids):,} dead letters stand for {len(failed_ids):,} files that failed": dead_ids == failed_ids,
            f"child {victim}, which was killed, has not been replaced": crashes == 1,
        }
        problems = [text for text, holds in checks.items() if not holds] + differences(queued, direct)
        return Report(
            files=len(files),
            succeeded=len(files) - len(failed_ids),
            dead=dict(Counter(outcome for outcome in queued.values() if isinstance(outcome, str)).most_common()),
            retries=counters["retried"],
            duplicates=duplicates,
            crashes=crashes,
            interrupted=counters["crashed"],
            tasks_per_s=round(len(files) / queue_s, 1),
            queue_s=round(queue_s, 2),
            direct_s=round(direct_s, 2),
            with_queue=sums(queued),
            without_queue=sums(direct),
            problems=problems,
            log=end_of(log) if problems else "",
        )


def sums(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Each count, summed over the files that have one."""
    counts = [outcome for outcome in outcomes.values() if not isinstance(outcome, str)]
    return {name: sum(count[name] for count in counts) for name in SUMMED}


def differences(queued: Mapping[str, Outcome], direct: Mapping[str, Outcome]) -> list[str]:
    """What differs between the outcomes by the queue and those without one, in words: sums, then files. Pure."""
    texts = [
        f"{name}: {number:,} through the queue, {without:,} without it"
        for (name, number), without in zip(sums(queued).items(), sums(direct).values(), strict=True)
        if number != without
    ]
    for path in sorted(queued.keys() | direct.keys()):
        outcome, without = queued.get(path, "no outcome"), direct.get(path, "no outcome")
        if outcome != without:
            texts.append(f"{path}: {outcome} through the queue, {without} without it")
    return texts


# -- the files


def _bad_files(folder: Path) -> list[str]:
    folder.mkdir()
    paths = [folder / name for name in BAD_FILES]
    for path in paths:
        path.write_bytes(BAD_FILES[path.name])
    paths[-1].unlink()
    return [str(path) for path in paths]


def _count_directly(files: Sequence[str], advance: Advance) -> dict[str, Outcome]:
    """The same task, as the plain function that it is."""
    outcomes: dict[str, Outcome] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, path in enumerate(files, 1):
            try:
                outcomes[path] = index_file(path)
            except Exception as error:
                outcomes[path] = type(error).__name__
            advance(number, "")
    return outcomes


def _outcome_of(result: AsyncResult[dict[str, int]]) -> Outcome:
    record = result.result_record()
    if record is None:
        return "no outcome"
    if record.error is not None:
        return str(record.error["type"]).rpartition(".")[2]
    return record.value if record.state is State.SUCCESS else str(record.state)


def _settled(client: Client, files: int) -> tuple[int, bool]:
    counters = _counters(client)
    settled = counters["succeeded"] + counters["dead"]
    return settled, settled >= files


def _counters(client: Client) -> Counter[str]:
    with client.link() as link:
        return Counter(counts(link, client.queue(index_file.options.queue)).counters)


def _dead_ids(client: Client) -> list[str]:
    with client.link() as link:
        return sorted(letter.id for letter in dead_letters(link, client.queue(index_file.options.queue)))
