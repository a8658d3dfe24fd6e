"""``python -m tests.chaos.rolling``: worker after worker replaced under load, and the longest gap between completions.

Four workers of two children each; a steady stream of calls of 10 ms; each worker is replaced by a new one and told to
stop by SIGTERM, and then the next, as in the deploy of a new version. Exit code 1 where an attempt was wasted or a call
was lost.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import click

from rsq import AsyncResult
from tests.chaos import journal, tasks
from tests.chaos.fleet import Fleet
from tests.chaos.journal import Journal
from tests.helpers import wait_until
from tests.integration.conftest import Worker
from tests.servers import Server, find_binary

WORKERS = 4
BODY_S = 0.01
SENDS_PER_S = 100
LEASE_S = 10.0
WAIT_S = 60.0


class Stream:
    """Sends calls evenly, in a thread."""

    def __init__(self) -> None:
        self.handles: list[AsyncResult[Any]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        for serial in count():
            if self._ended.wait(1 / SENDS_PER_S):
                return
            self.handles.append(tasks.plain.delay(serial, BODY_S))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def has_left(fleet: Fleet, worker: Worker) -> bool:
    fleet.tend()
    return fleet.has_left(worker)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often all are replaced.")
@click.option("--server", type=click.Choice(["redis", "valkey", "redis62"]), help="Default: what the tests run on.")
def main(rounds: int, server: str | None) -> None:
    """Replace all workers in turn, and tell how steadily calls went on meanwhile."""
    directory = Path(tempfile.mkdtemp(prefix="rsq-rolling-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        (directory / "server").mkdir()
        redis = stack.enter_context(Server(find_binary(server), directory / "server", appendonly=True))
        log = Journal(directory / "journal")
        stack.callback(log.close)
        tasks.app.configure(url=redis.url)
        stack.callback(tasks.app.close)
        fleet = Fleet(WORKERS, redis, log, directory, LEASE_S)
        stack.callback(fleet.close)
        wait_until(fleet.all_ready, WAIT_S, "the workers to begin")
        stream = Stream()
        wait_until(lambda: len(stream.handles) >= SENDS_PER_S, WAIT_S, "the calls to flow")
        began = time.monotonic()
        for place in fleet.places * rounds:
            old = place.worker
            fleet.replace(place)
            wait_until(fleet.all_ready, WAIT_S, "the new worker to begin")
            fleet.leave(old)
            wait_until(partial(has_left, fleet, old), WAIT_S, "the old worker to end")
        ended = time.monotonic()
        stream.end()
        for handle in stream.handles:
            handle.get(timeout=WAIT_S)
        left = fleet.stop()
        records = journal.read(directory / "journal")
        started = [record for record in records if record["what"] == "started"]
        finished = [
            record["at"] for record in records if record["what"] == "finished" and began <= record["at"] <= ended
        ]
        problems = [record["text"] for record in records if record["what"] == "problem"] + left
    gap = max(later - earlier for earlier, later in pairwise(finished))
    wasted = len(started) - len(stream.handles)
    click.echo(f"{rounds * WORKERS} workers replaced in {ended - began:.1f} s, {len(stream.handles)} calls, each ended")
    click.echo(f"longest gap between two completions: {gap * 1000:.0f} ms")
    click.echo(f"runs beyond one for each call: {wasted}")
    for problem in problems:
        click.echo(problem)
    sys.exit(1 if wasted or problems else 0)


main()
