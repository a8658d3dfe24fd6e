"""``python -m tests.beat.kills``: beats of a one-second schedule, first left alone, then killed at random.

Prints how late the slots became calls, and ends with 1 when one was fired twice or left out, or was later than two
seconds though a beat lived. The suite kills beats, too (`tests/integration/test_beat.py`), but looks at no clock: that
would ask of the machine what only the code can promise.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from rsq import App
from rsq.bench.scenarios import percentile
from tests.integration.conftest import Worker
from tests.servers import Server, find_binary

CODE = """
from rsq import App, every

app = App("clock")


@app.task(name="tick")
def tick(): ...


app.schedule = {"tick": {"task": "tick", "schedule": every(seconds=1)}}
"""
BEATS = 3
LATEST_MS = 2000
PAUSES_S = (0.1, 2.5)
ALL_AT_ONCE = 0.15
"""How often all of them are killed instead of one."""


class Beats:
    """Some beats, and the times at which none of them lived (ms of the wall clock, as the server's)."""

    def __init__(self, url: str, home: Path) -> None:
        path = os.pathsep.join([str(home), *(part for part in sys.path if part)])
        self._env = {**os.environ, "RSQ_URL": url, "PYTHONPATH": path}
        self._home = home
        self._started = 0
        self._beats: list[Worker] = []
        self._gap_began: float | None = time.time() * 1000
        self.gaps: list[tuple[float, float]] = []
        self.killed = 0

    def fill_up(self) -> None:
        """Start as many as there should be."""
        while len(self._beats) < BEATS:
            self._started += 1
            log = self._home / f"beat{self._started}.log"
            self._beats.append(Worker("-A", "clock", "beat", env=self._env, log=log))

    def watch(self, seconds: float) -> None:
        """Look whether one lives, until the time is up."""
        until = time.time() + seconds
        while time.time() < until:
            if self._gap_began is not None and any("rsq beat " in beat.log() for beat in self._beats):
                self.gaps.append((self._gap_began, time.time() * 1000))
                self._gap_began = None
            time.sleep(0.005)

    def kill(self, draw: random.Random) -> None:
        """Kill some; but while none lives let one begin: what nobody fired for ten seconds is missed, not late."""
        if self._gap_began is not None:
            return
        victims = self._beats[:] if draw.random() < ALL_AT_ONCE else [draw.choice(self._beats)]
        for victim in victims:
            victim.kill()
            self._beats.remove(victim)
        self.killed += len(victims)
        if self._gap_began is None and not any("rsq beat " in beat.log() for beat in self._beats):
            self._gap_began = time.time() * 1000

    def close(self) -> None:
        for beat in self._beats:
            beat.close()


def lateness(slot_ms: int, sent_ms: int, gaps: Sequence[tuple[float, float]]) -> float:
    """How late a slot became a call, without the times at which no beat lived. Pure."""
    absent = sum(max(0.0, min(end, sent_ms) - max(begin, slot_ms)) for begin, end in gaps)
    return sent_ms - slot_ms - absent


def slots_of(app: App) -> list[tuple[int, int]]:
    """Each slot that became a call, and when: the stream's own entry ids tell."""
    with app.client.link() as link:
        entries = link.call("XRANGE", app.client.queue(None).keys.stream(), "-", "+")
    return [(int(fields[1].rpartition(b":")[2]), int(entry_id.split(b"-")[0])) for entry_id, fields in entries]


def told(name: str, late_ms: Sequence[float]) -> None:
    ordered = sorted(late_ms)
    figures = ", ".join(f"p{percent} {percentile(ordered, percent):.0f} ms" for percent in (50, 99))
    click.echo(f"{name}: {len(ordered)} slots, late by {figures}, the latest {ordered[-1]:.0f} ms")


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(5), default=120.0, show_default=True, help="How long beats are killed."
)
@click.option(
    "--calm", type=click.FloatRange(5), default=60.0, show_default=True, help="How long none is, before that."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides who is killed when.")
def main(seconds: float, calm: float, seed: int) -> None:
    """Kill beats at random, and see that every slot is fired once and in time."""
    draw = random.Random(seed)
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        (home / "clock.py").write_text(CODE)
        server = stack.enter_context(Server(find_binary()))
        app = App("clock", url=server.url)
        stack.callback(app.close)
        beats = Beats(server.url, home)
        stack.callback(beats.close)
        beats.fill_up()
        beats.watch(calm)
        before = len(slots_of(app))
        end = time.time() + seconds
        while time.time() < end:
            beats.watch(draw.uniform(*PAUSES_S))
            beats.kill(draw)
            beats.fill_up()
        beats.watch(5.0)
        found = slots_of(app)
    late_ms = [lateness(slot, sent, beats.gaps) for slot, sent in found]
    slots = [slot for slot, _ in found]
    longest_ms = max((end - begin for begin, end in beats.gaps[1:]), default=0)
    expected = list(range(slots[0], slots[-1] + 1, 1000))
    told("while nobody dies", late_ms[:before])
    told(f"while {beats.killed} beats are killed, all of them at times", late_ms[before:])
    click.echo(f"no beat lived {len(beats.gaps) - 1} times, for {longest_ms:.0f} ms at most")
    click.echo(f"twice: {len(slots) - len(set(slots))}, left out: {len(set(expected) - set(slots))}")
    sys.exit(0 if sorted(slots) == expected and max(late_ms) <= LATEST_MS else 1)


if __name__ == "__main__":
    main()
