"""What the server is asked before a body may start: for versions, limits, and calls that others may replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsq.broker.replies import Begin
from rsq.broker.worker_queue import Rules
from rsq.calls.inputs import arguments_of
from rsq.calls.message import Delivery, unpack_meta
from rsq.calls.outcome import Retried
from rsq.calls.source import decoded
from rsq.errors import DecodeError
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
    return Rules(None if version is None else tuple(version), slot, rate)


def _namer(task: Task[..., Any], delivery: Delivery) -> Callable[[str, str | Callable[..., str] | None], str]:
    # The first colon is where the key begins: no task and key have the limit of another task and key.
    first = task.name.replace("%", "%25").replace(":", "%3A")

    def name(option: str, key: str | Callable[..., str] | None) -> str:
        if key is None:
            return first
        args, kwargs = arguments_of(delivery)
        return f"{first}:{task.key_of(option, key, decoded(task.source, delivery, args), kwargs)}"

    return name


def bring_newer(delivery: Delivery, newer: tuple[int, str, bytes, bytes]) -> int:
    """Give a delivery what a duplicate brought for it, see `Begin`; gives its revision."""
    revision, delivery.task, delivery.body, delivery.meta_raw = newer
    try:
        delivery.meta = unpack_meta(delivery.meta_raw)
    except DecodeError as error:
        delivery.problem = str(error)
    return revision


def put_off(delivery: Delivery, rules: Rules, answer: Begin) -> Retried:
    """It may not start yet: it comes back when its turn has come, or a slot is free, with no attempt counted."""
    if answer.why == "slot":
        why = f"{rules.slot[1]} of {rules.slot[0]} run already"
        return Retried(delivery, "limited", delivery.meta, answer.wait_ms, why, rules.slot)
    if answer.why == "twin":
        return Retried(delivery, "limited", delivery.meta, answer.wait_ms, "another event with its id has not ended")
    assert rules.rate is not None
    return Retried(delivery, "limited", delivery.meta, answer.wait_ms, f"the rate of {rules.rate[0]} is reached")
