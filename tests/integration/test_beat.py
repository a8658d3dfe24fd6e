"""`rsq beat` and `rsq worker -B` as processes: killed, replaced, deployed, cut off from their server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App
from rsq.beat.store import Store
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration.conftest import STOP_S, Worker, is_alive, kill

CODE = """
from rsq import App, crontab, every

app = App("clock")


@app.task(name="note")
def note(word):
    return word


app.schedule = {{
    {schedules}
}}
"""

TICK = '"tick": {"task": "note", "schedule": every(seconds=1), "args": ("tick",)},'
CATCHUP = ("--catchup", "all", "--catchup-limit", "3")
YEARLY = '"yearly": {"task": "note", "schedule": crontab("@yearly"), "args": ("happy",)},'

StartBeat = Callable[..., Worker]
Rsq = Callable[..., str]


@pytest.fixture
def code(tmp_path: Path) -> Callable[..., None]:
    """Writes the module `clock`, with these schedules, as a deploy does it."""

    def write(*schedules: str) -> None:
        (tmp_path / "clock.py").write_text(CODE.format(schedules="\n    ".join(schedules)))

    return write


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    path = [str(tmp_path), *(part for part in sys.path if part)]
    # Two versions of a module within one second look alike to the cache of compiled files.
    return {**os.environ, "RSQ_URL": url, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def start_beat(url: str, tmp_path: Path) -> Iterator[StartBeat]:
    """Starts a beat; it has written its schedules when the call returns. `wait=False` returns at once."""
    beats: list[Worker] = []

    def start(*arguments: str, wait: bool = True, beat_url: str = "") -> Worker:
        given = ("-A", "clock", *(arguments or ("beat",)))
        log = tmp_path / f"beat{len(beats)}.log"
        beat = Worker(*given, env=environment(tmp_path, beat_url or url), log=log)
        beats.append(beat)
        if wait:
            wait_until(lambda: began(beat), 30, "the beat to begin")
        return beat

    yield start
    for beat in beats:
        beat.close()


def began(beat: Worker) -> bool:
    if beat.process.poll() is not None:
        pytest.fail(f"the beat ended with {beat.process.returncode}:\n{beat.log()}")
    return "rsq beat " in beat.log()


@pytest.fixture
def rsq(url: str, tmp_path: Path) -> Rsq:
    """Runs the command as a process; gives what it printed."""

    def run(*arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rsq", *arguments],
            env=environment(tmp_path, url),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == expect, done.stderr
        return done.stderr if expect else done.stdout

    return run


@pytest.fixture
def clock(url: str) -> Iterator[App]:
    """The app on this side, without its tasks."""
    app = App("clock", url=url)
    yield app
    app.close()


def slots(app: App, schedule: str = "tick") -> list[int]:
    """The slots that became calls, in the order of their calls. No worker takes them away."""
    with app.client.link() as link:
        entries = link.call("XRANGE", app.client.queue(None).keys.stream(), "-", "+")
    ids = [fields[1].decode() for _, fields in entries]
    return [int(task_id.partition(":")[2]) for task_id in ids if task_id.startswith(f"{schedule}:")]


def each_once(found: list[int], step_ms: int = 1000) -> bool:
    """No slot twice, none left out, in order."""
    return found == list(range(found[0], found[-1] + 1, step_ms))


def wait_for_more(app: App, more: int = 2, timeout_s: float = 30) -> None:
    before = len(slots(app))
    wait_until(lambda: len(slots(app)) >= before + more, timeout_s, f"{more} more slots")


# -- kills


def test_beats_are_killed_at_random_and_each_slot_fires_once(
    code: Callable[..., None], start_beat: StartBeat, clock: App
) -> None:
    code(TICK)
    draw = random.Random(19)
    beats = [start_beat() for _ in range(3)]
    for turn in range(7):
        wait_for_more(clock, draw.choice((1, 2)))
        victims = beats if turn == 3 else [draw.choice(beats)]
        for victim in victims:
            victim.kill()
        beats = [beat for beat in beats if beat not in victims] + [start_beat(wait=False) for _ in victims]
    wait_for_more(clock, 3)
    found = slots(clock)
    assert len(found) >= 10
    assert each_once(found)


def test_a_frozen_beat_that_goes_on_fires_nothing_again(
    code: Callable[..., None], start_beat: StartBeat, clock: App
) -> None:
    code(TICK)
    frozen, other = start_beat(), start_beat()
    wait_for_more(clock, 1)
    frozen.signal(signal.SIGSTOP)
    wait_for_more(clock, 3)
    other.kill()
    frozen.signal(signal.SIGCONT)
    wait_for_more(clock, 3)
    assert each_once(slots(clock))


# -- the server


def test_it_goes_on_when_the_server_was_away(
    code: Callable[..., None], start_beat: StartBeat, own_server: MakeServer
) -> None:
    server = own_server(appendonly=True)
    app = App("clock", url=server.url)
    code(TICK)
    beat = start_beat(beat_url=server.url)
    wait_for_more(app, 1)
    server.kill()
    wait_until(lambda: "trying again" in beat.log(), 30, "the beat to notice")
    server.start()
    app.close()
    wait_for_more(app)
    found = slots(app)
    assert len(set(found)) == len(found)
    wait_until(lambda: "the server answers again" in beat.log(), 30, "it to be told")
    app.close()
    assert beat.stop() == 0


def test_it_waits_for_a_server_at_its_start(
    code: Callable[..., None], start_beat: StartBeat, own_server: MakeServer
) -> None:
    server = own_server()
    server.stop()
    code(TICK)
    beat = start_beat(beat_url=server.url, wait=False)
    wait_until(lambda: "trying again" in beat.log(), 30, "the beat to notice")
    assert not beat.log().count("rsq beat ")
    server.start()
    wait_until(lambda: began(beat), 30, "the beat to begin")
    early = start_beat(beat_url="redis://127.0.0.1:1", wait=False)
    wait_until(lambda: "trying again" in early.log(), 30, "the other to notice")
    assert early.stop() == 0, "while it waits it can be stopped"


def test_after_a_flush_the_schedules_come_back(
    code: Callable[..., None], start_beat: StartBeat, clock: App, redis: Any
) -> None:
    code(TICK)
    start_beat()
    wait_for_more(clock, 1)
    redis.flushall()
    wait_for_more(clock, 2)


# -- deploys and run time


def names(app: App) -> list[str]:
    return [each.name for each in app.schedules]


def test_what_left_the_code_is_removed_and_run_time_stays(
    code: Callable[..., None], start_beat: StartBeat, clock: App, rsq: Rsq
) -> None:
    code(TICK, YEARLY)
    old = start_beat()
    assert names(clock) == ["tick", "yearly"]
    rsq("schedule", "add", "mine", "note", "x", "--cron", "0 3 * * *", "--tz", "Europe/Paris", *CATCHUP)
    mine = Store(clock.client).read("mine")
    assert mine is not None
    assert (mine.catchup, mine.catchup_limit) == ("all", 3)
    code(YEARLY)
    start_beat()
    assert names(clock) == ["mine", "yearly"]
    fired = slots(clock)
    assert old.stop() == 0
    assert slots(clock) == fired, "the old one has it in its code, and fires it no more"
    assert "'tick' is in the code no more" in (old.log_path.parent / "beat1.log").read_text()


def test_schedules_are_changed_while_a_beat_runs(
    code: Callable[..., None], start_beat: StartBeat, clock: App, rsq: Rsq
) -> None:
    code(YEARLY)
    start_beat()
    rsq("schedule", "add", "tick", "note", "x", "--every", "1s")
    wait_for_more(clock)
    rsq("schedule", "pause", "tick")
    paused = slots(clock)
    sent = rsq("schedule", "trigger", "tick").strip()
    listed: dict[str, Any] = {each["name"]: each for each in json.loads(rsq("schedule", "list", "--json"))}
    assert listed["tick"]["paused"]
    assert listed["tick"]["last_id"] == sent
    assert listed["yearly"]["next_ms"] > listed["tick"]["last_ms"]
    assert slots(clock) == paused
    rsq("schedule", "resume", "tick")
    wait_for_more(clock)
    rsq("schedule", "remove", "tick")
    removed = slots(clock)
    assert "no schedule 'tick'" in rsq("schedule", "pause", "tick", expect=2)
    assert "stands in the code" in rsq("schedule", "remove", "yearly", expect=2)
    assert "happy" not in rsq("schedule", "list")
    assert slots(clock) == removed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("x", "note", "--cron", "61 * * * *"), "minute '61'"),
        (("x", "note", "--every", "soon"), "--every': 'soon' is no length of time"),
        (("x", "note"), "give one of --cron and --every"),
        (("x", "note", "--every", "5s", "--tz", "UTC"), "--tz goes with --cron"),
        (("x", "note", "--every", "0"), "an interval must be at least"),
        (("x", "nothing", "--every", "5s"), "no task is registered as 'nothing'"),
    ],
)
def test_mistakes_are_one_line(code: Callable[..., None], rsq: Rsq, arguments: tuple[str, ...], text: str) -> None:
    code()
    said = rsq("-A", "clock", "schedule", "add", *arguments, expect=2)
    assert text in said
    assert len(said.splitlines()) == 1


def test_the_list_tells_how_the_last_run_ended(
    code: Callable[..., None], start_beat: StartBeat, rsq: Rsq, clock: App
) -> None:
    assert "no schedules" in rsq("schedule", "list")
    code(TICK)
    worker = start_beat("worker", "-c", "1", "-B")
    wait_until(lambda: "SUCCESS" in [each.outcome for each in clock.schedules], 30, "an outcome")
    table = rsq("schedule", "list").splitlines()
    assert table[0].split() == ["NAME", "SCHEDULE", "TASK", "QUEUE", "FROM", "NEXT", "LAST", "OUTCOME"]
    assert table[1].startswith("tick ")
    assert "code of clock" in table[1]
    assert worker.stop() == 0


# -- the process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(code: Callable[..., None], start_beat: StartBeat, number: int) -> None:
    code(YEARLY)
    beat = start_beat()
    beat.signal(number)
    assert beat.process.wait(STOP_S) == 0
    report, stopping = beat.log().splitlines()
    assert "app clock" in report
    assert f"{signal.Signals(number).name}: stopping" in stopping


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ('"a": {"task": "note", "schedule": crontab("* 24 * * *")},', "hour '24'"),
        ('"a": {"task": "note", "schedule": every(seconds=1)},', "schedule 'a'"),
        ('"a": {"task": "note", "schedule": 1, "options": {"colour": 1}},', "no option of a call"),
    ],
)
def test_a_mistake_in_the_code(code: Callable[..., None], rsq: Rsq, schedule: str, text: str) -> None:
    code(schedule)
    said = rsq("-A", "clock", "beat", expect=2)
    assert text in said
    assert len(said.splitlines()) == 1


def test_a_server_that_refuses(code: Callable[..., None], start_beat: StartBeat, own_server: MakeServer) -> None:
    server = own_server(password="right")
    code(TICK)
    beat = start_beat(beat_url=server.url.replace("right", "wrong-one"), wait=False)
    assert beat.process.wait(STOP_S) == 4
    assert "refused the credentials" in beat.log()
    assert "wrong-one" not in beat.log()


def beat_of(worker: Worker) -> int:
    """Process id of the beat beside the children, which says it in its report."""
    return int(worker.log().rpartition("rsq beat ")[2].partition(":")[0].rpartition("-")[2])


def test_a_beat_beside_a_worker(code: Callable[..., None], start_beat: StartBeat, clock: App) -> None:
    code(TICK)
    worker = start_beat("worker", "-c", "1", "-B")
    first = beat_of(worker)
    assert first in worker.children()
    kill(first)
    wait_until(lambda: beat_of(worker) != first, 30, "another beat")
    assert "the beat " in worker.log()
    second = beat_of(worker)
    wait_until(lambda: worker.log().count("note[tick:") >= 3, 30, "some calls")
    assert worker.stop() == 0
    assert not is_alive(second)


def test_a_beat_beside_a_worker_ends_with_it(code: Callable[..., None], start_beat: StartBeat) -> None:
    code(TICK)
    worker = start_beat("worker", "-c", "1", "-B")
    everybody = worker.children()
    assert beat_of(worker) in everybody
    kill(worker.pid)
    worker.process.wait(STOP_S)
    wait_until(lambda: not any(is_alive(pid) for pid in everybody), 30, "all of them to end")
