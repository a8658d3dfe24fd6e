"""The log of a worker, whatever its app and its reader do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsq import App
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import MakeApp, StartWorker, child_pids, kill, settled

SILENCES = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "handlers": {"err": {"class": "logging.StreamHandler"}},
    "root": {"level": "INFO", "handlers": ["err"]},
})
"""


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_an_app_that_configures_logging_silences_nobody(
    app: App, start_worker: StartWorker, make_app: MakeApp, pool: str
) -> None:
    """`dictConfig` disables all loggers that it does not name, by default."""
    worker = start_worker("-P", pool, concurrency=1, name=make_app(SILENCES))
    assert app.send_task("tests.integration.tasks.add", (1, 2)).get(timeout=30) == 3
    wait_until(lambda: "succeeded" in worker.log(), 30, "the line about it")
    assert worker.stop() == 0


def test_a_reader_that_stands_still_stops_nobody(app: App, url: str, tmp_path: Path) -> None:
    """Ctrl-S in a terminal, or a log driver that hangs."""
    read, write = os.pipe()
    arguments = ["-A", "tests.integration.tasks", "worker", "-c", "2", "--lease", "3"]
    env = {**os.environ, "RSQ_URL": url}
    worker = subprocess.Popen([sys.executable, "-m", "rsq", *arguments], env=env, stderr=write)
    os.close(write)
    try:
        tasks.add.map_async([(number, 1) for number in range(3000)])
        wait_until(lambda: settled(app), 120, "all to be settled")
        before = child_pids(worker.pid)
        kill(before[0])
        wait_until(lambda: set(child_pids(worker.pid)) - set(before), 60, "the successor")
        assert tasks.add.delay(1, 2).get(timeout=60) == 3
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        if worker.poll() is None:
            for pid in (worker.pid, *child_pids(worker.pid)):
                kill(pid)
            worker.wait()
        os.close(read)
