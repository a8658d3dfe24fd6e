"""Names of limits, and ids of calls: what a user chose must never stand for something else."""

from __future__ import annotations

import pytest

from rsq import App, codec
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery
from rsq.worker.permits import bring_newer, rules_of

app = App("permits")


@app.task(name="a", max_concurrency=1, max_concurrency_key="{key}", rate_limit="1/s", rate_limit_key="{key}")
def first(key: str) -> None: ...


@app.task(name="a:b", max_concurrency=1, max_concurrency_key="{key}", rate_limit="1/s", rate_limit_key="{key}")
def second(key: str) -> None: ...


@App("another").task(name="a:b", max_concurrency=1, rate_limit="1/s")
def whole(key: str) -> None: ...


def delivery(*arguments: object, task_id: bytes = b"x", meta: bytes = b"") -> Delivery:
    body = codec.encode([[*arguments], {}])
    return Delivery("q", 0, b"1-1", [b"id", task_id, b"task", b"t", b"body", body, b"meta", meta])


def test_tasks_and_keys_with_colons_have_limits_of_their_own() -> None:
    rules = [rules_of(first, delivery("b:c")), rules_of(second, delivery("c")), rules_of(first, delivery("b"))]
    rules.append(rules_of(whole, delivery("b")))
    assert all(isinstance(each, Rules) for each in rules)
    assert len({each.slot[0] for each in rules if each}) == 4
    assert len({each.rate[0] for each in rules if each and each.rate}) == 4


@pytest.mark.parametrize("task_id", [b"", b"a b", b"a\0", b"\0", b"a\n", "\xe4".encode(), b"x" * 101])
def test_an_id_that_would_stand_for_another_call_is_none(task_id: bytes) -> None:
    read = delivery(task_id=task_id)
    assert (read.problem != "", read.id, read.task) == (True, "1-1", "")


def test_meta_that_cannot_be_read_goes_on_as_it_came() -> None:
    read = delivery(1, meta=b"\xc1")
    assert (read.problem != "", read.id, read.task, read.meta, read.meta_raw) == (True, "x", "t", {}, b"\xc1")
    assert codec.decode_call(read.body) == ([1], {})


def test_newer_arguments_with_meta_that_cannot_be_read() -> None:
    read = delivery(1)
    assert bring_newer(read, (3, "t", b"newer", b"\xc1")) == 3
    assert (read.body, read.meta_raw, read.problem != "") == (b"newer", b"\xc1", True)
