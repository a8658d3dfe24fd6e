"""What the server is asked before a body may start: for versions, limits, and calls that others may replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsq import codec
from rsq.broker.replies import Begin
from rsq.broker.worker_queue import Rules
from rsq.calls.message import Delivery, pack_meta
from rsq.calls.outcome import Retried
from rsq.task import Task


def rules_of(task: Task[..., Any], delivery: Delivery) -> Rules | None:
    """The rules under which this call starts; None for nearly all, which start unasked.

    Raises SettingsError where a key of the task's does not fit the arguments, DecodeError for arguments that cannot be
    read, and whatever a function of the task's raises that makes keys.
    """
    meta, options = delivery.meta, task.options
    if not options.limited and "version" not in meta and "begin" not in meta:
        return None
    version = meta.get("version")
    name = _namer(task, delivery)
    slot, rate = ("", 0), None
    if options.max_concurrency is not None:
        slot = (name("max_concurrency_key", options.max_concurrency_key), options.max_concurrency)
    if options.rate is not None:
        rate = (name("rate_limit_key", options.rate_limit_key), *options.rate)
    return Rules(None if version is None else tuple(version), slot, rate, meta.get("reserved", False))


def _namer(task: Task[..., Any], delivery: Delivery) -> Callable[[str, str | Callable[..., str] | None], str]:
    def name(option: str, key: str | Callable[..., str] | None) -> str:
        if key is None:
            return task.name
        return f"{task.name}:{task.key_of(option, key, *codec.decode_call(delivery.body))}"

    return name


def grant(delivery: Delivery, answer: Begin) -> None:
    """It may start: with newer arguments where a duplicate brought some, and without what only the asking needed."""
    if answer.body:
        delivery.body = answer.body
    if "reserved" in delivery.meta:
        # The turn is spent: another attempt waits for one of its own.
        delivery.meta = {name: value for name, value in delivery.meta.items() if name != "reserved"}
        delivery.meta_raw = pack_meta(delivery.meta)


def put_off(delivery: Delivery, rules: Rules, answer: Begin) -> Retried:
    """It may not start yet: it comes back when its turn has come, or a slot is free, with no attempt counted."""
    if answer.why == "slot":
        why = f"{rules.slot[1]} of {rules.slot[0]} run already"
        return Retried(delivery, "limited", delivery.meta, answer.wait_ms, why, rules.slot)
    assert rules.rate is not None
    why = f"the rate of {rules.rate[0]} is reached"
    return Retried(delivery, "limited", {**delivery.meta, "reserved": True}, answer.wait_ms, why)
