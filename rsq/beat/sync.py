"""The schedules of the code become those of the server.

Whose code counts: that of the beat which started last among those of its app that run. While a deploy goes on, old and
new beats fire what the newest of them has written, whatever their own code says; should an old one start again in
between, its code counts until it stops, and then the newest of the others writes its own again. So a schedule that was
removed from the code goes when the first beat with the new code starts, and what was added at run time stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from rsq.beat.control import merged
from rsq.beat.entry import Record
from rsq.beat.store import Store

log = logging.getLogger("rsq.beat")


def sync(store: Store, origin: str, wanted: Mapping[str, Record], now_ms: int) -> int:
    """Make the schedules of this origin on the server those that are wanted; gives how many there are in all.

    One whose name is taken, by a schedule of another app or of run time, is left out, with an error in the log.
    Raises BrokerError.
    """
    there, unreadable = store.load()
    for name in sorted(wanted.keys() & unreadable.keys()):
        log.error("%s; until then that of the code is left out", unreadable[name])
    new, added = [], 0
    for name, record in wanted.items():
        known = there.get(name)
        fresh = replace(record, since_ms=now_ms)
        if known is None:
            new.append(replace(fresh, due_ms=fresh.schedule.next_after(now_ms)))
        elif known.origin != origin and not known.removed:
            owner = f"the code of app {known.origin!r} has it" if known.origin else "it was added at run time"
            log.error("schedule %r is left out: %s; give one of them another name", name, owner)
        elif known.removed or not known.declares_the_same(fresh):
            store.change(name, lambda found, fresh=fresh: _unless_taken(found, fresh))  # type: ignore[misc]
    added = sum(record is not None for record in store.define(new)) if new else 0
    gone = [name for name, record in there.items() if record.origin == origin and name not in wanted]
    for name in gone:
        store.change(name, lambda found: found if found is None or found.origin != origin else None)
        log.info("schedule %r is in the code no more: removed", name)
    return sum(not record.removed for record in there.values()) + added - len(gone)


def _unless_taken(found: Record | None, fresh: Record) -> Record:
    """What is to stand there now; where somebody else has taken the name in the meantime, what stands there."""
    if found is not None and not found.removed and found.origin != fresh.origin:
        return found
    return merged(found, fresh)
