"""`python -m benchmarks.pairs --base REV`: this checkout against an older commit, in alternating runs.

The base is checked out into a temporary worktree and installed into an environment of its own, with the same versions
of everything else as here. Each pair is one short run of either, right after the other, and the order changes with each
pair: what slows the machine slows both. Told is the median of the pairs' ratios, turned so that less than 1 is worse.
Exit code 1 where one that counts is below `--least`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import click

from rsq.bench.picture import number
from rsq.bench.report import Figure, from_json

HERE = Path(__file__).parents[1]
QUICK = ("latency", "footprint")
WHOLE = ("enqueue-single", "enqueue-bulk", "drain")
"""A quick run of these is as short as one collection of garbage, which falls into it or not."""
SCENARIOS = (*WHOLE, *QUICK)

COUNTS = frozenset(
    {
        ("enqueue-single", "delay"),
        ("enqueue-bulk", "map_async"),
        ("drain", "results kept, 1 at work"),
        ("drain", "results kept, 2 at work"),
        ("drain", "results kept: worker CPU for 1,000"),
        ("drain", "results kept: server CPU for 1,000"),
        ("drain", "results ignored, 1 at work"),
        ("drain", "results ignored, 2 at work"),
        ("latency", "delay and get, p50"),
        ("latency", "delay and aget, p50"),
        ("footprint", "idle: requests"),
        ("footprint", "idle: commands, those in scripts too"),
        ("footprint", "idle: processor time of the child"),
        ("footprint", "idle: processor time of the supervisor"),
    }
)
"""Figures that decide. The others are shown: tails and memory of so short a run tell little."""


@dataclass(frozen=True)
class Row:
    """One figure over all pairs. `ratio` is the median of new to base, turned where less is better."""

    scenario: str
    name: str
    unit: str
    base: float
    new: float
    ratio: float
    low: float
    high: float

    @property
    def counts(self) -> bool:
        return (self.scenario, self.name) in COUNTS


def rows(pairs: Sequence[tuple[Sequence[Figure], Sequence[Figure]]]) -> list[Row]:
    """The figures that both sides of each pair (base, new) have. Pure."""
    values: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    kinds: dict[tuple[str, str], Figure] = {}
    for base, new in pairs:
        before = {(figure.scenario, figure.name): figure for figure in base}
        for figure in new:
            key = figure.scenario, figure.name
            if key in before and min(figure.value, before[key].value) > 0:
                kinds[key] = figure
                values[key].append((before[key].value, figure.value))
    made = []
    for key, both in values.items():
        more = kinds[key].better == "more"
        ratios = [new / base if more else base / new for base, new in both]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        base_value, new_value = (median(side) for side in zip(*both, strict=True))
        made.append(Row(*key, kinds[key].unit, base_value, new_value, median(ratios), low, high))
    return made


def table(some: Sequence[Row], least: float) -> str:
    head = ("scenario", "figure", "base", "new", "median ratio", "half lie from", "to", "")
    cells = [head] + [
        (
            row.scenario,
            row.name,
            f"{number(row.base)} {row.unit}",
            f"{number(row.new)} {row.unit}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f}",
            f"{row.high:.3f}",
            "" if not row.counts else "ok" if row.ratio >= least else "WORSE",
        )
        for row in some
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


@contextmanager
def checked_out(revision: str) -> Iterator[tuple[Path, Path]]:
    """A worktree of this commit, and the Python of its environment; both go at the end."""
    with TemporaryDirectory(prefix="rsq-pairs-") as home:
        tree, environment = Path(home, "tree"), Path(home, "env")
        _run("git", "-C", HERE, "worktree", "add", "--detach", tree, revision)
        try:
            _run(sys.executable, "-m", "venv", environment)
            python = environment / "bin" / "python"
            frozen = _run(sys.executable, "-m", "pip", "freeze", "--exclude-editable")
            same = Path(home, "same.txt")
            same.write_text("".join(f"{line}\n" for line in frozen.splitlines() if "==" in line))
            _run(python, "-m", "pip", "install", "-q", "-c", same, "-e", f"{tree}[embedded]")
            yield tree, python
        finally:
            _run("git", "-C", HERE, "worktree", "remove", "--force", tree)


def measure(tree: Path, python: Path, server: Path | None, scenarios: Sequence[str], file: Path) -> list[Figure]:
    figures: list[Figure] = []
    for kind, how in ((WHOLE, ()), (QUICK, ("--quick",))):
        only = [part for name in scenarios if name in kind for part in ("--only", name)]
        if only:
            chosen = ["--server", str(server)] if server else []
            _run(python, "-m", "rsq", "bench", *how, "--repeat", "1", *only, *chosen, "--save", file, cwd=tree)
            figures += from_json(json.loads(file.read_text()))
    return figures


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


@click.command()
@click.option("--base", required=True, help="The commit to compare with.")
@click.option("--pairs", "count", type=click.IntRange(1), default=20, show_default=True, help="Runs of each side.")
@click.option("--least", type=float, default=0.97, show_default=True, help="The median ratio that is good enough.")
@click.option("--only", multiple=True, type=click.Choice(SCENARIOS), help="This scenario alone; repeatable.")
@click.option("--server", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Program of the server.")
def main(base: str, count: int, least: float, only: tuple[str, ...], server: Path | None) -> None:
    """This checkout against an older commit: the median ratios of alternating pairs of runs."""
    pairs: list[tuple[list[Figure], list[Figure]]] = []
    with TemporaryDirectory(prefix="rsq-pairs-runs-") as home, checked_out(base) as (tree, python):
        sides: Mapping[str, tuple[Path, Path]] = {"base": (tree, python), "new": (HERE, Path(sys.executable))}
        with click.progressbar(range(count), file=sys.stderr, label="pairs") as numbers:
            for turn in numbers:
                found: dict[str, list[Figure]] = {}
                for side in sorted(sides, reverse=turn % 2 == 1):
                    found[side] = measure(*sides[side], server, only or SCENARIOS, Path(home, f"{side}.json"))
                pairs.append((found["base"], found["new"]))
    told = rows(pairs)
    if missing := {key for key in COUNTS if key[0] in (only or SCENARIOS)} - {(row.scenario, row.name) for row in told}:
        raise click.ClickException(f"figures that decide were not measured by both: {sorted(missing)}")
    click.echo(f"{count} pairs, {base} and this checkout; ratios above 1 are better\n")
    click.echo(table(told, least))
    sys.exit(any(row.counts and row.ratio < least for row in told))


if __name__ == "__main__":
    main()
