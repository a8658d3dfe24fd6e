"""What the signals hear of calls that are sent as part of a flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rsq.calls.announce import tell_after, tell_before
from rsq.calls.message import Message
from rsq.calls.plan import Node
from rsq.signals import after_publish, before_publish


def messages_of(nodes: Iterable[Node]) -> Iterator[Message]:
    """The calls among them, as they are sent."""
    return (node.call.message for node in nodes if node.call is not None)


def queues_of(nodes: Iterable[Node]) -> set[str]:
    """Where these calls go."""
    return {message.queue for message in messages_of(nodes)}


def told_before(nodes: Iterable[Node], flow_id: str) -> None:
    """Tell of them before they are sent."""
    if before_publish.handlers:
        for message in messages_of(nodes):
            tell_before(message, flow_id)


def told_after(nodes: Iterable[Node], flow_id: str) -> None:
    """Tell of them once they were sent."""
    if after_publish.handlers:
        for message in messages_of(nodes):
            tell_after(message, message.id, False, flow_id)
