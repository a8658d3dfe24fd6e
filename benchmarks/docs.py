"""`python -m benchmarks --write-docs RUN.json...`: the tables and the pictures of docs/performance.md, from saved runs.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. Those whose figures no run has stay as they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rsq.bench.cluster import CLUSTER
from rsq.bench.flows import FLOWS
from rsq.bench.growth import GROWTH, LONG_RUN, RESIDENT
from rsq.bench.peers import OURS, OURS_OF_FLOWS, side_by_side
from rsq.bench.picture import draw, draw_line, number
from rsq.bench.report import Figure, from_json

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "performance.md", DOCS / "_static" / "peers.svg"
MEMORY = "memory.svg"
STEPS = [LONG_RUN // 20 * number for number in range(1, 21)]
"""When a long run was weighed; the table has every fifth, and the first, with which the others are compared."""
TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BARE = "bare redis-py"


@dataclass(frozen=True)
class Goal:
    """One row of the table of goals.

    of     what the goal is a bound of: ``ratio`` (to the floor) or ``value``
    bound  at least so much where more is better, else at most
    times  the same for what the best peer does, as its share
    """

    title: str
    scenario: str
    name: str
    of: str
    bound: float
    times: float | None = None

    @property
    def peers_name(self) -> str | None:
        return next((name for name, key in OURS.items() if key == (self.scenario, self.name)), None)


GOALS = (
    Goal("drain, one process, results kept", "drain", "results kept, 1 at work", "ratio", 0.45, 10),
    Goal("drain, one process, results ignored", "drain", "results ignored, 1 at work", "ratio", 0.45, 8),
    Goal("drain, two processes to one", "drain", "results kept, 2 at work to 1", "value", 1.5),
    Goal("enqueue one by one, `delay`", "enqueue-single", "delay", "ratio", 1.2, 1),
    Goal("enqueue in bulk, `map_async`", "enqueue-bulk", "map_async", "ratio", 0.7, 6),
    Goal("idle round trip, p50", "latency", "delay and get, p50", "ratio", 1.6, 1),
    Goal("idle round trip, p99", "latency", "delay and get, p99", "ratio", 2, 1),
    Goal("worker's processor time for 1,000 tasks", "drain", "results kept: worker CPU for 1,000", "value", 0.04),
    Goal("bytes of a queued task", "memory", "a task that is queued", "value", 130),
    Goal("commands a task, scripts' own too", "drain", "results kept: commands a task", "value", 5),
    Goal("socket reads a task", "drain", "results kept: socket reads a task", "value", 0.05),
    Goal("requests of an idle worker with one child, a second", "footprint", "idle: requests", "value", 2),
    Goal("`import rsq`, to `import redis`", "startup", "import rsq, against import redis", "ratio", 1.2),
    Goal("server busy with 1,000 idle workers, %", "idle-workers", "1,000 idle workers: server", "value", 5),
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def goals(figures: Mapping[tuple[str, str], Figure]) -> str:
    """Each goal with what was measured."""
    compared = side_by_side(figures.values())
    rows = []
    for goal in GOALS:
        figure = figures.get((goal.scenario, goal.name))
        if figure is None:
            continue
        more = figure.better == "more"
        ratio = median(figure.ratios) if figure.ratios else None
        measured = ratio if goal.of == "ratio" else figure.value
        met = [measured is not None and (measured >= goal.bound if more else measured <= goal.bound)]
        row = [goal.title, text(figure), number(figure.floor) if figure.floor else ""]
        row += [f"{ratio:.2f}" if ratio else "", bound(more, goal.bound, " x" if goal.of == "ratio" else "")]
        peers = {who: each for who, each in compared.get(goal.peers_name or "", {}).items() if who not in ("rsq", BARE)}
        if peers and goal.times is not None:
            best = (max if more else min)(peers, key=peers.__getitem__)
            times = figure.value / peers[best] if more else peers[best] / figure.value
            met.append(times >= goal.times)
            row += [f"{best} {number(peers[best])}", f"{times:.1f} x", bound(True, goal.times, " x")]
        else:
            row += ["", "", ""]
        rows.append([*row, "yes" if all(met) else "no"])
    head = ["figure", "rsq", "floor", "to the floor", "goal", "best peer", "better by", "goal", "met"]
    return table(head, rows) if rows else ""


def peers(figures: Mapping[tuple[str, str], Figure], ours: Mapping[str, tuple[str, str]]) -> str:
    """Everyone's figures, a row for each."""
    compared = side_by_side(figures.values(), ours)
    names = list(dict.fromkeys(who for row in compared.values() for who in row))
    if {*names} <= {"rsq", BARE}:
        return ""
    rows = [[who, *(number(row[who]) if who in row else "" for row in compared.values())] for who in names]
    units = {name: "ms" if name.startswith("round trip") else "tasks/s" for name in compared}
    return table(["", *(f"{name}, {units[name]}" for name in compared)], rows)


def growth(figures: Mapping[tuple[str, str], Figure]) -> str:
    """The figures of growth, and what they were at the small size."""
    return _compared(figures, GROWTH)


def flows(figures: Mapping[tuple[str, str], Figure]) -> str:
    """The figures of flows, and what the same number of plain tasks came to."""
    return _compared(figures, FLOWS)


def _compared(figures: Mapping[tuple[str, str], Figure], scenarios: Collection[str]) -> str:
    drawn = {RESIDENT.format(tasks) for tasks in STEPS[1:] if tasks % STEPS[4]}
    rows = [
        [
            figure.name,
            text(figure),
            number(figure.floor) if figure.floor else "",
            f"{median(figure.ratios):.2f}" if figure.ratios else "",
        ]
        for figure in figures.values()
        if figure.scenario in scenarios and figure.name not in drawn
    ]
    return table(["figure", "measured", "against", "ratio"], rows) if rows else ""


def about(runs: Sequence[Mapping[str, Any]], before: Sequence[str]) -> str:
    """How the runs were made, in place of the lines about the same scenarios; of others those `before` stand."""
    lines = dict(line.split(": ", 1) for line in before)
    for run in runs:
        what = ", ".join(dict.fromkeys(row["scenario"] for row in run["figures"]))
        lines[f"- {what}"] = (
            f"{run['server']} over {run['transport']} without a file on disk, Python {run['python']}, "
            f"{run['processors']} processors with a load of {run['load']:.1f} from other work when it began, "
            f"{run['repetitions']} {'repetition' if run['repetitions'] == 1 else 'repetitions'}, {run['began'][:10]}"
            + (f"; {', '.join(run['peers'])}" if "peers" in run else "")
            + "".join(f"; {line}" for line in run.get("trouble", ()))
            + "\n"
        )
    return "".join(f"{what}: {how}" for what, how in lines.items())


def bound(more: bool, value: float, unit: str) -> str:
    return f"{'>=' if more else '<='} {value:g}{unit}"


def text(figure: Figure) -> str:
    return f"{number(figure.value)} {figure.unit}".strip()


def write(paths: Sequence[Path]) -> None:
    """Put the figures of these runs into the page, a later one before an earlier one."""
    runs = [json.loads(path.read_text()) for path in paths]
    figures = {(figure.scenario, figure.name): figure for run in runs for figure in from_json(run)}
    tables: dict[str, Callable[[], str]] = {
        "goals": lambda: goals(figures),
        "peers": lambda: peers(figures, OURS),
        "flow-peers": lambda: peers(figures, OURS_OF_FLOWS),
        "flows": lambda: flows(figures),
        "cluster": lambda: _compared(figures, CLUSTER),
        "growth": lambda: growth(figures),
    }

    def made(match: re.Match[str]) -> str:
        name = match[2]
        body = about(runs, match[3].splitlines(keepends=True)) if name == "about" else tables[name]()
        return f"{match[1]}{body}{match[4]}" if body else match[0]

    PAGE.write_text(TABLE.sub(made, PAGE.read_text()))
    if peers(figures, OURS):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(draw(side_by_side(figures.values())))
    weighed = [(tasks, figures.get(("long-run", RESIDENT.format(tasks)))) for tasks in STEPS]
    if points := [(float(tasks), figure.value) for tasks, figure in weighed if figure is not None]:
        PICTURE.parent.mkdir(exist_ok=True)
        title = "Resident memory of a child, MB, by the tasks that it has run"
        (PICTURE.parent / MEMORY).write_text(draw_line(title, points))


def main() -> None:
    if not sys.argv[2:]:
        sys.exit("give the runs to write, as `rsq bench --save` made them")
    write([Path(argument) for argument in sys.argv[2:]])
