"""`rsq bench`: measure rsq against its floor, against its peers, and against an older run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import click

from rsq import __version__
from rsq.bench.cluster import CLUSTER
from rsq.bench.events import EVENTS
from rsq.bench.flows import FLOWS
from rsq.bench.growth import GROWTH
from rsq.bench.outputs import OUTPUTS
from rsq.bench.peers import (
    CACHE,
    OF_FLOWS,
    OURS,
    PEERS,
    PLAIN,
    SCENARIO,
    Peer,
    chosen,
    find_scripts,
    install,
    side_by_side,
)
from rsq.bench.picture import draw
from rsq.bench.report import Change, Figure, Sample, compare, from_json, gather, to_json
from rsq.bench.rig import Rig
from rsq.bench.scenarios import SCENARIOS
from rsq.cli.common import json_option
from rsq.cli.out import document, progress, say, table
from rsq.errors import SettingsError

QUICK = 0.1
ALL = SCENARIOS | OUTPUTS | FLOWS | EVENTS | CLUSTER | GROWTH


def _described(scenarios: Mapping[str, Callable[[Rig], Iterator[Sample]]]) -> str:
    """The scenarios as lines of the help text below, with its indentation: else click cannot tell where that ends."""
    width = max(map(len, ALL))
    return "\n    ".join(f"  {name:<{width}}  {scenario.__doc__}" for name, scenario in scenarios.items())


@click.command(
    help=f"""Measure rsq, and beside each figure its floor: the same work by a bare redis-py loop, in the same run.

    It starts a server of its own, on TCP and with no file on disk, and removes it. On a machine with other work trust
    the ratios: both sides of one are measured in turn. The spread is from the least to the greatest repetition.

    \b
    Example:
      rsq bench --only drain --save new.json
      rsq bench --only drain --compare old.json
      rsq bench --peers all --picture peers.svg

    \b
    Scenarios:
    {_described(SCENARIOS)}

    \b
    Scenarios of outputs:
    {_described(OUTPUTS)}

    \b
    Scenarios of flows:
    {_described(FLOWS)}

    \b
    Scenarios of streams:
    {_described(EVENTS)}

    \b
    Scenarios of clusters:
    {_described(CLUSTER)}

    \b
    Scenarios of growth, which take a minute or two each:
    {_described(GROWTH)}
    """
)
@click.option("--only", multiple=True, type=click.Choice(list(ALL)), help="This scenario alone; repeatable.")
@click.option("--growth", is_flag=True, help="The scenarios of growth instead of the usual ones.")
@click.option("--quick", is_flag=True, help="A tenth of the tasks: to see that it works, not how fast.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Repetitions of each scenario.")
@click.option(
    "--server", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Program of the server to take."
)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the run as JSON to this file.")
@click.option("--compare", "old", type=click.File(), help="Show the change against a run that was saved.")
@click.option(
    "--peers",
    "peers",
    metavar="NAMES",
    help=f"Measure other queues too: some of {', '.join(PEERS)}, with commas, or all. Each is installed from PyPI into "
    "a virtualenv of its own. Needs a checkout.",
)
@click.option(
    "--peers-dir", type=click.Path(path_type=Path), default=CACHE, show_default=True, help="Where they are installed."
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw rsq and its peers, as an SVG.")
@json_option
def bench(
    only: tuple[str, ...],
    growth: bool,
    quick: bool,
    repeat: int,
    server: Path | None,
    save: Path | None,
    old: TextIO | None,
    peers: str | None,
    peers_dir: Path,
    picture: Path | None,
    as_json: bool,
) -> None:
    before = _read(old) if old is not None else None
    trouble: list[str] = []
    others = {peer.name: peer for peer in _installed(chosen(peers), peers_dir, trouble)} if peers else {}
    ours = {scenario for scenario, _ in OURS.values()} if peers else set(SCENARIOS)
    names = [name for name in ALL if (name in only if only else name in (GROWTH if growth else ours))]
    parts = [PLAIN] if not names or set(names) - {*FLOWS} else []
    parts += [OF_FLOWS] if OF_FLOWS in names else []
    samples: list[tuple[str, Sample]] = []
    with Rig(server, QUICK if quick else 1.0) as rig:
        info = rig.info("server")
        about: dict[str, Any] = {
            "rsq": __version__,
            "python": platform.python_version(),
            "server": f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}",
            "transport": "tcp",
            "appendonly": False,
            "processors": os.cpu_count(),
            "load": os.getloadavg()[0],
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "repetitions": repeat,
            "quick": quick,
        }
        if others:
            about["peers"] = [peer.version for peer in others.values()]
        steps = [(turn, name) for turn in range(repeat) for name in (*names, *others)]
        with progress("measuring", len(steps), err=True) as advance:
            for number, (turn, name) in enumerate(steps):
                advance(number, f"{name}, repetition {turn + 1}")
                rig.turn = turn
                if name in others:
                    samples += [(SCENARIO, sample) for sample in others[name].measure(rig, parts, trouble)]
                else:
                    samples += [(name, sample) for sample in ALL[name](rig)]
    figures = gather(samples)
    changes = None if before is None else compare(figures, before)
    if trouble:
        about["trouble"] = list(dict.fromkeys(trouble))
    made = to_json(about, figures) | ({} if changes is None else {"changes": [vars(each) for each in changes]})
    if save is not None:
        save.write_text(json.dumps(made, indent=1) + "\n")
    if picture is not None:
        picture.write_text(draw(side_by_side(figures)))
    if as_json:
        document(made)
        return
    told = {name: value for name, value in about.items() if name != "trouble"}
    say(", ".join(f"{name} {_text(value)}" for name, value in told.items()), "")
    _print_figures(figures)
    if changes is not None:
        _print_changes(changes)
    for line in about.get("trouble", ()):
        say(line, err=True)


def _installed(names: Sequence[str], directory: Path, trouble: list[str]) -> Iterator[Peer]:
    find_scripts()  # or say at once that they are not there
    for name in names:
        say(f"preparing {name}", err=True)  # it may take a minute
        yield from install([name], directory, trouble)


def _text(value: object) -> str:
    return " + ".join(value) if isinstance(value, list) else str(value)


def _read(file: TextIO) -> list[Figure]:
    try:
        return from_json(json.load(file))
    except ValueError:
        raise SettingsError(f"{file.name} is no JSON: give a file that `rsq bench --save` wrote") from None


def _print_figures(figures: Sequence[Figure]) -> None:
    rows = [
        (
            figure.scenario,
            figure.name,
            f"{_number(figure.value)} {figure.unit}".strip(),
            "" if figure.floor is None else _number(figure.floor),
            f"{median(figure.ratios):.2f}" if figure.ratios else "",
            f"{figure.spread:.0%}",
        )
        for figure in figures
    ]
    table(("SCENARIO", "FIGURE", "RSQ", "FLOOR", "RATIO", "SPREAD"), rows, right=[2, 3, 4, 5])


def _print_changes(changes: Sequence[Change]) -> None:
    rows = [
        (each.scenario, each.name, f"{each.change:+.1%}", f"{each.low:+.1%} to {each.high:+.1%}", each.verdict)
        for each in changes
    ]
    say("", "Against the older run: of the ratio where there is a floor, else of the figure")
    table(("SCENARIO", "FIGURE", "CHANGE", "BETWEEN", ""), rows, right=[2, 3])


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
