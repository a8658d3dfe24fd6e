"""Pictures as SVGs that any page can show: rsq beside its floor and its peers, as bars on a logarithmic scale, and a
figure over a long run, as a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

PANELS = {
    "enqueue one by one": "tasks/s, more is better",
    "enqueue in bulk": "tasks/s, more is better",
    "drain, results kept": "tasks/s in one process, more is better",
    "drain, results ignored": "tasks/s in one process, more is better",
    "round trip p50": "ms through an idle worker, less is better",
}

WIDTH, LABEL, ROOM = 760, 110, 90
BAR, GAP, HEAD, FOOT = 14, 4, 44, 14
COLOURS = {"rsq": "#2f8f5b", "bare redis-py": "#8a8f98"}
PEER = "#5b83b8"

# Greys that stand out from white and from black, for a picture in a page does not know which is behind it.
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#6e7781}.h{font-weight:600;font-size:14px}"
    ".g{stroke:#8a8f98;stroke-opacity:.35}"
    "@media(prefers-color-scheme:dark){text{fill:#a8b1bb}}"
)


def draw(table: Mapping[str, Mapping[str, float]]) -> str:
    """The picture of what `rsq.bench.peers.side_by_side` gives. Pure."""
    parts: list[str] = []
    top = 0
    for name, unit in PANELS.items():
        row = {who: value for who, value in table.get(name, {}).items() if value > 0}
        if row:
            alike = [other for other in PANELS if PANELS[other][:2] == unit[:2]]
            values = [value for other in alike for value in table.get(other, {}).values() if value > 0]
            parts += panel(f"{name} ({unit})", row, top, floor(log10(min(values) * 0.99)), ceil(log10(max(values))))
            top += HEAD + len(row) * (BAR + GAP) + FOOT
    return framed(parts, top)


def framed(parts: Sequence[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join([f'{head} role="img">', f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def panel(title: str, row: Mapping[str, float], top: int, lowest: int, highest: int) -> list[str]:
    """One title with its bars, the best first.

    top              pixels from above
    lowest, highest  powers of ten at both ends, the same for all panels of a unit
    """
    across = (WIDTH - LABEL - ROOM) / (highest - lowest)
    bottom = top + HEAD + len(row) * (BAR + GAP)
    parts = [f'<text class="h" x="0" y="{top + 18}">{escape(title)}</text>']
    for power in range(lowest, highest + 1):
        x = LABEL + (power - lowest) * across
        parts.append(f'<line class="g" x1="{x:.1f}" y1="{top + HEAD - 6}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + HEAD - 10}" text-anchor="middle">{number(10.0**power)}</text>')
    by_rank = sorted(row.items(), key=lambda item: item[1], reverse="more is better" in title)
    for place, (who, value) in enumerate(by_rank):
        y = top + HEAD + place * (BAR + GAP)
        length = max(1.0, (log10(value) - lowest) * across)
        colour = COLOURS.get(who, PEER)
        parts.append(f'<text x="{LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(who)}</text>')
        parts.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 11}">{number(value)}</text>')
    return parts


def draw_line(title: str, points: Sequence[tuple[float, float]]) -> str:
    """One figure over what has grown, both from 0: (x, y) in ascending order. Pure."""
    left, bottom, right = 60, HEAD + 160, WIDTH - ROOM
    highest = 1.25 * max((y for _, y in points), default=1.0)
    longest = max((x for x, _ in points), default=1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / longest * (right - left), bottom - y / highest * (bottom - HEAD)

    parts = [f'<text class="h" x="0" y="18">{escape(title)}</text>']
    for step in range(5):
        x, y = at(longest * step / 4, highest * step / 4)
        parts.append(f'<line class="g" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(highest * step / 4)}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number(longest * step / 4)}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS["rsq"]}" stroke-width="2"/>')
    return framed(parts, bottom + 30)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
