"""Other task queues, in the same run on the same server: each in a virtualenv of its own, by a script of its own.

The scripts lie in `benchmarks/peers/` of a checkout and know nothing of rsq; a peer that cannot be installed or run is
reported and stops nobody. Their clock runs from one body of a task to the last one, so it favours them a little: what
they still have to write when the last body has run is not counted, while rsq's ends when the server has everything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rsq
from rsq.bench.report import Figure, Sample
from rsq.bench.rig import Rig
from rsq.errors import SettingsError

PEERS: dict[str, tuple[str, ...]] = {
    "celery": ("celery[redis]", "hiredis"),
    "dramatiq": ("dramatiq[redis]", "hiredis"),
    "huey": ("huey", "redis", "hiredis"),
    "saq": ("saq[redis]", "hiredis", "typing-extensions", "uvloop"),
    "taskiq-redis": ("taskiq-redis", "hiredis", "uvloop"),
    "streaq": ("streaq", "hiredis", "uvloop"),
    "docket": ("pydocket", "hiredis", "uvloop"),
    "rq": ("rq", "hiredis"),
    "arq": ("arq", "hiredis", "uvloop"),
}
"""What is installed for each; the first is the peer itself."""

SCENARIO = "peers"
OURS = {
    "enqueue one by one": ("enqueue-single", "delay"),
    "enqueue in bulk": ("enqueue-bulk", "map_async"),
    "drain, results kept": ("drain", "results kept, 1 at work"),
    "drain, results ignored": ("drain", "results ignored, 1 at work"),
    "round trip p50": ("latency", "delay and get, p50"),
    "round trip p99": ("latency", "delay and get, p99"),
}
"""The figures of a peer, and the same ones of rsq, as scenario and figure."""

OURS_OF_FLOWS = {
    "steps of chains of 100": ("flows", "steps, 1,000 chains of 100 at once"),
    "members of a chord": ("flows", "members of a chord of 30,000"),
}
"""The same of flows, for peers that have such."""

PLAIN, OF_FLOWS = "plain", "flows"
"""What of a peer is measured."""

TASKS, TRIPS = 3000, 300
INSTALL_S, RUN_S = 600.0, 600.0

CACHE = Path("~/.cache/rsq-bench")


@dataclass(frozen=True)
class Peer:
    """One that is installed.

    version  its package and version, as it calls itself
    """

    name: str
    python: Path
    scripts: Path
    version: str

    def measure(self, rig: Rig, parts: Sequence[str], trouble: list[str]) -> Iterator[Sample]:
        """One repetition of these parts; what went wrong is added to `trouble`."""
        command = [str(self.python), "-m", "peers", self.name.replace("-", "_"), rig.url]
        command += [str(rig.size(TASKS)), str(rig.size(TRIPS)), *parts]
        try:
            done = subprocess.run(command, cwd=self.scripts.parent, capture_output=True, text=True, timeout=RUN_S)
        except subprocess.TimeoutExpired:
            trouble.append(f"{self.name}: hangs")
            return
        finally:
            rig.empty()
        if done.returncode:
            trouble.append(f"{self.name}: {last_line(done.stderr)}")
        for line in done.stdout.splitlines():
            row = json.loads(line) if line.startswith("{") else {}
            if "value" in row:
                yield Sample(f"{self.name}: {row['figure']}", row["unit"], row["better"], row["value"])
            elif "error" in row:
                trouble.append(f"{self.name}: {row['figure']}: {row['error']}")


def chosen(names: str) -> list[str]:
    """The peers of a list with commas; ``all`` is every one. Raises SettingsError for an unknown one."""
    wanted = list(PEERS) if names == "all" else [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        raise SettingsError(f"no peer is called {unknown[0]!r}: give some of {', '.join(PEERS)}, or all")
    return wanted


def find_scripts() -> Path:
    """The directory of the scripts. Raises SettingsError outside of a checkout."""
    for root in (Path(rsq.__file__).parents[1], Path.cwd()):
        if (root / "benchmarks" / "peers" / "__main__.py").is_file():
            return root / "benchmarks" / "peers"
    raise SettingsError("--peers needs a checkout of rsq: the scripts in benchmarks/peers/ are not in its package")


def install(names: Iterable[str], directory: Path, trouble: list[str]) -> Iterator[Peer]:
    """Each of the peers, installed into `directory` where it is not yet; who cannot be is added to `trouble`."""
    scripts = find_scripts()
    for name in names:
        home = directory.expanduser() / name
        python = home / "bin" / "python"
        try:
            if not (home / "installed").exists():
                run_quietly(sys.executable, "-m", "venv", "--clear", str(home))
                run_quietly(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[name])
                (home / "installed").touch()
            package = PEERS[name][0].partition("[")[0]
            code = f"from importlib.metadata import version; print(version({package!r}))"
            yield Peer(name, python, scripts, f"{package} {run_quietly(str(python), '-c', code).strip()}")
        except (OSError, subprocess.SubprocessError) as error:
            why = last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
            trouble.append(f"{name}: cannot be installed: {why}")


def run_quietly(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S).stdout


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def side_by_side(figures: Iterable[Figure], names: Mapping[str, tuple[str, str]] = OURS) -> dict[str, dict[str, float]]:
    """For each of these who came to what: rsq, then its floor as ``bare redis-py``, then the peers. Pure."""
    ours = {(figure.scenario, figure.name): figure for figure in figures}
    table: dict[str, dict[str, float]] = {}
    for name, key in names.items():
        row = table.setdefault(name, {})
        if key in ours:
            row["rsq"] = ours[key].value
            floor = ours[key].floor
            if floor is not None:
                row["bare redis-py"] = floor
    for (scenario, name), figure in ours.items():
        who, _, what = name.partition(": ")
        if scenario == SCENARIO and what in table:
            table[what][who] = figure.value
    return table
