"""Which slots of a schedule are to be fired now. Pure: time is an argument."""

from __future__ import annotations

from rsq.calls.schedules import Schedule

MISSED_MS = 10_000
"""A slot that is later than this was missed: `catchup` decides about it. Any other is fired, each one."""

CATCHUPS = ("latest", "none", "all")


def due_slots(schedule: Schedule, after_ms: int, now_ms: int, catchup: str, limit: int) -> list[int]:
    """The slots after `after_ms` and up to now that are to be fired, in order.

    catchup  of those that were missed: ``latest`` the last one, unless a later slot is fired anyway; ``none`` none;
             ``all`` the last `limit` of them
    """
    slots: list[int] = []
    missed = {"latest": 1, "none": 0, "all": limit}[catchup]
    slot = schedule.latest_at(now_ms)
    while slot > after_ms:
        if now_ms - slot > MISSED_MS:
            if missed <= 0 or (catchup == "latest" and slots):
                break
            missed -= 1
        slots.append(slot)
        slot = schedule.latest_at(slot - 1)
    return slots[::-1]
