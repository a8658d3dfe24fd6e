"""Under load: worker after worker replaced, and one call that takes down every process that runs it."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from rsq import App, WorkerLost
from rsq.broker.dead_letters import dead_letters
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, ended, settled, totals

GOOD = 10_000
BATCH = 200


def succeeded_more_than(app: App, number: int) -> bool:
    return totals(app).counters.get("succeeded", 0) > number


@pytest.mark.parametrize(
    ("how", "said"), [("kill", "signal SIGKILL"), ("segv", "signal SIGSEGV"), ("exit one", "exit 1")]
)
def test_a_poison_pill_among_many_harms_none_of_them(
    app: App, start_worker: StartWorker, journal: Journal, how: str, said: str
) -> None:
    worker = start_worker(concurrency=2)
    half = [(number,) for number in range(GOOD // 2)]
    before = tasks.marked.map_async(half)
    pill = tasks.die_until.delay(99, how)
    after = tasks.marked.map_async(half)
    # Each gives the crashes that were counted against it: a neighbour of the pill has none.
    assert {handle.get(timeout=120) for handle in [*before, *after]} == {0}
    with pytest.raises(WorkerLost, match=f"{said}\\b"):
        pill.get(timeout=60)
    wait_until(lambda: settled(app), 30, "all to be settled")
    assert journal.lines() == ["attempt 0", "attempt 1", "attempt 2"]
    now = totals(app)
    assert (now.counters["succeeded"], now.counters["crashed"], now.dead) == (GOOD, 3, 1)
    with app.client.link() as link:
        (letter,) = dead_letters(link, app.client.queue(None))
    assert (letter.id, letter.reason) == (pill.id, "worker-lost")
    assert said in str(letter.error)
    assert worker.log().count(f"died: {said}, while it ran {pill.id}") == 3
    # It works on at once, in both places.
    assert [handle.get(timeout=30) for handle in tasks.add.map_async([(n, 0) for n in range(100)])] == [*range(100)]
    wait_until(lambda: len(worker.children()) == 2, what="both children")
    assert worker.stop() == 0


def test_a_rolling_restart_wastes_no_attempt(app: App, start_worker: StartWorker) -> None:
    workers = [start_worker(concurrency=1) for _ in range(4)]
    handles = [*tasks.brief.map_async([(number,) for number in range(BATCH)])]
    slow = tasks.brief.map_async([(number, 1.0) for number in range(8)])
    for place, old in enumerate(workers):
        handles += tasks.brief.map_async([(number,) for number in range(BATCH)])
        wait_until(partial(succeeded_more_than, app, place * BATCH // 2), 30, "progress")
        workers[place] = start_worker(concurrency=1)
        assert old.stop() == 0
    assert [handle.get(timeout=60) for handle in handles] == list(range(BATCH)) * 5
    assert [handle.get(timeout=60) for handle in slow] == list(range(8))
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert ended(app) == {"succeeded": 5 * BATCH + 8}
    records = [handle.result_record() for handle in [*handles, *slow]]
    assert {record.attempt for record in records if record is not None} == {1}
    assert [worker.stop() for worker in workers] == [0] * 4


@pytest.mark.parametrize("how", ["second signal", "timeout"])
def test_what_a_cold_stop_cuts_off_runs_again_unmarked(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, how: str
) -> None:
    # With a lease of a minute, only the hand-over can be the reason why the next one has it soon.
    old = start_worker("--shutdown-timeout", "600" if how == "second signal" else "0.5", concurrency=3, lease=60)
    gates = [str(tmp_path / f"open-{number}") for number in range(3)]
    cut_off = [tasks.gate.delay(gate, f"gate-{number}") for number, gate in enumerate(gates)]
    wait_until(lambda: len(journal.lines()) == 3, 20, "the bodies to begin")
    rest = tasks.marked.map_async([(number,) for number in range(100)])
    old.signal(signal.SIGTERM)
    if how == "second signal":

        def heard() -> bool:
            old.signal(signal.SIGTERM)  # one that follows at once counts as the same
            return how in old.log()

        wait_until(heard, what="the second one to be heard")
    assert old.process.wait(30) == 0
    assert how in old.log()
    start_worker(concurrency=4, lease=60)
    assert {handle.get(timeout=30) for handle in rest} == {0}
    wait_until(
        lambda: all(journal.count(f"began gate-{number}") == 2 for number in range(3)), 20, "them to begin again"
    )
    for gate in gates:
        Path(gate).touch()
    assert [handle.get(timeout=20) for handle in cut_off] == ["gate-0", "gate-1", "gate-2"]
    records = [handle.result_record() for handle in cut_off]
    assert [record.attempt for record in records if record is not None] == [1, 1, 1]
    wait_until(lambda: settled(app), what="all to be settled")
    assert ended(app) == {"succeeded": 103}
