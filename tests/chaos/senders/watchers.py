"""Those who watch what calls emit, to the end: they see each value once and in order, whatever breaks on the way."""

from __future__ import annotations

import random

from rsq import BrokerUnavailable, Gap, Item
from rsq.calls.output import Seen
from tests.chaos import tasks
from tests.chaos.senders.sender import Handle, Sender

VALUES = (0, 1, 50, 400)
PAUSES_S = (0.0, 0.001, 0.02)

LEAVES = 0.01
"""How likely one leaves after a value; he goes on behind it, as another process would."""


class Watcher:
    """Sends a call that emits, and watches it. For any number of threads.

    may_lack  a failover may lose what was confirmed, and then that is told
    """

    def __init__(self, sender: Sender, may_lack: bool) -> None:
        self._sender = sender
        self._may_lack = may_lack

    def act(self, rng: random.Random) -> None:
        count = rng.choice(VALUES)
        handle = self._sender.send(tasks.emits, count, rng.choice(PAUSES_S) if count < max(VALUES) else 0.001)
        if handle is None:
            return
        seen = self._watch(handle, rng)
        if problem := self._problem(seen, count, handle.get(timeout=15.0)[0]):
            self._sender.journal.write("problem", text=f"who watched {handle.id} saw {problem}")

    def _watch(self, handle: Handle, rng: random.Random) -> list[Seen]:
        seen: list[Seen] = []
        after: str | None = None
        while True:
            stream = handle.stream(after)
            try:
                for each in stream:
                    seen.append(each)
                    if isinstance(each, Item) and rng.random() < LEAVES:
                        break
                else:
                    return seen
            except BrokerUnavailable:
                pass  # for longer than it waits; he comes back
            finally:
                stream.close()
            after = stream.cursor

    def _problem(self, seen: list[Seen], count: int, serial: int) -> str:
        run = n = expected = 0
        lacks = False
        for each in seen:
            if isinstance(each, Gap):
                lacks, n, expected = True, n + each.count, expected + each.count
            if not isinstance(each, Item):
                continue
            if each.run < run:
                return f"a value of run {each.run} after run {run}"
            if each.run > run:
                run, expected = each.run, 0
            n += 1
            if each.cursor != f"{run}-{n}" or (not lacks and each.value != [serial, expected]):
                return f"{each} where value {expected} was next, at {run}-{n}"
            expected += 1
        if lacks:
            return "" if self._may_lack else "that values were missing"
        return "" if expected == count else f"{expected} of {count} values of the last run"
