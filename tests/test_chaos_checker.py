"""The chaos checker finds what it is there to find: each kind of violation, made by hand in a history that is clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rsq.broker.flow_looks import Flow
from tests.chaos.checker import check
from tests.chaos.chronicle import history_of, tick_serial
from tests.chaos.driver import Report
from tests.chaos.history import EVERYBODY, History, Outcome, ServerState
from tests.chaos.journal import Journal, Record, read
from tests.chaos.recovery import Sample, percentile, recoveries
from tests.chaos.rules.control import SLOW_S
from tests.chaos.table import render_markdown

LEASES = ("w1.0", "w1.1", "w2.0")


class Story:
    """Records of a run, and the server as it is afterwards. Worker 1 has the children 11 and 12, worker 2 has 21."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.state = ServerState(counters={"default": {}})
        self._faults = 0

    def add(self, what: str, at: float, pid: int = 0, **fields: Any) -> None:
        self.records.append({"what": what, "at": at, "pid": pid, **fields})

    def accept(self, serial: int, task_id: str, kind: str = "plain", at: float = 1.0) -> None:
        self.add("sent", at, kind=kind, serials=[serial])
        self.add("accepted", at, serial=serial, id=task_id, queue="default", duplicate=False)

    def start(
        self,
        serial: int,
        task_id: str,
        at: float,
        *,
        kind: str = "plain",
        pid: int = 11,
        entry: str = "1-1",
        attempt: int = 1,
        leases: tuple[str, ...] | None = LEASES,
        consumer: str | None = None,
        deliveries: int = 1,
        crashes: int = 0,
        **more: Any,
    ) -> None:
        self.add(
            "started",
            at,
            pid,
            id=task_id,
            serial=serial,
            kind=kind,
            attempt=attempt,
            entry="" if kind.startswith("once") else entry,
            consumer=consumer or {11: "w1.0", 12: "w1.1", 21: "w2.0"}[pid],
            worker=pid // 10,
            deliveries=deliveries,
            crashes=crashes,
            leases=leases,
            **more,
        )

    def finish(self, task_id: str, at: float, pid: int = 11, how: str = "returned") -> None:
        self.add("finished", at, pid, id=task_id, how=how)

    def wait(
        self, task_id: str, at: float, until: float, how: str, *, timeout: float | None = 15.0, value: Any = None
    ) -> None:
        self.add("waited", at, id=task_id, until=until, timeout=timeout, how=how, value=value)

    def strike(self, kind: str, at: float, until: float, *, workers: tuple[int, ...] = (1,), **more: Any) -> None:
        self._faults += 1
        self.add("fault", at, number=self._faults, kind=kind, workers=workers, pids=more.pop("pids", ()), **more)
        self.add("over", until, number=self._faults)

    def succeed(self, task_id: str, value: Any, consumer: str = "w2.0") -> None:
        self.state.results[task_id] = Outcome("SUCCESS", value, consumer)
        self.state.published[task_id] = ["SUCCESS"]
        self.count("succeeded")

    def count(self, counter: str, by: int = 1) -> None:
        counters = self.state.counters["default"]
        counters[counter] = counters.get(counter, 0) + by

    def run(self, serial: int, task_id: str, at: float = 2.0, **more: Any) -> None:
        """One call, from its sending to its result, as it should be."""
        kind = more.get("kind", "plain")
        self.accept(serial, task_id, kind)
        self.start(serial, task_id, at, **more)
        self.finish(task_id, at + 0.1, more.get("pid", 11))
        if kind.endswith("quiet"):
            self.count("succeeded")
        else:
            self.succeed(task_id, serial)

    def fail_for_good(self, serial: int, task_id: str) -> None:
        """A call that is retried once and then dead, as it should be."""
        self.accept(serial, task_id, "fails")
        for attempt, at in ((1, 3.0), (2, 4.0)):
            self.start(serial, task_id, at, kind="fails", pid=12, entry=f"{attempt}-{serial}", attempt=attempt)
            self.finish(task_id, at + 0.1, 12, how="raised")
        self.state.results[task_id] = Outcome("FAILURE", "builtins.ValueError")
        self.state.published[task_id] = ["FAILURE"]
        self.state.dead.setdefault("default", []).append(task_id)
        self.count("retried")
        self.count("dead")

    @property
    def history(self) -> History:
        return history_of(sorted(self.records, key=lambda record: float(record["at"])))

    def found(self) -> list[str]:
        """Kinds of all violations."""
        return sorted({violation.kind for violation in check(self.history, self.state)})


@pytest.fixture
def story() -> Story:
    """Some of everything, and nothing wrong."""
    story = Story()
    story.run(1, "a")
    story.run(2, "b", pid=21, entry="1-2")
    story.run(3, "q", kind="quiet", entry="1-3", pid=12)
    story.run(4, "o", kind="once", at=3.0)
    story.fail_for_good(5, "f")
    return story


def test_a_clean_run_is_clean(story: Story) -> None:
    assert story.found() == []


# -- lost


@pytest.mark.parametrize("kind", ["plain", "quiet", "fails", "once"])
def test_a_call_that_never_began_is_lost(story: Story, kind: str) -> None:
    story.accept(9, "x", kind)
    assert story.found() == ["lost"]


def test_a_call_that_was_cut_off_and_left_is_lost(story: Story) -> None:
    story.accept(9, "x")
    story.start(9, "x", 2.0, entry="9-9")
    story.strike("kill_child", 2.1, 2.2, pids=(11,))
    assert story.found() == ["lost"]


def test_a_result_that_is_missing_after_the_body_returned_is_lost(story: Story) -> None:
    story.accept(9, "x")
    story.start(9, "x", 2.0, entry="9-9")
    story.finish("x", 2.1)
    assert story.found() == ["lost"]


def test_a_quiet_call_whose_outcome_was_not_committed_shows_in_the_counter(story: Story) -> None:
    story.run(9, "x", kind="quiet", entry="9-9")
    story.count("succeeded", -1)
    assert story.found() == ["double"]


def test_a_call_of_which_nobody_knows_whether_it_arrived_may_be_nowhere(story: Story) -> None:
    story.add("sent", 1.0, kind="plain", serials=[9])
    assert story.found() == []


@pytest.mark.parametrize("told", [True, False])
def test_an_early_call_that_ends_with_its_process_is_told_so(story: Story, told: bool) -> None:
    story.accept(9, "x", "once")
    story.start(9, "x", 2.0, kind="once")
    story.strike("kill_worker", 2.1, 2.2)
    if told:
        story.state.results["x"] = Outcome("FAILURE", "rsq.errors.WorkerLost")
        story.state.published["x"] = ["FAILURE"]
        story.count("lost")
    assert story.found() == ([] if told else ["lost"])


def test_the_token_of_an_early_call_that_nobody_looks_for(story: Story) -> None:
    story.state.taken.add("o")
    assert story.found() == ["leak"]


# -- double


def test_two_published_results(story: Story) -> None:
    story.state.published["a"].append("SUCCESS")
    assert story.found() == ["double"]


def test_a_result_that_was_never_published(story: Story) -> None:
    del story.state.published["a"]
    assert story.found() == ["double"]
    story.state.gaps = 1  # it may have been published while nobody listened
    assert story.found() == []


def test_a_result_other_than_the_published_one(story: Story) -> None:
    story.state.published["a"] = ["FAILURE"]
    assert story.found() == ["double"]


def test_two_dead_letters_of_one_call(story: Story) -> None:
    story.state.dead["default"].append("f")
    assert story.found() == ["double"]


def test_a_dead_letter_of_a_call_that_succeeded(story: Story) -> None:
    story.state.dead["default"].append("a")
    assert "double" in story.found()


@pytest.mark.parametrize("counter", ["succeeded", "dead", "retried", "lost", "crashed"])
def test_a_counter_that_counted_once_too_often(story: Story, counter: str) -> None:
    story.count(counter)
    assert story.found() == ["double"]


@pytest.mark.parametrize("counter", ["succeeded", "dead", "retried"])
def test_a_counter_that_missed_one(story: Story, counter: str) -> None:
    story.count(counter, -1)
    assert story.found() == ["double"]


def test_a_crash_is_counted_once_for_each_killed_child(story: Story) -> None:
    story.strike("kill_child", 5.0, 5.1, pids=(12,))
    story.count("crashed")
    assert story.found() == []


def test_a_lost_early_call_is_counted(story: Story) -> None:
    story.accept(9, "x", "once")
    story.start(9, "x", 2.0, kind="once")
    story.strike("kill_child", 2.1, 2.2, pids=(11,))
    story.state.results["x"] = Outcome("FAILURE", "rsq.errors.WorkerLost")
    story.state.published["x"] = ["FAILURE"]
    assert story.found() == ["double"]
    story.count("lost")
    assert story.found() == []


def test_one_call_under_two_ids(story: Story) -> None:
    story.run(1, "z", entry="9-9")
    assert "double" in story.found()


def test_one_call_of_an_unsure_producer_under_two_ids(story: Story) -> None:
    story.add("sent", 1.0, kind="plain", serials=[9])
    for task_id, entry in (("x", "9-8"), ("y", "9-9")):
        story.start(9, task_id, 2.0, entry=entry)
        story.finish(task_id, 2.1)
        story.succeed(task_id, 9)
    assert story.found() == ["double"]


def test_one_send_that_was_taken_for_two(story: Story) -> None:
    story.run(9, "x", kind="quiet", entry="default/0/1-1")
    story.start(9, "x", 25.0, kind="quiet", entry="default/0/9-9", pid=21)
    story.finish("x", 25.1, 21)
    assert story.found() == ["double"]


# -- wrong


def test_the_value_of_another_call(story: Story) -> None:
    story.state.results["a"].value = 2
    assert story.found() == ["wrong"]


def test_a_failure_that_cannot_be(story: Story) -> None:
    story.state.results["a"].state = "FAILURE"
    story.state.published["a"] = ["FAILURE"]
    story.count("succeeded", -1)
    assert story.found() == ["wrong"]


def test_a_success_that_cannot_be(story: Story) -> None:
    story.state.results["f"] = Outcome("SUCCESS", 5)
    assert "wrong" in story.found()


def test_a_good_call_among_the_dead_letters(story: Story) -> None:
    story.accept(9, "x")
    story.state.dead["default"].append("x")
    story.count("dead")
    assert story.found() == ["wrong"]


def test_a_result_of_a_call_that_nobody_sent(story: Story) -> None:
    story.succeed("x", 9)
    story.count("succeeded", -1)
    assert story.found() == ["wrong"]


# -- overlap


def begin_twice(story: Story, leases: tuple[str, ...] | None) -> None:
    """Worker 1 is frozen while it runs x; worker 2 begins x, and `leases` are alive then."""
    story.accept(9, "x")
    story.start(9, "x", 22.0, entry="9-9")
    story.strike("freeze_worker", 22.1, 26.0)
    story.start(9, "x", 24.5, pid=21, entry="9-9", leases=leases)
    story.finish("x", 24.6, 21)
    story.succeed("x", 9)


def test_a_frozen_run_whose_lease_ended_is_legal(story: Story) -> None:
    begin_twice(story, ("w2.0",))
    story.finish("x", 26.1)
    assert story.found() == []


def test_an_outcome_of_a_run_that_had_lost_its_lease(story: Story) -> None:
    begin_twice(story, ("w2.0",))
    story.finish("x", 26.1)
    story.state.results["x"].consumer = "w1.0"
    assert story.found() == ["fenced"]


def test_a_worker_that_began_only_later_may_commit(story: Story) -> None:
    story.accept(9, "x")
    story.start(9, "x", 22.0, entry="9-9", leases=("w1.0",))
    story.strike("kill_worker", 22.1, 23.0)
    story.start(9, "x", 24.5, pid=21, entry="9-9", leases=("w2.0",))
    story.finish("x", 24.6, 21)
    story.succeed("x", 9)
    assert story.found() == []


def test_two_live_leases_for_one_entry(story: Story) -> None:
    begin_twice(story, LEASES)
    assert story.found() == ["overlap"]


def test_two_live_leases_are_found_though_the_first_run_is_over(story: Story) -> None:
    begin_twice(story, LEASES)
    story.finish("x", 24.0)
    assert story.found() == ["overlap"]


def test_where_the_server_did_not_answer_a_long_freeze_is_reason_enough(story: Story) -> None:
    begin_twice(story, None)
    assert story.found() == []


@pytest.mark.parametrize(
    ("kind", "at", "found"),
    [
        ("freeze_worker", 24.0, ["overlap"]),  # too short for the lease to run out
        ("freeze_worker", 22.5, []),
        ("freeze_supervisor", 22.5, []),
        ("kill_child", 24.4, []),
        ("partition", 22.5, []),
        ("freeze_server", 21.0, ["overlap", "rerun"]),
        ("restart_server", 21.0, ["overlap", "rerun"]),
    ],
)
def test_only_who_was_cut_off_for_a_lease_may_be_replaced_while_he_runs(
    story: Story, kind: str, at: float, found: list[str]
) -> None:
    story.accept(9, "x")
    story.start(9, "x", 22.0, entry="9-9")
    story.strike(kind, at, at + 4.0, workers=(EVERYBODY,) if kind.endswith("server") else (1,))
    story.start(9, "x", 24.5, pid=21, entry="9-9", leases=("w2.0",))
    story.finish("x", 24.6, 21)
    story.finish("x", 26.0)
    story.succeed("x", 9)
    assert story.found() == found


def test_a_run_that_woke_up_fenced_proves_nothing(story: Story) -> None:
    # Frozen between the look at its lease and the first line of its body: it begins last, and owns nothing.
    story.accept(9, "x")
    story.strike("freeze_worker", 21.5, 24.9)
    story.start(9, "x", 24.5, pid=21, entry="9-9", leases=("w2.0",))
    story.finish("x", 24.6, 21)
    story.start(9, "x", 25.0, entry="9-9", leases=("w2.0",))
    story.finish("x", 25.1)
    story.succeed("x", 9)
    assert story.found() == []


@pytest.mark.parametrize(("how", "found"), [("stopped", []), ("raised", ["overlap"])])
def test_an_entry_that_was_handed_back_by_a_body_that_was_stopped(story: Story, how: str, found: list[str]) -> None:
    story.accept(9, "x")
    story.strike("freeze_worker", 20.0, 22.0)
    story.start(9, "x", 22.0, entry="9-9")
    story.finish("x", 22.5, how=how)
    story.start(9, "x", 23.0, pid=21, entry="9-9")
    story.finish("x", 23.1, 21)
    story.succeed("x", 9)
    assert story.found() == found


def test_the_next_attempt_while_the_one_before_still_runs(story: Story) -> None:
    story.accept(9, "x")
    story.start(9, "x", 22.0, entry="9-8")
    story.start(9, "x", 23.0, pid=21, entry="9-9", attempt=2)
    story.finish("x", 23.1, 21)
    story.finish("x", 24.0)
    story.succeed("x", 9)
    story.count("retried")
    assert story.found() == ["overlap"]


def test_the_next_attempt_after_the_one_before_is_legal(story: Story) -> None:
    story.accept(9, "x")
    story.start(9, "x", 22.0, entry="9-8")
    story.finish("x", 22.5, how="raised")
    story.start(9, "x", 23.0, pid=21, entry="9-9", attempt=2)
    story.finish("x", 23.1, 21)
    story.succeed("x", 9)
    story.count("retried")
    assert story.found() == []


# -- rerun


def begin_again(story: Story, consumer: str = "w2.0") -> None:
    story.accept(9, "x")
    story.start(9, "x", 20.0, entry="9-9")
    story.start(9, "x", 24.0, pid=21, entry="9-9", consumer=consumer, leases=("w2.0",))
    story.finish("x", 24.1, 21)
    story.succeed("x", 9)


def test_a_second_start_without_any_fault(story: Story) -> None:
    begin_again(story)
    story.finish("x", 20.5)
    assert story.found() == ["rerun"]


@pytest.mark.parametrize(
    ("strike", "explained"),
    [
        ({"kind": "kill_worker", "at": 21.0, "until": 22.0}, True),
        ({"kind": "kill_child", "at": 21.0, "until": 22.0, "pids": (11,)}, True),
        ({"kind": "kill_child", "at": 21.0, "until": 22.0, "pids": (12,)}, False),
        ({"kind": "kill_worker", "at": 21.0, "until": 22.0, "workers": (2,)}, False),
        ({"kind": "restart_server", "at": 21.0, "until": 23.5, "workers": (EVERYBODY,)}, False),
        ({"kind": "freeze_server", "at": 21.0, "until": 23.5, "workers": (EVERYBODY,)}, False),
        ({"kind": "stall", "at": 21.0, "until": 23.5, "workers": (EVERYBODY,)}, True),
        ({"kind": "freeze_worker", "at": 12.0, "until": 19.0}, True),
        ({"kind": "freeze_worker", "at": 5.0, "until": 9.0}, False),
        ({"kind": "freeze_worker", "at": 24.5, "until": 29.0}, False),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_only_a_fault_of_that_worker_at_that_time_explains_it(
    story: Story, strike: dict[str, Any], explained: bool
) -> None:
    begin_again(story)
    story.finish("x", 20.5)
    story.strike(**strike)
    assert story.found() == ([] if explained else ["rerun"])


def test_nothing_explains_that_one_consumer_begins_an_entry_twice(story: Story) -> None:
    begin_again(story, consumer="w1.0")
    story.strike("kill_worker", 21.0, 22.0)
    assert story.found() == ["rerun"]


@pytest.mark.parametrize("kind", ["kill_master", "freeze_master", "fail_over", "move_slot", "restart_master"])
@pytest.mark.parametrize("queue", ["default", "bulk"])
@pytest.mark.parametrize("ended", [True, False])
def test_what_ended_at_a_master_that_was_replaced_may_be_undone(
    story: Story, kind: str, queue: str, ended: bool
) -> None:
    story.accept(9, "x")
    story.start(9, "x", 20.0, entry="default/0/9-9")
    story.strike(kind, 20.2, 22.0, workers=(EVERYBODY,), queues=(queue,))
    story.start(9, "x", 24.0, pid=21, entry="default/0/9-9", leases=("w2.0",))
    story.finish("x", 24.1, 21)
    story.succeed("x", 9)
    if ended:
        story.finish("x", 20.5)
    undone = ended and queue == "default" and kind in ("kill_master", "freeze_master")
    assert ("rerun" in story.found()) is not undone


@pytest.mark.parametrize("ended", [20.5, 24.05])
def test_a_run_that_was_undone_may_be_had_again_by_another_though_its_consumer_lives(
    story: Story, ended: float
) -> None:
    """That it was delivered is undone as well; but not beside the run that still goes on."""
    story.accept(9, "x")
    story.start(9, "x", 20.0, entry="default/0/9-9")
    story.strike("kill_master", 20.2, 22.0, workers=(EVERYBODY,), queues=("default",))
    story.start(9, "x", 24.0, pid=21, entry="default/0/9-9", leases=("w1.0", "w2.0"))
    story.finish("x", ended)
    story.finish("x", 24.1, 21)
    story.succeed("x", 9)
    assert ("overlap" in story.found()) is (ended > 24.0)


@pytest.mark.parametrize("kind", ["kill_master", "freeze_master", "fail_over"])
@pytest.mark.parametrize("of", ["on_one", "plain"])
def test_an_event_is_fed_again_to_the_successor_of_a_lost_master_alone(story: Story, kind: str, of: str) -> None:
    story.accept(9, "x", kind=of)
    story.start(9, "x", 20.0, kind=of, entry="default/0/9-9")
    story.strike(kind, 20.2, 22.0, workers=(EVERYBODY,), queues=("default",))
    story.start(9, "x", 24.0, kind=of, pid=21, entry="default/0/24-1", leases=("w2.0",))
    story.finish("x", 20.5)
    story.finish("x", 24.1, 21)
    story.succeed("x", 9) if of == "plain" else story.count("succeeded")
    assert ("double" in story.found()) is not (of == "on_one" and kind != "fail_over")


# -- at most once, phantoms, leaks, the deaf, the slow, problems


def test_an_early_call_that_began_twice(story: Story) -> None:
    story.start(4, "o", 5.0, kind="once", pid=21)
    story.finish("o", 5.1, 21)
    story.strike("kill_worker", 4.0, 4.5)
    assert story.found() == ["at-most-once"]


@pytest.mark.parametrize(("attempt", "found"), [(1, ["at-most-once"]), (2, [])])
def test_an_attempt_of_an_early_call_that_began_twice(story: Story, attempt: int, found: list[str]) -> None:
    story.accept(9, "x", "once_again")
    for at, pid, number in ((22.0, 11, 1), (23.0, 21, attempt)):
        story.start(9, "x", at, kind="once_again", pid=pid, attempt=number, entry="")
        story.finish("x", at + 0.1, pid, how="returned" if pid == 21 else "raised")
    story.succeed("x", 9)
    story.count("retried", attempt - 1)
    assert story.found() == found


def test_a_body_of_a_call_that_nobody_sent(story: Story) -> None:
    story.start(9, "x", 5.0, kind="quiet", entry="9-9")
    story.finish("x", 5.1)
    story.count("succeeded")
    assert story.found() == ["phantom"]


@pytest.mark.parametrize(
    "leak",
    [
        {"entries": {"x": "stream"}},
        {"delayed": {"x": "delayed"}},
        {"pending": ["1-1 of w1.0"]},
        {"consumers": ["w1.0"]},
        {"leases": ["w1.0"]},
        {"orphans": ["w1.0"]},
        {"crashes": ["x"]},
        {"for_ever": ["rsq:x"]},
        {"processes": ["123"]},
    ],
    ids=lambda leak: next(iter(leak)),
)
def test_what_is_left_behind_is_a_leak(story: Story, leak: dict[str, Any]) -> None:
    for name, value in leak.items():
        setattr(story.state.left, name, value)
    assert story.found() == ["leak"]


def test_what_is_left_in_the_queue_is_not_lost(story: Story) -> None:
    story.accept(9, "x")
    story.state.left.entries["x"] = "stream"
    assert story.found() == ["leak"]


def test_a_call_that_waited_too_long_for_another_worker(story: Story) -> None:
    story.accept(9, "x")
    story.start(9, "x", 22.0, entry="9-9")
    story.strike("kill_worker", 22.1, 22.2)
    story.start(9, "x", 22.2 + SLOW_S, pid=21, entry="9-9", leases=("w2.0",))
    story.finish("x", 50.0, 21)
    story.succeed("x", 9)
    assert story.found() == ["slow"]


def test_what_the_driver_saw_itself(story: Story) -> None:
    story.add("problem", 5.0, text="a worker ended by itself")
    assert story.found() == ["problem"]


# -- blamed, reads on


def enter(story: Story, at: float, **more: Any) -> str:
    """Call x, which came in at that moment, runs 10 ms later."""
    story.add("ticked", 50.0, kind="tick", now_ms=50_000, since=50_000, until=49_000)
    entry = f"default/0/{int(at * 1000)}-0"
    story.run(9, "x", at + 0.01, entry=entry, **more)
    return entry


@pytest.mark.parametrize(
    ("strike", "deliveries", "found"),
    [
        (None, 1, []),
        (None, 2, ["blamed"]),
        ("kill_child", 2, ["blamed"]),
        ("kill_worker", 2, []),
        ("kill_worker", 3, ["blamed"]),
        ("lost_reply", 3, []),
    ],
)
def test_a_delivery_that_is_counted_for_the_death_of_a_neighbour(
    story: Story, strike: str | None, deliveries: int, found: list[str]
) -> None:
    enter(story, 30.0, deliveries=deliveries)
    if strike is not None:
        story.strike(strike, 29.0, 29.5, workers=(2,))
    assert story.found() == found


@pytest.mark.parametrize(("kind", "found"), [(None, ["blamed"]), ("kill_worker", ["blamed"]), ("kill_child", [])])
def test_a_crash_that_was_another_calls(story: Story, kind: str | None, found: list[str]) -> None:
    enter(story, 30.0, crashes=1, deliveries=2)
    if kind is not None:
        story.strike(kind, 30.0, 30.0, workers=(2,))  # as it was about to begin there
    assert story.found() == found


def swallow(story: Story, neighbour_after: int) -> None:
    """Poison p kills 11 and then 12; a neighbour that had ended before, not yet committed, goes with one of them."""
    story.accept(8, "p", "poison")
    story.accept(9, "x")
    for number, (pid, leases) in enumerate(((11, LEASES), (12, ("w1.1", "w2.0")))):
        at = 30.0 + number
        if number == neighbour_after:
            story.start(9, "x", at, pid=pid, entry="9-9", leases=leases)
            story.finish("x", at + 0.01, pid)
        story.start(
            8, "p", at + 0.1, kind="poison", pid=pid, entry="9-8", crashes=number, deliveries=number + 1, leases=leases
        )
    story.start(9, "x", 32.0, pid=21, entry="9-9", leases=("w2.0",))
    story.finish("x", 32.1, 21)
    story.succeed("x", 9)
    story.state.results["p"] = Outcome("FAILURE", "rsq.errors.WorkerLost")
    story.state.published["p"] = ["FAILURE"]
    story.state.dead["default"].append("p")
    story.count("dead")
    story.count("crashed", 2)


@pytest.mark.parametrize(("neighbour_after", "found"), [(0, []), (1, ["rerun"])])
def test_only_the_first_death_by_a_poison_may_take_outcomes_along(
    story: Story, neighbour_after: int, found: list[str]
) -> None:
    swallow(story, neighbour_after)
    assert story.found() == found


def test_a_poison_counts_one_crash_for_each_process_it_killed(story: Story) -> None:
    swallow(story, 0)
    story.count("crashed")
    assert story.found() == ["double"]


@pytest.mark.parametrize(
    ("entered", "kind", "leases", "found"),
    [
        (34.0, "freeze_supervisor", ("w2.0",), ["reads on"]),
        (31.0, "freeze_supervisor", ("w2.0",), []),  # its lease still held, or it could not know better
        (37.0, "freeze_supervisor", ("w2.0",), []),  # its supervisor was back
        (34.0, "freeze_worker", ("w2.0",), []),  # given to a process that stood still
        (34.0, "freeze_supervisor", LEASES, []),
    ],
)
def test_a_child_without_a_lease_reads_nothing(
    story: Story, entered: float, kind: str, leases: tuple[str, ...], found: list[str]
) -> None:
    enter(story, entered, leases=leases)
    story.strike(kind, 30.0, 36.0)
    assert story.found() == found


# -- callers


@pytest.mark.parametrize(
    ("until", "how", "fault", "found"),
    [
        (17.0, "timeout", None, ["deaf"]),
        (17.0, "value", None, ["deaf"]),
        (17.0, "timeout", ("restart_server", 8.0, 9.0), ["deaf"]),
        (17.0, "value", ("restart_server", 8.0, 14.0), []),
        (17.0, "timeout", ("freeze_server", 8.0, 18.0), []),
        (17.0, "unavailable", ("freeze_server", 8.0, 18.0), []),
        (17.0, "timeout", ("freeze_worker", 8.0, 18.0), ["deaf"]),  # the result was there before
        (5.0, "value", None, []),
    ],
)
def test_a_caller_that_hears_too_late(
    story: Story, until: float, how: str, fault: tuple[str, float, float] | None, found: list[str]
) -> None:
    story.state.heard_at["a"] = 2.2
    story.wait("a", 2.0, until, how, value=1)
    if fault is not None:
        kind, at, healed = fault
        story.strike(kind, at, healed, workers=(EVERYBODY,) if kind.endswith("server") else (1,))
    assert story.found() == found


@pytest.mark.parametrize(("at", "found"), [(2.1, []), (3.0, ["deaf"])])
def test_who_only_looks_finds_what_is_there(story: Story, at: float, found: list[str]) -> None:
    story.wait("a", 2.0, 2.2, "value", value=1)
    story.wait("a", at, at, "timeout", timeout=0.0)
    assert story.found() == found


@pytest.mark.parametrize(
    ("timeout", "waited_s", "how", "found"),
    [
        (20.0, 3.1, "unavailable", ["hasty"]),
        (20.0, 3.1, "timeout", ["hasty"]),
        (20.0, 20.0, "unavailable", []),
        (20.0, 3.1, "revoked", []),
        (None, 3.1, "unavailable", ["hasty"]),
        (None, 5.0, "unavailable", []),
    ],
)
def test_a_caller_is_not_sent_away_before_its_time(
    story: Story, timeout: float | None, waited_s: float, how: str, found: list[str]
) -> None:
    story.wait("b", 2.0, 2.0 + waited_s, how, timeout=timeout)
    assert story.found() == found


@pytest.mark.parametrize(
    ("timeout", "waited_s", "stalled_s", "found"),
    [
        (1.0, 3.0, 0.0, []),
        (1.0, 5.0, 0.0, ["hangs"]),
        (0.0, 5.1, 0.0, []),
        (0.0, 9.0, 0.0, ["hangs"]),
        (1.0, 5.0, 2.0, []),
        (None, 50.0, 0.0, []),
    ],
)
def test_a_wait_ends_at_its_deadline(
    story: Story, timeout: float | None, waited_s: float, stalled_s: float, found: list[str]
) -> None:
    story.wait("b", 2.0, 2.0 + waited_s, "value", timeout=timeout, value=2)
    if stalled_s:
        story.strike("stall", 3.0, 3.0 + stalled_s, workers=(EVERYBODY,))
    assert story.found() == found


@pytest.mark.parametrize(("took_s", "found"), [(6.0, []), (11.0, ["hangs"])])
def test_a_send_ends_at_its_deadline(story: Story, took_s: float, found: list[str]) -> None:
    story.add("tried", 2.0, until=2.0 + took_s, serials=[1, 2], how="gave up")
    assert story.found() == found


@pytest.mark.parametrize(
    ("task_id", "how", "value", "found"),
    [("a", "value", 2, ["wrong"]), ("a", "failure", None, ["wrong"]), ("f", "failure", None, [])],
)
def test_a_caller_is_told_what_is_his(
    story: Story, task_id: str, how: str, value: int | None, found: list[str]
) -> None:
    story.wait(task_id, 2.0, 3.0, how, value=value)
    assert story.found() == found


# -- revoked


def take_back(story: Story, answer: str | None, *, at: float = 30.0, terminate: bool = False) -> None:
    story.accept(9, "x", "revocable", at=20.0)
    story.add("revoked", at, until=at + 0.1, id="x", terminate=terminate, answer=answer)


def end_revoked(story: Story) -> None:
    story.state.results["x"] = Outcome("REVOKED", "revoked")
    story.state.published["x"] = ["REVOKED"]
    story.count("revoked")


@pytest.mark.parametrize("answer", ["revoked", "marked", "done", None])
def test_a_revoked_call_that_never_began_is_clean(story: Story, answer: str | None) -> None:
    take_back(story, answer)
    end_revoked(story)
    assert story.found() == []


def test_a_revoked_call_may_have_run_before(story: Story) -> None:
    take_back(story, "revoked")
    story.start(9, "x", 25.0, kind="revocable", entry="9-9")
    story.finish("x", 25.1, how="raised")
    end_revoked(story)
    story.count("retried")
    assert story.found() == []


def test_a_revoked_call_without_an_outcome_is_lost(story: Story) -> None:
    take_back(story, "marked")
    assert story.found() == ["lost"]


@pytest.mark.parametrize("answer", ["revoked", "done"])
def test_a_call_that_began_after_it_had_ended(story: Story, answer: str) -> None:
    take_back(story, answer)
    story.start(9, "x", 30.2, kind="revocable", entry="9-9")
    end_revoked(story)
    assert story.found() == ["revoked"]


def test_one_that_woke_up_fenced_may_begin_then(story: Story) -> None:
    take_back(story, "revoked")
    story.start(9, "x", 30.2, kind="revocable", entry="9-9", leases=("w2.0",))
    end_revoked(story)
    assert story.found() == []


def test_a_revoked_call_with_another_outcome(story: Story) -> None:
    take_back(story, "revoked")
    story.start(9, "x", 30.0, kind="revocable", entry="9-9")
    story.finish("x", 30.1)
    story.succeed("x", 9, "w1.0")
    assert story.found() == ["revoked"]


def test_two_outcomes_of_a_revoked_call(story: Story) -> None:
    take_back(story, "revoked")
    end_revoked(story)
    story.state.published["x"].append("REVOKED")
    story.count("revoked")
    assert story.found() == ["double"]
    assert len(check(story.history, story.state)) == 2


def test_a_call_is_revoked_that_nobody_revoked(story: Story) -> None:
    story.accept(9, "x", "revocable", at=20.0)
    end_revoked(story)
    assert story.found() == ["wrong"]


@pytest.mark.parametrize(
    ("at", "entry_ms", "found"), [(30.9, 29_000, []), (30.9, 30_500, ["revoked"]), (36.0, 29_000, ["revoked"])]
)
def test_a_marked_call_may_begin_only_where_it_was_fetched_before(
    story: Story, at: float, entry_ms: int, found: list[str]
) -> None:
    story.add("ticked", 50.0, kind="tick", now_ms=50_000, since=50_000, until=49_000)
    take_back(story, "marked")
    story.start(9, "x", at, kind="revocable", entry=f"default/0/{entry_ms}-0")
    story.finish("x", at + 0.1)
    story.succeed("x", 9, "w1.0")
    assert story.found() == found


def test_a_machine_that_stood_still_explains_a_late_start(story: Story) -> None:
    take_back(story, "marked")
    story.strike("stall", 31.0, 35.0, workers=(EVERYBODY,))
    story.start(9, "x", 36.0, kind="revocable", entry="9-9")
    story.finish("x", 36.1)
    story.succeed("x", 9, "w1.0")
    assert story.found() == []


@pytest.mark.parametrize(
    ("terminate", "ended", "cut", "found"),
    [
        (True, 31.0, False, []),
        (True, 37.0, False, ["revoked"]),
        (True, 37.0, True, []),
        (False, 37.0, False, []),
    ],
)
def test_a_body_that_is_not_interrupted(
    story: Story, terminate: bool, ended: float, cut: bool, found: list[str]
) -> None:
    take_back(story, "marked", terminate=terminate)
    story.start(9, "x", 29.0, kind="revocable", entry="9-9")
    story.finish("x", ended)
    story.succeed("x", 9, "w1.0")
    if cut:
        story.strike("partition", 30.0, 33.0)
    assert story.found() == found


def test_a_caller_who_does_not_hear_that_it_was_revoked(story: Story) -> None:
    take_back(story, "revoked")
    end_revoked(story)
    story.wait("x", 29.0, 44.0, "timeout")
    assert story.found() == ["deaf"]


def test_a_mark_that_outlives_its_call(story: Story) -> None:
    take_back(story, "marked")
    end_revoked(story)
    story.state.left.marks.append("x in {rsq:0}:default:revoked")
    assert story.found() == ["leak"]


# -- limits


@pytest.mark.parametrize(
    ("leases", "ended", "found"), [(LEASES, 31.5, ["crowded"]), (LEASES, 30.9, []), (("w1.0", "w2.0"), 31.5, [])]
)
def test_more_at_once_than_a_limit_allows(
    story: Story, leases: tuple[str, ...], ended: float, found: list[str]
) -> None:
    for number, (pid, at) in enumerate(((12, 30.0), (21, 30.5), (11, 31.0)), 7):
        task_id = f"l{number}"
        story.accept(number, task_id, "limited", at=20.0)
        story.start(number, task_id, at, kind="limited", pid=pid, entry=f"9-{number}", leases=leases)
        story.finish(task_id, ended if pid == 12 else 31.6, pid)
        story.succeed(task_id, number)
    assert story.found() == found


# -- slots of schedules


def tick(story: Story, second: int, kind: str = "tick", at: float | None = None, pid: int = 11) -> str:
    task_id = f"{kind}:{second}000"
    serial, at = tick_serial(task_id), second + 0.1 if at is None else at
    story.start(serial, task_id, at, kind=kind, entry=f"{int(at * 1000)}-0", pid=pid)
    story.finish(task_id, at + 0.05, pid)
    return task_id


def ticking(story: Story, kind: str, *seconds: int, until: int = 105) -> None:
    for second in seconds:
        task_id = tick(story, second, kind)
        story.succeed(task_id, tick_serial(task_id), "w1.0")
    story.add("ticked", 200.0, kind=kind, now_ms=200_000, since=101_000, until=until * 1000)


@pytest.mark.parametrize("kind", ["tick", "tock"])
def test_each_slot_once_is_clean(story: Story, kind: str) -> None:
    ticking(story, kind, 100, 101, 102, 103, 104, 105)
    assert story.found() == []


def test_a_slot_that_was_passed_over(story: Story) -> None:
    ticking(story, "tick", 101, 102, 104, 105)
    assert story.found() == ["skipped"]


def test_the_last_slot_that_was_passed_over(story: Story) -> None:
    ticking(story, "tick", 101, 102, 103, 104)
    assert story.found() == ["skipped"]


def test_slots_that_were_missed_while_nothing_beat(story: Story) -> None:
    ticking(story, "tick", 101, 102, 115, until=115)
    # The last that were missed were less than ten seconds late.
    seconds = [int(violation.text.split()[1]) for violation in check(story.history, story.state)]
    assert sorted(seconds) == [*range(106, 115)]


def test_a_slot_that_had_to_be_caught_up_with_is_lost(story: Story) -> None:
    ticking(story, "tock", 101, 102, 115, until=115)
    violations = check(story.history, story.state)
    assert [violation.kind for violation in violations] == ["lost"] * 12


@pytest.mark.parametrize("kind", ["tick", "tock"])
def test_a_slot_that_was_fired_twice(story: Story, kind: str) -> None:
    ticking(story, kind, 101, 102, 103, 104, 105)
    tick(story, 103, kind, at=103.3, pid=21)
    story.state.published[f"{kind}:103000"].append("SUCCESS")
    story.count("succeeded")
    assert story.found() == ["double"]


def test_a_slot_that_nobody_fired(story: Story) -> None:
    ticking(story, "tick", 101, 102, 103, 104, 105, 106)
    assert story.found() == ["phantom"]


# -- recovery


def samples(story: Story) -> list[Sample]:
    return [
        Sample(sample.number, sample.kind, round(sample.seconds, 6), sample.alone)
        for sample in recoveries(story.history)
    ]


def test_recovery_after_a_kill_is_the_time_to_the_first_start_elsewhere(story: Story) -> None:
    story.start(9, "x", 10.0, entry="9-9")
    story.start(8, "y", 10.0, pid=12, entry="9-8")
    story.strike("kill_child", 10.5, 10.6, pids=(11,))
    story.start(9, "x", 11.0, pid=21, entry="9-9")
    story.start(9, "x", 13.0, pid=12, entry="9-9")
    assert samples(story) == [Sample(1, "kill_child", 0.5, True)]


def test_a_call_that_ended_before_the_fault_has_nothing_to_recover(story: Story) -> None:
    story.start(9, "x", 10.0, entry="9-9")
    story.finish("x", 10.4)
    story.strike("kill_worker", 10.5, 10.6)
    assert samples(story) == []


def test_recovery_beside_another_fault_is_told_apart(story: Story) -> None:
    story.start(9, "x", 10.0, entry="9-9")
    story.strike("kill_worker", 10.5, 10.6)
    story.strike("restart_server", 10.7, 10.9, workers=(EVERYBODY,))
    story.start(9, "x", 12.5, pid=21, entry="9-9")
    assert samples(story) == [Sample(1, "kill_worker", 2.0, False), Sample(2, "restart_server", 1.6, False)]


def test_recovery_after_a_stop_is_that_of_what_was_handed_back(story: Story) -> None:
    story.start(9, "x", 10.0, entry="9-9")
    story.strike("terminate", 10.5, 11.0, held=["9-9", "9-8"])
    story.start(8, "y", 10.75, pid=21, entry="9-8")
    story.finish("x", 10.8)
    assert samples(story) == [Sample(1, "terminate", 0.25, True)]


def test_recovery_after_a_restart_of_the_server_is_that_of_each_worker(story: Story) -> None:
    story.strike("restart_server", 10.5, 11.0, workers=(EVERYBODY,))
    story.start(9, "x", 11.5, entry="9-9")
    story.start(8, "y", 11.75, pid=21, entry="9-8")
    story.start(7, "z", 12.0, pid=12, entry="9-7")
    assert samples(story) == [Sample(1, "restart_server", 0.5, True), Sample(1, "restart_server", 0.75, True)]


def test_recovery_of_a_node_is_the_longest_pause_in_its_queues(story: Story) -> None:
    story.strike("kill_master", 10.5, 14.0, workers=(EVERYBODY,), queues=("bulk",))
    for serial, at in ((7, 10.75), (8, 13.25), (9, 14.5)):
        story.start(serial, str(serial), at, pid=12, entry=f"bulk/0/{serial}-0")
    story.start(6, "x", 12.0, pid=11, entry="default/0/1-0")
    assert samples(story) == [Sample(1, "kill_master", 2.5, True)]


@pytest.mark.parametrize(("percent", "value"), [(50, 2), (99, 4), (100, 4), (25, 1), (1, 1)])
def test_percentiles(percent: float, value: float) -> None:
    assert percentile([4, 2, 1, 3], percent) == value


def test_the_table_of_the_docs() -> None:
    samples = [Sample(1, "kill_child", seconds, alone) for seconds, alone in ((0.25, True), (0.5, True), (9.0, False))]
    report = Report(1, 120.0, "redis", {"accepted": 7}, {"kill_child": 3, "kill_worker": 1}, samples, [])
    head, _, _, _, first, *others = render_markdown(report).splitlines()
    assert head == "2 minutes, lease 2 s: 4 faults, 7 calls, 0 violations."
    assert first == "| a child process is killed | 2 | 0.25 | 0.50 | 0.50 | 1.00 |"
    assert others == ["| a whole worker is killed | 0 | - | - | - | 7.00 |"]


# -- the journal


def test_a_torn_line_is_passed_over(tmp_path: Any) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.write("problem", text="one")
    with path.open("ab") as file:
        file.write(b'\n{"what": "finis')
    journal.write("problem", text="two", at=0.0)
    journal.close()
    assert [record["text"] for record in read(path)] == ["two", "one"]


# -- flows


@pytest.fixture
def flow(story: Story) -> Story:
    """A chain of 20 and 21, then a chord of these two in 22, which dies at first; 23 hears of that."""
    errbacks = [(23, ([22], "e22"))]
    drawn(story, "e22", [(20, []), (21, [20]), (22, [20, 21])], errbacks)
    story.run(20, "e20", 5.0, kind="step", entry="2-20", given=[])
    story.run(21, "e21", 5.2, kind="bulk_step", entry="2-21", given=[20])
    story.accept(22, "e22", "breaks")
    for at, entry, how in ((5.4, "2-22", "raised"), (6.0, "3-22", "returned")):
        story.start(22, "e22", at, kind="breaks", entry=entry, given=[20, 21])
        story.finish("e22", at + 0.1, how=how)
    story.state.published["e22"] = ["FAILURE", "SUCCESS"]
    story.state.results["e22"] = Outcome("SUCCESS", 22, "w2.0")
    story.count("succeeded")
    story.count("dead")
    story.run(23, "e23", 5.6, kind="errback", entry="2-23", about="e22")
    story.state.flows["e22"] = head(ok=3)
    return story


def drawn(story: Story, flow_id: str, needs: list[Any], errbacks: Any = (), **more: Any) -> None:
    others = {"behind": [], "answers": [], "counted": [serial for serial, _ in needs]}
    story.add("flow", 1.0, id=flow_id, needs=needs, errbacks=errbacks, **{**others, **more})


def head(**more: Any) -> Flow:
    plain = Flow("e22", "succeeded", 4, 3, 0, 0, 0, None, "", 1, 2, True, False)
    return replace(plain, **more)


def change(story: Story, what: str, task_id: str, **fields: Any) -> None:
    """Another course of events."""
    for record in story.records:
        if record["what"] == what and record.get("id") == task_id:
            record.update(fields)


def test_a_flow_that_broke_and_was_sent_again_is_clean(flow: Story) -> None:
    assert flow.found() == []


def test_a_step_that_began_before_the_one_before_it_had_ended_is_early(flow: Story) -> None:
    change(flow, "finished", "e20", at=5.25)
    assert flow.found() == ["early"]


def test_a_step_that_began_though_the_one_before_it_had_not_succeeded_is_early(flow: Story) -> None:
    change(flow, "finished", "e21", how="raised")
    assert "early" in flow.found()


def test_an_errback_that_ran_though_nothing_had_failed_is_early(flow: Story) -> None:
    change(flow, "started", "e23", at=5.3)
    change(flow, "finished", "e23", at=5.35)
    assert flow.found() == ["early"]


@pytest.mark.parametrize("given", [[21, 20], [20], [20, 20, 21], None])
def test_a_body_that_was_given_other_values_is_wrong(flow: Story, given: list[int] | None) -> None:
    change(flow, "started", "e22", given=given)
    assert flow.found() == ["wrong"]


def test_an_errback_that_was_told_of_another_call_is_wrong(flow: Story) -> None:
    change(flow, "started", "e23", about="e21")
    assert flow.found() == ["wrong"]


def test_a_body_that_was_released_twice_is_a_double(flow: Story) -> None:
    flow.start(21, "e21", 5.35, kind="bulk_step", entry="9-9", given=[20])
    flow.finish("e21", 5.36)
    assert flow.found() == ["double"]


def test_an_errback_that_never_ran_is_lost(flow: Story) -> None:
    flow.records = [record for record in flow.records if record.get("id") != "e23" or record["what"] == "accepted"]
    del flow.state.results["e23"], flow.state.published["e23"]
    flow.count("succeeded", -1)
    assert flow.found() == ["lost"]


@pytest.mark.parametrize(
    "seen", [None, head(state="started", ok=2, open=1), head(state="failed", ok=2, bad=1), head(ok=2), head(total=2)]
)
def test_a_flow_that_has_not_come_to_its_end_is_unfinished(flow: Story, seen: Flow | None) -> None:
    flow.state.flows = {} if seen is None else {"e22": seen}
    assert flow.found() == ["unfinished"]


def test_what_a_flow_leaves_behind_is_a_leak(flow: Story) -> None:
    flow.state.left.flows.append("e22 in {rsq:0}::flows")
    assert flow.found() == ["leak"]


def test_parts_of_a_flow_that_was_cancelled_need_not_run(story: Story) -> None:
    drawn(story, "e21", [(20, []), (21, [20])])
    story.run(20, "e20", 5.0, kind="step", entry="2-20", given=[])
    story.accept(21, "e21", "step")
    story.add("cancelled", 5.05, until=5.06, id="e21", terminate=False, answer="marked")
    story.state.flows["e21"] = head(id="e21", state="cancelled", total=2, ok=1, bad=1)
    assert story.found() == []
    story.start(21, "e21", 20.0, kind="step", given=[20])
    assert story.found() == ["revoked"]


@pytest.fixture
def replaced(story: Story) -> Story:
    """20 gives its place to 21 and 22, which has its id, and 23 comes behind it."""
    needs = [(20, []), (21, []), (22, [21]), (23, [22])]
    drawn(story, "e23", needs, behind=[(21, [(20, "replaced")])], answers=[(20, [22])], counted=[20, 23])
    story.accept(20, "e20", "replaces")
    story.start(20, "e20", 5.0, kind="replaces", entry="2-20", given=[])
    story.finish("e20", 5.1, how="replaced")
    story.run(21, "e21", 5.2, kind="step", entry="2-21", given=[])
    story.run(22, "e20", 5.4, kind="step", entry="2-22", given=[21])
    story.run(23, "e23", 5.6, kind="step", entry="2-23", given=[22])
    story.state.flows["e23"] = head(id="e23", total=2, ok=2)
    return story


def test_a_call_that_gave_its_place_away_is_clean(replaced: Story) -> None:
    assert replaced.found() == []


def test_what_takes_a_place_before_the_call_has_ended_is_early(replaced: Story) -> None:
    change(replaced, "finished", "e20", at=5.25)
    assert "early" in replaced.found()


def test_what_takes_a_place_that_was_not_given_away_is_early(replaced: Story) -> None:
    change(replaced, "finished", "e20", how="raised")
    assert "early" in replaced.found()


@pytest.mark.parametrize("value", [20, [21, 22], [22, 21]])
def test_a_call_that_gave_another_value_than_what_stood_for_it_is_wrong(replaced: Story, value: Any) -> None:
    replaced.state.results["e20"] = Outcome("SUCCESS", value, "w2.0")
    assert replaced.found() == ["wrong"]


def test_values_that_were_gathered_for_a_replaced_call(story: Story) -> None:
    """A group stands for 20: nobody's journal tells of what gathers it."""
    needs: list[Any] = [(20, []), (21, []), (22, [])]
    behind = [(21, [(20, "replaced")]), (22, [(20, "replaced")])]
    drawn(story, "e20", needs, behind=behind, answers=[(20, [21, 22])], counted=[20])
    story.accept(20, "e20", "replaces")
    story.start(20, "e20", 5.0, kind="replaces", entry="2-20", given=[])
    story.finish("e20", 5.1, how="replaced")
    story.run(21, "e21", 5.2, kind="step", entry="2-21", given=[])
    story.run(22, "e22", 5.4, kind="step", entry="2-22", given=[])
    story.succeed("e20", [21, 22], "")
    story.state.flows["e20"] = head(id="e20", total=1, ok=1)
    assert story.found() == []
    story.state.results["e20"] = Outcome("SUCCESS", [21], "")
    assert story.found() == ["wrong"]


@pytest.fixture
def batch(story: Story) -> Story:
    """20 adds 21, which dies at first; 22 hears of the end, 23 of the success, 24 of the death."""
    behind = [
        (21, [(20, "returned")]),
        (22, [(20, "ended"), (21, "ended")]),
        (23, [(20, "returned"), (21, "returned")]),
    ]
    needs: list[Any] = [(20, []), (21, []), (22, []), (23, [])]
    drawn(story, "b1", needs, [(24, ([20, 21], None))], behind=behind, counted=[20, 21])
    story.run(20, "e20", 5.0, kind="adds", entry="2-20", given=[])
    story.accept(21, "e21", "breaks")
    for at, entry, how in ((5.2, "2-21", "raised"), (6.0, "3-21", "returned")):
        story.start(21, "e21", at, kind="breaks", entry=entry, given=[])
        story.finish("e21", at + 0.1, how=how)
    story.state.published["e21"] = ["FAILURE", "SUCCESS"]
    story.state.results["e21"] = Outcome("SUCCESS", 21, "w2.0")
    story.count("succeeded")
    story.count("dead")
    story.run(22, "e22", 5.4, kind="callback", entry="2-22", given=[])
    story.run(24, "e24", 5.6, kind="callback", entry="2-24", given=[])
    story.run(23, "e23", 6.2, kind="callback", entry="2-23", given=[])
    story.state.flows["b1"] = head(id="b1", total=2, ok=2)
    return story


def test_a_batch_whose_member_adds_one_that_dies_and_is_sent_again_is_clean(batch: Story) -> None:
    assert batch.found() == []


@pytest.mark.parametrize("callback", ["e22", "e23", "e24"])
def test_a_callback_that_ran_before_its_time_is_early(batch: Story, callback: str) -> None:
    change(batch, "started", callback, at=5.15)
    change(batch, "finished", callback, at=5.18)
    assert batch.found() == ["early"]


def test_a_member_that_ran_before_the_one_that_adds_it_had_ended_is_early(batch: Story) -> None:
    change(batch, "finished", "e20", at=5.25)
    assert batch.found() == ["early"]


@pytest.mark.parametrize("callback", ["e22", "e23", "e24"])
def test_a_callback_that_never_ran_is_lost(batch: Story, callback: str) -> None:
    batch.records = [each for each in batch.records if each.get("id") != callback or each["what"] == "accepted"]
    del batch.state.results[callback], batch.state.published[callback]
    batch.count("succeeded", -1)
    assert batch.found() == ["lost"]


@pytest.mark.parametrize("total", [1, 3])
def test_a_batch_to_which_other_calls_were_added_is_unfinished(batch: Story, total: int) -> None:
    batch.state.flows["b1"] = head(id="b1", total=total, ok=total)
    assert batch.found() == ["unfinished"]
