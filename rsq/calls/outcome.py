"""What became of a delivery: the verdict that the committer writes, and the `Result` that a caller reads.

A result is a packed array ``[state, attempt, runtime_s, value]``; after a failure ``value`` is the error record of
`rsq.remote.encode_error`, and for a revoked call the reason as text.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rsq import codec
from rsq.calls.message import Delivery
from rsq.calls.plan import Plan
from rsq.errors import DecodeError, EncodeError, MessageTooLarge, TaskRevoked
from rsq.remote import decode_error
from rsq.states import State

_SUCCESS_HEAD = b"\x94" + codec.encode(State.SUCCESS.value)
_NUMBER_AT = len(_SUCCESS_HEAD)
_LONGER = {0xCC: 2, 0xCD: 3, 0xCE: 5}
_NONE = codec.encode(None)


class Completed:
    """Done: succeeded, ignored or revoked. `counter` is the name under which it is counted.

    result, ttl_ms  b"" and 0: none is kept. A result with 0 is for the flow of the call alone
    """

    __slots__ = ("counter", "delivery", "result", "ttl_ms")

    def __init__(self, delivery: Delivery, counter: str, result: bytes, ttl_ms: int) -> None:
        self.delivery = delivery
        self.counter = counter
        self.result = result
        self.ttl_ms = ttl_ms


@dataclass(slots=True)
class Retried:
    """Another attempt after `delay_ms`; with counter ``deferred`` or ``limited`` the same attempt once more.

    why   for the log
    slot  (name, how many there are) of the concurrency limit that it waits for: it comes back when one is free
    """

    delivery: Delivery
    counter: str
    meta: Mapping[str, Any]
    delay_ms: int
    why: str
    slot: tuple[str, int] = ("", 0)


@dataclass(slots=True)
class Buried:
    """To the dead letters. `error` is the record that people read, `result` what a waiting caller gets."""

    delivery: Delivery
    reason: str
    error: Mapping[str, Any]
    result: bytes
    ttl_ms: int


@dataclass(slots=True)
class Released:
    """Handed back as if it had never been fetched. One that was acknowledged early cannot be: nothing becomes of it."""

    delivery: Delivery


@dataclass(slots=True)
class Replaced:
    """It hands its id, and its place in its flow, on to a call of a new flow: that call's number there is `tail`."""

    delivery: Delivery
    plan: Plan
    tail: int


Verdict: TypeAlias = "Completed | Retried | Buried | Released | Replaced"


def pack_success(attempt: int, runtime_s: float, value: object, max_bytes: int) -> bytes:
    """The packed result of a task that returned `value`.

    Raises EncodeError (with the path of the culprit) and MessageTooLarge: such a task has failed.
    """
    packed = _NONE if value is None else codec.encode(value, "result", max_bytes)
    number = bytes((attempt,)) if attempt < 128 else codec.encode(attempt)
    return _SUCCESS_HEAD + number + b"\xcb" + struct.pack(">d", runtime_s) + packed


def pack_failure(state: State, attempt: int, runtime_s: float, value: object) -> bytes:
    """The packed result of a call that failed (`value` is its error record) or was revoked (its reason)."""
    return codec.encode([state.value, attempt, runtime_s, value], "result")


REVOKED_TTL_MS = 86_400_000
"""How long it is readable that a call was revoked, whatever its task says of results."""


def revoked(delivery: Delivery) -> Completed:
    """The verdict on a call that was revoked."""
    result = pack_failure(State.REVOKED, delivery.attempt, delivery.runtime_s, "revoked")
    return Completed(delivery, "revoked", result, REVOKED_TTL_MS)


@dataclass(frozen=True)
class Result:
    """An outcome as the caller reads it.

    value      what the task returned; None unless it succeeded
    error      record with type, message, args and traceback; None unless it failed
    reason     why it was revoked, or ''
    attempt    number of the run that decided it, from 1
    runtime_s  how long that run took
    """

    state: State
    attempt: int
    runtime_s: float
    value: Any = None
    error: Mapping[str, Any] | None = None
    reason: str = ""


def unpack_result(data: bytes) -> Result:
    """The inverse of `pack_success` and `pack_failure`. Raises DecodeError."""
    record = codec.decode(data)
    try:
        name, attempt, runtime_s, value = record
        state = State(name)
        if state is State.FAILURE:
            return Result(state, attempt, runtime_s, error=dict(value))
        if state is State.REVOKED:
            return Result(state, attempt, runtime_s, reason=str(value))
        return Result(state, attempt, runtime_s, value=value)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"these bytes are not a result: {error}") from None


_ENDINGS = {State.SUCCESS: "succeeded", State.FAILURE: "dead", State.REVOKED: "revoked"}


def ending_of(data: bytes | None) -> str:
    """How a call has ended with this packed result, by the words of `rsq.states.ENDINGS`; '' = nobody knows."""
    for state, word in _ENDINGS.items():
        if data is not None and data[1:].startswith(codec.encode(state.value)):
            return word
    return ""


def failure_of(result: Result, name: str = "the call") -> Exception:
    """What a call raises for whoever waits for it, where it did not succeed. `name` is what an error calls it."""
    if result.error is not None:
        return decode_error(dict(result.error))
    return TaskRevoked(f"{name} was not run: {result.reason or 'revoked'}")


def report_of(verdict: Completed | Buried) -> tuple[int, bytes]:
    """What the flow of a call is told of its end, as `rsq.broker.rows.Reported` has it: (skip, value)."""
    result = verdict.result
    if isinstance(verdict, Buried):
        error = dict(verdict.error)
        return 0, b"" if result else pack_failure(State.FAILURE, verdict.delivery.attempt, 0.0, error)
    if verdict.counter not in ("succeeded", "ignored"):
        return 0, b"" if result else pack_failure(State.REVOKED, verdict.delivery.attempt, 0.0, verdict.counter)
    if not result:
        return 0, _NONE
    head = _head_of(result)
    return (head, b"") if verdict.ttl_ms else (0, result[head:])


def _head_of(result: bytes) -> int:
    """Where the value begins in what `pack_success` made."""
    number = result[_NUMBER_AT]
    return _NUMBER_AT + 10 if number < 0x80 else _NUMBER_AT + _LONGER[number] + 9


RESULT_ERRORS = (EncodeError, MessageTooLarge)
"""What `pack_success` raises for a value that cannot be kept."""
