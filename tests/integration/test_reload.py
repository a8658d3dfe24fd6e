"""`rsq worker --reload`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rsq import App
from rsq.cli.main import main
from tests.helpers import wait_until
from tests.integration.conftest import StartWorker, totals

CODE = """
from rsq import App

app = App("live")


@app.task(name="answer")
def answer():
    return {answer!r}
"""


LEAVES_SLOWLY = """
import time
from rsq.signals import child_exit


@child_exit.connect
def wait(**rest):
    time.sleep(1.5)
"""


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_children_load_the_code_anew_when_it_changes(
    app: App, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    code = tmp_path / "live.py"
    code.write_text(CODE.format(answer=1))
    monkeypatch.chdir(tmp_path)
    # No bytecode: a file that changes within a second would keep its old one.
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *(part for part in sys.path if part)])
    worker = start_worker(
        "-P", pool, "--reload", concurrency=2, name="live", PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=path
    )
    assert app.send_task("answer").get(timeout=20) == 1
    wait_until(lambda: "watching the code" in worker.log(), 30, "the watching to begin")
    code.write_text(CODE.format(answer="two"))
    wait_until(lambda: app.send_task("answer").get(timeout=20) == "two", 30, "the new code to run")
    code.write_text("this is no Python")
    wait_until(lambda: "cannot load the app" in worker.log(), 30, "the mistake to be told")
    code.write_text(CODE.format(answer=3))
    assert wait_until(lambda: app.send_task("answer").get(timeout=30) == 3, 30, "the mended code to run")
    assert worker.stop() == 0
    assert totals(app).counters.get("crashed", 0) == 0
    assert worker.log().count("ERROR") == 1


def test_ctrl_c_of_a_terminal_is_for_the_worker_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "live.py").write_text(CODE.format(answer=1) + LEAVES_SLOWLY)
    log = tmp_path / "log"
    path = os.pathsep.join(part for part in sys.path if part)
    with log.open("w") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-m", "rsq", "-A", "live", "--url", url, "worker", "-c", "1", "--reload"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            stderr=stderr,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "watching the code" in log.read_text(), 30, "the watching to begin")
        os.killpg(worker.pid, signal.SIGINT)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert "ERROR" not in log.read_text()


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr("rsq.worker.reload.find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["-A", "tests.integration.tasks", "--url", url, "worker", "--reload"])
    assert done.exit_code == 2
    assert "pip install 'rsq[reload]'" in done.output
    done = CliRunner().invoke(main, ["-A", "tests.integration.tasks", "worker", "--reload", "-P", "solo"])
    assert done.exit_code == 2
    assert "--reload needs a supervisor" in done.output
