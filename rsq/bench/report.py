"""Figures: what the repetitions of a run came to, as medians, ratios and changes against an older run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from rsq.errors import SettingsError

Better = Literal["more", "less"]


@dataclass(frozen=True)
class Sample:
    """One measurement of one repetition. `floor` is the same by the bare client, at the same time; None has none."""

    name: str
    unit: str
    better: Better
    value: float
    floor: float | None = None


@dataclass
class Figure:
    """One figure over all repetitions."""

    scenario: str
    name: str
    unit: str
    better: Better
    values: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def floor(self) -> float | None:
        return median(self.floors) if self.floors else None

    @property
    def ratios(self) -> list[float]:
        """Value to floor, repetition by repetition: what slows the machine slows both."""
        return [value / floor for value, floor in zip(self.values, self.floors, strict=False) if floor]

    @property
    def measures(self) -> list[float]:
        """What is compared between runs: ratios where there is a floor, else the values."""
        return self.ratios or self.values

    @property
    def spread(self) -> float:
        """From the least to the greatest of the measures, as a share of their median."""
        middle = median(self.measures)
        return (max(self.measures) - min(self.measures)) / middle if middle else 0.0


@dataclass(frozen=True)
class Change:
    """A figure against the same figure of an older run, as shares: 0.1 is 10 % more.

    low, high  the change between the repetitions that lie nearest and farthest
    verdict    ``better``, ``worse``, or ``same`` where the repetitions of both runs overlap
    """

    scenario: str
    name: str
    change: float
    low: float
    high: float
    verdict: str


def gather(samples: Iterable[tuple[str, Sample]]) -> list[Figure]:
    """Samples of all repetitions, with their scenario's name, as figures in order of first appearance."""
    figures: dict[tuple[str, str], Figure] = {}
    for scenario, sample in samples:
        made = Figure(scenario, sample.name, sample.unit, sample.better)
        figure = figures.setdefault((scenario, sample.name), made)
        figure.values.append(sample.value)
        if sample.floor is not None:
            figure.floors.append(sample.floor)
    return list(figures.values())


def compare(new: Sequence[Figure], old: Sequence[Figure]) -> list[Change]:
    """The change of each figure that both runs have."""
    before = {(figure.scenario, figure.name): figure for figure in old}
    changes = []
    for figure in new:
        other = before.get((figure.scenario, figure.name))
        if other is None or bool(other.ratios) != bool(figure.ratios) or min(*other.measures, *figure.measures) <= 0:
            continue
        ours, theirs = figure.measures, other.measures
        change, low, high = (
            median(ours) / median(theirs) - 1,
            min(ours) / max(theirs) - 1,
            max(ours) / min(theirs) - 1,
        )
        verdict = "same" if low <= 0 <= high else "better" if (change > 0) == (figure.better == "more") else "worse"
        changes.append(Change(figure.scenario, figure.name, change, low, high, verdict))
    return changes


def to_json(about: Mapping[str, object], figures: Sequence[Figure]) -> dict[str, Any]:
    """A run as a JSON document; medians and ratios stand beside the measurements that they are made of."""
    rows = [
        asdict(figure)
        | {
            "value": figure.value,
            "floor": figure.floor,
            "ratio": median(figure.ratios) if figure.ratios else None,
            "spread": figure.spread,
        }
        for figure in figures
    ]
    return {**about, "figures": rows}


def from_json(document: object) -> list[Figure]:
    """The figures of an older run. Raises SettingsError for what `to_json` has not made."""
    names = ("scenario", "name", "unit", "better", "values", "floors")
    try:
        return [Figure(**{name: row[name] for name in names}) for row in document["figures"]]  # type: ignore[index]
    except (TypeError, KeyError):
        raise SettingsError("this file holds no benchmark: give one that `rsq bench --save` wrote") from None
