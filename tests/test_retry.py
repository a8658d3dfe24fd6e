"""What follows from a failed attempt. No server, no clock."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsq import codec
from rsq.calls.message import Delivery, pack_meta
from rsq.calls.outcome import Buried, Completed, Retried, Verdict, unpack_result
from rsq.calls.retry import RetryPolicy, after_crashes, decide
from rsq.errors import Ignore, InvalidTask, MaxRetriesExceededError, Reject, Retry, WorkerLost
from rsq.states import State

NOW_MS = 1_700_000_000_000


def delivery(**meta: Any) -> Delivery:
    fields = [b"id", b"x1", b"task", b"t", b"body", codec.encode_call((), {}, None), b"meta", pack_meta(meta)]
    return Delivery("default", 0, b"1-1", fields)


def verdict(error: BaseException, policy: RetryPolicy | None = None, **meta: Any) -> Verdict:
    return decide(
        delivery(**meta),
        error,
        policy or RetryPolicy(),
        runtime_s=0.5,
        result_ttl_ms=1000,
        rng=random.Random(1),
        now_ms=NOW_MS,
    )


@given(attempt=st.integers(1, 10_000), base=st.floats(0.001, 100), cap=st.floats(0, 1000), seed=st.integers())
def test_backoff_stays_within_its_bound(attempt: int, base: float, cap: float, seed: int) -> None:
    policy = RetryPolicy(retry_backoff=base, retry_backoff_max=cap)
    bound = min(cap, base * 2.0 ** min(attempt - 1, 40))
    assert 0 <= policy.delay_ms(attempt, random.Random(seed)) <= bound * 1000


def test_backoff_without_jitter_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(retry_backoff=1, retry_backoff_max=10, retry_jitter=False)
    assert [policy.delay_ms(attempt, random.Random()) for attempt in range(1, 7)] == [
        1000,
        2000,
        4000,
        8000,
        10000,
        10000,
    ]


def test_no_backoff_means_the_default_delay() -> None:
    assert RetryPolicy(retry_backoff=0, default_retry_delay=7).delay_ms(5, random.Random()) == 7000


@pytest.mark.parametrize(
    ("options", "after_an_error_ms", "asked_for_ms"),
    [
        ({}, 2000, 2000),
        ({"retry_backoff": 5}, 10_000, 10_000),
        ({"default_retry_delay": 60}, 60_000, 60_000),
        ({"default_retry_delay": 0}, 0, 0),
        ({"retry_backoff": 0}, 180_000, 180_000),
        ({"retry_backoff": 5, "default_retry_delay": 60}, 10_000, 60_000),  # as in Celery: each has its own use
    ],
)
def test_a_delay_that_is_given_counts(options: dict[str, float], after_an_error_ms: int, asked_for_ms: int) -> None:
    policy = RetryPolicy(**options, retry_jitter=False)  # type: ignore[arg-type]
    assert policy.delay_ms(2, random.Random()) == after_an_error_ms
    asked = verdict(Retry(), policy, attempt=2)
    assert isinstance(asked, Retried)
    assert asked.delay_ms == asked_for_ms


def test_jitter_spreads_the_waits() -> None:
    rng = random.Random(7)
    assert len({RetryPolicy().delay_ms(5, rng) for _ in range(100)}) > 90


def test_any_exception_is_retried_as_often_as_allowed() -> None:
    for attempt in (1, 2, 3):
        again = verdict(ValueError("no"), attempt=attempt)
        assert isinstance(again, Retried)
        assert (again.counter, again.meta["attempt"]) == ("retried", attempt + 1)
    end = verdict(ValueError("no"), attempt=4)
    assert isinstance(end, Buried)
    assert end.reason == "retries-exhausted"
    assert unpack_result(end.result).state is State.FAILURE


def test_only_where_asked() -> None:
    policy = RetryPolicy(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,))
    assert isinstance(verdict(OSError(), policy), Retried)
    for error in (ValueError(), FileNotFoundError(), SystemExit(1)):
        end = verdict(error, policy)
        assert isinstance(end, Buried)
        assert end.reason == "failed"


def test_without_end() -> None:
    assert isinstance(verdict(ValueError(), RetryPolicy(max_retries=None), attempt=1000), Retried)


def test_the_message_overrides_the_task() -> None:
    assert isinstance(verdict(ValueError(), max_retries=0), Buried)
    assert isinstance(verdict(ValueError(), RetryPolicy(max_retries=0), max_retries=1), Retried)
    assert isinstance(verdict(ValueError(), RetryPolicy(max_retries=0), max_retries=None), Retried)


def test_a_retry_that_was_asked_for() -> None:
    again = verdict(Retry("", None, countdown=1.5), RetryPolicy(autoretry_for=()))
    assert isinstance(again, Retried)
    assert again.delay_ms == 1500
    end = verdict(Retry("", KeyError("why"), max_retries=1), attempt=2)
    assert isinstance(end, Buried)
    assert end.error["type"] == "builtins.KeyError"


def test_the_end_of_one_that_was_told_so() -> None:
    """Whatever the body raises once `self.retry()` had none left: its failure is the last one."""
    for error in (KeyError("why"), MaxRetriesExceededError()):
        message = delivery(attempt=2)
        message.exhausted = True
        end = decide(message, error, RetryPolicy(), runtime_s=0, result_ttl_ms=1, rng=random.Random(), now_ms=0)
        assert isinstance(end, Buried)
        assert end.reason == "retries-exhausted"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"exc": "text"}, "exc takes the error"),
        ({"exc": (1, 2)}, "exc takes the error"),
        ({"countdown": "soon"}, "countdown takes seconds"),
        ({"countdown": True}, "countdown takes seconds"),
        ({"countdown": float("nan")}, "countdown takes seconds"),
        ({"countdown": 1e300}, "a hundred years"),
        ({"countdown": timedelta(days=99_999)}, "a hundred years"),
        ({"max_retries": -1}, "max_retries takes a whole number"),
        ({"max_retries": 2.5}, "max_retries takes a whole number"),
        ({"max_retries": True}, "max_retries takes a whole number"),
    ],
)
def test_a_retry_that_cannot_be(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Retry(**wrong)


def test_the_countdown_of_a_retry_may_be_a_timedelta_and_is_never_negative() -> None:
    for countdown, expected_ms in ((timedelta(minutes=1), 60_000), (-5, 0)):
        again = verdict(Retry(countdown=countdown))
        assert isinstance(again, Retried)
        assert again.delay_ms == expected_ms


def test_reject_and_ignore() -> None:
    rejected = verdict(Reject("bad"))
    assert isinstance(rejected, Buried)
    assert rejected.reason == "rejected"
    back = verdict(Reject(requeue=True), attempt=2)
    assert isinstance(back, Retried)
    assert (back.counter, back.meta) == ("deferred", {"attempt": 2})
    ignored = verdict(Ignore())
    assert isinstance(ignored, Completed)
    assert (ignored.counter, ignored.result) == ("ignored", b"")


def test_crashes_and_deliveries_are_bounded_apart() -> None:
    message = delivery()
    assert after_crashes(message, RetryPolicy(), 16) is None
    message.deliveries = 16
    assert after_crashes(message, RetryPolicy(), 16) is None
    message.deliveries = 17
    assert after_crashes(message, RetryPolicy(), 16) is not None
    message.deliveries, message.crashes, message.crash_how = 2, 3, "signal SIGSEGV"
    found = after_crashes(message, RetryPolicy(), 16)
    assert found is not None
    reason, error = found
    assert reason == "worker-lost"
    assert isinstance(error, WorkerLost)
    assert "signal SIGSEGV" in str(error)


@pytest.mark.parametrize(
    "options",
    [
        {"autoretry_for": 5},
        {"autoretry_for": ("ValueError",)},
        {"max_retries": -1},
        {"max_crashes": 0},
        {"retry_backoff": -1},
        {"default_retry_delay": -0.1},
        {"default_retry_delay": float("inf")},
        {"retry_backoff_max": float("nan")},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask, match=next(iter(options))):
        RetryPolicy(**options)


@pytest.mark.parametrize(("expires_ms", "kind"), [(2000, Buried), (7200_000, Retried)])
@pytest.mark.parametrize("error", [ValueError("no"), Retry(countdown=60)])
def test_a_retry_that_would_come_after_it_has_expired_is_none(
    error: Exception, expires_ms: int, kind: type[Verdict]
) -> None:
    policy = RetryPolicy(retry_backoff=60, retry_jitter=False)
    assert type(verdict(error, policy, expires=NOW_MS + expires_ms)) is kind


def test_a_retry_that_was_due_at_once_is() -> None:
    again = verdict(Retry(countdown=-5))
    assert isinstance(again, Retried)
    assert again.delay_ms == 0
