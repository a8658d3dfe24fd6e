"""What breaks, and what must hold then: nothing lost, every outcome committed once."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rsq import App, WorkerLost
from rsq.broker.dead_letters import dead_letters
from rsq.keys import GROUP
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, child_pids, is_alive, kill, settled, totals

MANY = 5000


def consumers(redis: Any, app: App) -> list[str]:
    """Names that the group knows, whatever became of their workers."""
    return [row["name"].decode() for row in redis.xinfo_consumers(app.client.queue(None).keys.stream(), GROUP)]


def succeeded_more_than(app: App, number: int) -> bool:
    return totals(app).counters.get("succeeded", 0) > number


def assert_all_done_once(app: App, handles: list[Any], expected: list[Any]) -> None:
    assert [handle.get(timeout=60) for handle in handles] == expected
    wait_until(lambda: settled(app), 20, "everything to be settled")
    assert totals(app).counters["succeeded"] == len(expected)
    assert totals(app).dead == 0


def test_a_killed_child_loses_nothing(app: App, start_worker: StartWorker, redis: Any) -> None:
    worker = start_worker(concurrency=2)
    handles = tasks.add.map_async([(number, 0) for number in range(MANY)])
    for kills in range(5):
        wait_until(partial(succeeded_more_than, app, kills * MANY // 20), what="progress")
        kill(random.choice(wait_until(worker.children, what="a child")))
        if not totals(app).ready:
            break
    assert_all_done_once(app, handles, list(range(MANY)))
    assert worker.stop() == 0
    assert consumers(redis, app) == []


def test_a_killed_worker_loses_nothing(app: App, start_worker: StartWorker, redis: Any) -> None:
    first = start_worker(concurrency=2, lease=1)
    handles = tasks.add.map_async([(number, 0) for number in range(MANY)])
    wait_until(lambda: totals(app).counters.get("succeeded", 0) > 100, what="progress")
    first.kill()
    second = start_worker(concurrency=2, lease=1)
    assert_all_done_once(app, handles, list(range(MANY)))
    wait_until(
        lambda: not any(f"-{first.pid}-" in name for name in consumers(redis, app)), what="the dead to be struck"
    )
    assert second.stop() == 0
    assert consumers(redis, app) == []


def test_children_of_a_killed_supervisor_hand_back_and_end(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    first = start_worker(concurrency=2, lease=60)
    handle = tasks.gate.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count("began gate") == 1, what="the body to begin")
    children = first.children()
    kill(first.pid)
    # With a lease of a minute, only a hand-over can be the reason why somebody else has it soon.
    start_worker(concurrency=1, lease=60)
    wait_until(lambda: journal.count("began gate") == 2, 20, "the next worker to begin it")
    wait_until(lambda: not any(is_alive(pid) for pid in children), what="the orphans to end")
    (tmp_path / "open").touch()
    assert handle.get(timeout=10) == "gate"
    wait_until(lambda: settled(app), what="it to be settled")
    assert totals(app).counters.get("crashed", 0) == 0


def test_a_server_restart_loses_nothing(own_server: MakeServer, start_worker: StartWorker, app: App) -> None:
    server = own_server(appendonly=True)
    app.configure(url=server.url)
    start_worker(concurrency=2, worker_url=server.url)
    handles = tasks.add.map_async([(number, 0) for number in range(MANY)])
    wait_until(lambda: totals(app).counters.get("succeeded", 0) > 100, what="progress")
    server.kill()
    server.restart()
    assert_all_done_once(app, handles, list(range(MANY)))


def test_what_is_to_come_survives_without_any_worker(
    own_server: MakeServer, start_worker: StartWorker, app: App
) -> None:
    server = own_server(appendonly=True, config={"appendfsync": "always"})
    app.configure(url=server.url)
    worker = start_worker(concurrency=1, worker_url=server.url)
    handles = [tasks.add.apply_async((number, 0), countdown=2 + number / 100) for number in range(100)]
    again = tasks.flaky.delay(1)
    wait_until(lambda: totals(app).counters.get("retried") == 1, what="an attempt to fail")
    worker.kill()
    server.kill()
    server.restart()
    start_worker(concurrency=1, worker_url=server.url, lease=1)
    assert again.get(timeout=60) == 2
    assert_all_done_once(app, [*handles, again], [*range(100), 2])


def test_a_long_outage_of_the_server(own_server: MakeServer, start_worker: StartWorker, app: App) -> None:
    server = own_server(appendonly=True)
    app.configure(url=server.url)
    worker = start_worker(concurrency=1, worker_url=server.url, lease=1)
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    server.kill()
    wait_until(lambda: worker.log().count("trying again") >= 3, 30, "the outage to be noticed")
    server.restart()
    assert tasks.add.delay(1, 2).get(timeout=20) == 3
    assert worker.stop() == 0


def test_a_flushed_server_is_taken_up_again(app: App, start_worker: StartWorker, redis: Any) -> None:
    worker = start_worker(concurrency=1)
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    redis.flushall()
    assert tasks.add.delay(1, 2).get(timeout=20) == 3
    assert "lost the lease" in worker.log()


@pytest.mark.parametrize(("how", "said"), [("kill", "signal SIGKILL"), ("segv", "signal SIGSEGV"), ("exit", "exit 7")])
def test_a_poison_pill_ends_as_a_dead_letter(
    app: App, start_worker: StartWorker, journal: Journal, how: str, said: str
) -> None:
    start_worker(concurrency=2)
    good = tasks.add.map_async([(number, 0) for number in range(200)])
    pill = tasks.die_until.delay(99, how)
    more = tasks.add.map_async([(number, 0) for number in range(200)])
    with pytest.raises(WorkerLost, match=said):
        pill.get(timeout=30)
    assert [handle.get(timeout=30) for handle in [*good, *more]] == 2 * list(range(200))
    wait_until(lambda: settled(app), what="all to be settled")
    assert journal.lines() == ["attempt 0", "attempt 1", "attempt 2"]
    with app.client.link() as link:
        letters = list(dead_letters(link, app.client.queue(None)))
    assert [(letter.id, letter.reason) for letter in letters] == [(pill.id, "worker-lost")]
    assert totals(app).counters["crashed"] == 3


def test_a_crash_or_two_are_survived(app: App, start_worker: StartWorker) -> None:
    start_worker(concurrency=1)
    assert tasks.die_until.delay(2).get(timeout=30) == 2
    wait_until(lambda: settled(app), what="it to be settled")


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (tasks.gate, "interrupted gate"),
        (tasks.agate, "interrupted agate"),
        (tasks.stubborn, "lease lost: True"),
    ],
    ids=["plain", "coroutine", "stubborn"],
)
def test_a_frozen_worker_is_fenced_and_its_body_told(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, redis: Any, task: Any, told: str
) -> None:
    frozen = start_worker(concurrency=1, lease=1)
    name = task.__name__
    handle = task.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count(f"began {name}") == 1, what="the body to begin")
    (child,) = frozen.children()
    for pid in (frozen.pid, child):
        os.kill(pid, signal.SIGSTOP)
    other = start_worker(concurrency=1, lease=1)
    wait_until(lambda: journal.count(f"began {name}") == 2, 20, "another worker to take over")
    for pid in (child, frozen.pid):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "going on as" in frozen.log(), 20, "the frozen worker to take a new name")
    (tmp_path / "open").touch()
    assert handle.get(timeout=10) == name
    wait_until(lambda: journal.count(told) == 1, 20, "the frozen body to hear of it")
    assert other.stop() == 0
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    wait_until(lambda: settled(app), what="all to be settled")
    assert totals(app).counters["succeeded"] == 2
    assert frozen.stop() == 0
    assert consumers(redis, app) == []


@pytest.mark.parametrize("task", [tasks.gate, tasks.once_gate], ids=lambda task: task.__name__)
def test_a_lease_lost_on_one_queue_counts_no_attempt_on_another(
    app: App, start_worker: StartWorker, journal: Journal, tmp_path: Path, redis: Any, task: Any
) -> None:
    worker = start_worker("-Q", "default,single", concurrency=1, lease=2)
    name = task.__name__
    handle = task.delay(str(tmp_path / "open"))
    wait_until(lambda: journal.count(f"began {name}") == 1, what="the body to begin")
    redis.delete(app.client.queue("single").keys.consumers)
    if task is tasks.gate:
        wait_until(lambda: journal.count(f"interrupted {name}") == 1, 20, "the body to be told")
    wait_until(lambda: "going on as" in worker.log(), 20, "the child to take a new name")
    (tmp_path / "open").touch()
    # What was acknowledged early is nobody else's, so it runs on, and its outcome counts.
    assert handle.get(timeout=20) == name
    assert journal.count(f"interrupted {name}") == (task is tasks.gate)
    assert tasks.add.delay(1, 1).get(timeout=20) == 2
    wait_until(lambda: settled(app), 20, "all to be settled")
    assert journal.count(f"began {name}") == (2 if task is tasks.gate else 1)
    counters = totals(app).counters
    assert (counters["succeeded"], counters.get("retried", 0)) == (2, 0)
    assert worker.stop() == 0


def test_a_body_that_holds_the_gil_keeps_its_lease(app: App, start_worker: StartWorker, journal: Journal) -> None:
    start_worker(concurrency=1, lease=1)
    start_worker(concurrency=1, lease=1)
    assert tasks.hold_gil.delay(4).get(timeout=30) == "held"
    assert journal.lines() == ["began hold_gil"]
    wait_until(lambda: settled(app), what="it to be settled")
    assert totals(app).counters["succeeded"] == 1


def test_children_are_replaced_after_so_many_tasks(app: App, start_worker: StartWorker) -> None:
    start_worker("--max-tasks-per-child", "5", concurrency=1)
    pids = [handle.get(timeout=60) for handle in tasks.where.map_async([()] * 20)]
    assert len(set(pids)) == 4
    assert all(pids.count(pid) == 5 for pid in set(pids))
    assert totals(app).counters.get("crashed", 0) == 0


def test_no_process_stays_behind(start_worker: StartWorker) -> None:
    worker = start_worker(concurrency=3)
    children = wait_until(lambda: worker.children() if len(worker.children()) == 3 else [], what="three children")
    assert worker.stop() == 0
    assert child_pids(worker.pid) == []
    assert not any(is_alive(pid) for pid in children)
