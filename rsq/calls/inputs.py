"""What a call takes from others of its flow: their values, put among its arguments.

`takes` is as in `rsq.calls.plan`; of an errback it is a text: the number of the node that failed, the id that is told,
and the queue and the name of the task that failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rsq import codec
from rsq.calls.message import Delivery
from rsq.calls.outcome import failure_of, unpack_result
from rsq.calls.plan import Failed, Takes, numbers_of
from rsq.errors import MessageTooLarge

FAILED = b"\xc1"
"""Stands before a value that there is not: behind it is the packed result of the call that failed, or the packed number
of the node that did. No packed value begins with it."""


def takes_of(delivery: Delivery) -> Any:
    """What it takes by reference, or None."""
    place = delivery.meta.get("flow", ())
    return place[2] if len(place) > 2 else None


def wanted_by(delivery: Delivery) -> Iterator[int]:
    """The nodes whose values it takes by reference."""
    takes = takes_of(delivery)
    if isinstance(takes, str):
        yield int(takes.split(" ", 1)[0])
    else:
        base = _base_of(delivery)
        yield from (number + base for number in numbers_of(takes))


def added_to(delivery: Delivery) -> Sequence[int]:
    """To the list that it takes others were added: to which node's list that is, and how many. Empty: none."""
    place = delivery.meta["flow"]
    added: Sequence[int] = place[4] if len(place) > 4 else ()
    return added


def too_large(delivery: Delivery, numbers: Collection[int], most_bytes: int) -> MessageTooLarge:
    """For a call that takes more than a message may hold."""
    flow_id = delivery.meta["flow"][0]
    return MessageTooLarge(
        f"{delivery.task}[{delivery.id}] takes {len(numbers)} values of flow {flow_id}, which are more than "
        f"{most_bytes} bytes together: let its members store what they make, and return where that is"
    )


def arguments_of(delivery: Delivery) -> tuple[list[Any], dict[str, Any]]:
    """Its arguments, unpacked anew, with the values that it takes among them. Raises DecodeError.

    Those of an errback are as they were sent, see `rsq.calls.errbacks`.
    """
    args, kwargs = codec.decode_call(delivery.body)
    takes = takes_of(delivery)
    if takes is None or isinstance(takes, str):
        return args, kwargs
    base = _base_of(delivery)
    values = {number - base: value_of(packed) for number, packed in delivery.inputs.items()}
    if added_to(delivery):  # those have the numbers that came later
        takes = [*takes, *sorted(values.keys() - {*numbers_of(takes)})]
    return bind(args, kwargs, takes, values)


def _base_of(delivery: Delivery) -> int:
    """The numbers of what it takes count from here: it was added to a batch."""
    place = delivery.meta["flow"]
    return int(place[3]) if len(place) > 3 else 0


def bind(
    args: list[Any], kwargs: dict[str, Any], takes: Takes, values: Mapping[int, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """These arguments, with what the call takes before them or, by name, beside them."""
    if takes is None:
        return args, kwargs
    if isinstance(takes, Mapping):
        return args, {**kwargs, **{name: _shaped(shape, values) for name, shape in takes.items()}}
    return [_shaped(takes, values), *args], kwargs


def value_of(packed: bytes) -> Any:
    """A value as it is kept in a flow. Raises DecodeError."""
    if packed[:1] != FAILED:
        return codec.decode(packed)
    return Failed(failure_of(unpack_result(packed[1:])))


def origin_of(packed: bytes) -> int | None:
    """The node that failed, so that this one could not run; None for a value, and for a node that failed itself."""
    if packed[:1] != FAILED or packed[1:2] == b"\x94":
        return None
    return int(codec.decode(packed[1:]))


def _shaped(shape: Any, values: Mapping[int, Any]) -> Any:
    if isinstance(shape, int):
        return values[shape]
    shaped: list[Any] = []
    last = 0
    for part in shape:
        if not isinstance(part, int):
            shaped.append(_shaped(part, values))
        elif part < 0:
            shaped += [values[number] for number in range(last + 1, last - part + 1)]
            last -= part
        else:
            shaped.append(values[part])
            last = part
    return shaped
