"""What a forked child must not share with its parent is made anew before the child does anything."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something with sockets, locks or threads of its own."""

    def after_fork(self) -> None:
        """Begin anew: this is the child. To the parent's peers nothing is said, not even a goodbye."""


generation = 0
"""Rises with each fork on the way to this process: whoever remembers it sees whether he is a copy."""

_forkable: WeakSet[Forkable] = WeakSet()


def renew_in_child(each: Forkable) -> None:
    """Have its `after_fork` called in each child that is forked from now on."""
    _forkable.add(each)


def _after_fork() -> None:
    global generation
    generation += 1
    for each in list(_forkable):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)
